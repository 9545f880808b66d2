"""Samples a second, memory and losses of a recipe's training step, beside open_clip's own loop on the same batches.

Both train the same model from the same weights in one process: vlp by its trainer's update, open_clip by its
`train_one_epoch` with its own loss and optimiser. The batches lie on the device already, open_clip's normalised, vlp's
as uint8; what a recipe does between steps (data, log, evaluation, checkpoints) is left out.
"""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from vlp import distributed
from vlp.bench import _openclip_step
from vlp.bench._step_case import OURS, PEER, WHOLE, WHOLE_SHAPE, Case, Contender
from vlp.durations import Schedule
from vlp.engines.launch import start
from vlp.recipe import Recipe
from vlp.types import UserError

_PACKAGES = ("open_clip_torch", "torch", "accelerate")


def run(recipe: Recipe, seconds: float = 3, repeats: int = 5, curve: int = 20) -> dict[str, Any]:
    """Measure and print; returns all figures.

    Args:
        seconds: about the length of a measurement.
        repeats: rounds in which the loops take turns.
        curve: steps whose losses are compared.

    Raises:
        UserError: what `train` would say of its data and its launch.
    """
    launch = start(recipe)
    if distributed.world_size() > 1:
        raise UserError("vlp bench step measures one process: start it without torchrun or accelerate launch")
    case = Case(recipe, launch)
    print(case.about())
    if no_peer := _openclip_step.why_not(recipe, case.outline):
        print(no_peer)
    figures = case.measure(contenders(recipe, with_peers=not no_peer), seconds, repeats, curve)
    print_figures(figures)
    return {"recipe": recipe.name, "no_ratio": no_peer, **figures, **versions()}


def contenders(recipe: Recipe, with_peers: bool) -> dict[str, Contender]:
    """vlp as the recipe says, also with whole pictures and texts where it says otherwise, and open_clip alike."""
    found = {OURS: Contender()}
    if recipe.train.shapes_differ:
        found[WHOLE] = Contender(changes=WHOLE_SHAPE)
    if with_peers:
        found[PEER] = Contender(peer=True)
        share = recipe.train.patch_dropout
        if share and not isinstance(share, Schedule):
            found[f"{PEER}, force_patch_dropout {share:g}"] = Contender(peer=True, patch_dropout=share)
    return found


def versions() -> dict[str, Any]:
    """Of what takes part."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"versions": found, "python": platform.python_version()}


def print_figures(figures: dict[str, Any]) -> None:
    """A comparison as people read it."""
    for name in figures["no_room"]:
        print(f"{name}: left out, as the device has no room for it")
    print(f"\n{'':<36}{'samples/s':>24}{'CPU ms a sample':>18}{'TFLOP/s':>10}{'MFU':>8}{'MiB':>9}")
    for name, row in figures["loops"].items():
        rate, mfu = row["samples_per_second"], f"{row['mfu']:.1%}" if row["mfu"] else ""
        spread = f"{rate['median']:.4g} ({rate['min']:.4g} to {rate['max']:.4g})"
        print(
            f"{name:<36}{spread:>24}{row['cpu_milliseconds_per_sample']:>18.4g}{row['tflops_per_second']:>10.3g}"
            f"{mfu:>8}{row['mib']:>9,.0f}"
        )
    for pair, kinds in figures["ratio"].items():
        clock, cpu = (f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})" for found in kinds.values())
        peer, name = pair.split(" / ")
        theirs, ours = (figures["loops"][loop]["mib"] for loop in (peer, name))
        memory = f", memory {theirs / ours:.2f}" if ours else ""
        print(f"{pair}: time {clock}, of CPU {cpu}{memory}")
    if figures["loss_difference"] is not None:
        (first, *_, last) = figures["loops"][PEER]["losses"]
        number = len(figures["loops"][PEER]["losses"])
        print(
            f"losses of the first {number} steps, from {first:.4f} to {last:.4f}, differ by at most "
            f"{figures['loss_difference']:.1e}"
        )
