"""CPU time, memory, rounding and traffic of a recipe's losses, beside those of open_clip where it has such a loss.

At the recipe's global batch and width of embeddings, and at 4,096 where its batch is smaller: losses of one process
with their backward, in fp32, one thread. Objectives have the options of the recipe, their peers are plain. Those that
need more than features and identities (a twin, a teacher, tokens) are left out, and named. The recipe's data are not
touched; rounding and traffic are those of the plain `infonce`.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import Progress

from vlp.bench import _losses, _traffic
from vlp.encoders.openclip import outline
from vlp.objectives import base
from vlp.recipe import Recipe

_REPEATS = {4096: 5, 8192: 3, 16384: 1}  # up to that batch: all together then take about a minute
_USUAL = 4096
_MOST_ROWS = 2048  # of a process whose traffic is counted; the ratio does not depend on it
_PACKAGES = ("open_clip_torch", "torch")


def run(recipe: Recipe) -> dict[str, Any]:
    """Measure and print; returns all figures."""
    width = outline(recipe.model, recipe.starts()).openclip_config["model_cfg"]["embed_dim"]
    largest = max(_REPEATS)
    rows = min(recipe.train.global_batch_size, largest)
    objectives = [o for o in recipe.objectives if _losses.measurable(o)]
    print(
        f"{recipe.name}: batch {recipe.train.global_batch_size:,}, embeddings of {width}, one process, one thread, fp32"
    )
    if rows < recipe.train.global_batch_size:
        print(f"measured at {rows:,}, as a whole batch would take minutes")
    left_out = [o.name for o in recipe.objectives if not _losses.measurable(o)]
    if left_out:
        print(f"left out, as they need more than features and identities: {', '.join(left_out)}")
    if not objectives:
        objectives = [base.parse({"name": name}) for name in _losses.PEERS]
        print(f"instead, by default: {', '.join(_losses.PEERS)}")
    figures: dict[str, Any] = {"recipe": recipe.name, "width": width, "left_out": left_out, "rows": []}
    sizes = sorted({rows, max(rows, _USUAL)})
    plan = [(o, size, next(n for most, n in _REPEATS.items() if size <= most)) for o in objectives for size in sizes]
    total = sum(repeats * (1 + len(_losses.PEERS.get(o.name, {}))) for o, _, repeats in plan)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("losses in turn", total=total)
        told = partial(bar.update, task, advance=1)
        for objective, size, repeats in plan:
            row = _row(objective, size, width, repeats, lambda who: told(description=who))
            figures["rows"].append(row)
            print_row(row)
    figures["rounding"] = _losses.rounding(min(max(sizes), _USUAL), width)
    print_rounding(figures["rounding"])
    figures["traffic"] = {}
    if _traffic.can_count() and rows > 1:
        figures["traffic"]["2"] = _traffic.sent(2, min(max(sizes) // 2, _MOST_ROWS), width)
        print_traffic(figures["traffic"])
    figures["versions"] = {name: importlib.metadata.version(name) for name in _PACKAGES}
    figures["python"] = platform.python_version()
    return figures


def _row(objective: base.Objective, size: int, width: int, repeats: int, told: Callable[[str], None]) -> dict[str, Any]:
    """One objective with its options beside the plain peers, whose loss is another where it has some."""
    options = {
        field: value for field, value in objective.model_dump(mode="json").items() if field not in ("name", "weight")
    }
    plain = base.parse({"name": objective.name}).model_dump(mode="json")
    options = {field: value for field, value in options.items() if value != plain[field]}
    peers = _losses.PEERS.get(objective.name, {})
    own = partial(_losses.of_objective, objective)
    row = _losses.compare(objective.name, size, width, repeats, peers, told, own)
    return {**row, "options": options, "loss_difference": None if options else row["loss_difference"]}


def print_row(row: dict[str, Any]) -> None:
    """A comparison as people read it."""
    print(f"\n{row['objective'] + ', batch ' + format(row['batch'], ','):<34}{'CPU s':>9}{'MiB':>8}   theirs / ours")
    for name, found in row["losses"].items():
        line = f"{name:<34}{found['seconds']:>9.4g}{found['mib']:>8,.0f}"
        if ratio := row["ratio"].get(name):
            time, memory = ratio["seconds"], ratio["mib"]
            line += f"   time {time['median']:.2f} ({time['min']:.2f} to {time['max']:.2f})"
            line += f", memory {memory['median']:.1f}" if row["losses"][_losses.OURS]["mib"] >= 1 else ""
        print(line, flush=True)
    if options := row.get("options"):
        said = ", ".join(f"{field}: {value}" for field, value in options.items())
        print(f"vlp with {said}" + ("; the peers compute the plain loss" if row["ratio"] else ""))
    elif row["ratio"]:
        print(f"the losses differ by at most {row['loss_difference']:.0e}")


def print_rounding(errors: dict[str, float]) -> None:
    found = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    print(f"\nrelative error of the gradient in bf16 at scale 100: {found}")


def print_traffic(traffic: dict[str, dict[str, float]]) -> None:
    for world, found in traffic.items():
        print(
            f"bytes that each of {world} processes sends: "
            f"vlp {found['vlp']:,.0f}, open_clip {found['open_clip']:,.0f}, "
            f"ratio {found['ratio']:.2f}; gradients differ by {found['gradient_difference']:.0e}"
        )
