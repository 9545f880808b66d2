"""CPU time, memory, rounding and traffic of a recipe's contrastive losses, beside those of open_clip.

At the recipe's global batch and width of embeddings, and at 4,096 where its batch is smaller: losses of one process
with their backward, in fp32, one thread. The recipe's data are not touched.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import Progress

from vlp.bench import _losses, _traffic
from vlp.encoders.openclip import outline
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
    names = [o.name for o in recipe.objectives if o.name in _losses.PEERS] or list(_losses.PEERS)
    print(
        f"{recipe.name}: batch {recipe.train.global_batch_size:,}, embeddings of {width}, one process, one thread, fp32"
    )
    if rows < recipe.train.global_batch_size:
        print(f"measured at {rows:,}, as a whole batch would take minutes")
    figures: dict[str, Any] = {"recipe": recipe.name, "width": width, "rows": []}
    sizes = sorted({rows, max(rows, _USUAL)})
    plan = [(name, size, next(n for most, n in _REPEATS.items() if size <= most)) for name in names for size in sizes]
    total = sum(repeats * (1 + len(_losses.PEERS[name])) for name, _, repeats in plan)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("losses in turn", total=total)
        told = partial(bar.update, task, advance=1)
        for name, size, repeats in plan:
            row = _losses.compare(name, size, width, repeats, _losses.PEERS[name], lambda who: told(description=who))
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
