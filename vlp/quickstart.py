"""The main job from nothing: draw scenes, train a small CLIP, evaluate, report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import recipe
from vlp.evaluation.report import write_report
from vlp.evaluation.run import format_table
from vlp.trainer import train


def quickstart(directory: str, overrides: Sequence[str] = ()) -> None:
    """Run ``recipes/quickstart.yaml`` in ``directory``; running it again goes on where it stopped.

    ``overrides`` are those of `recipe.load`; the places of the data and of the run are ours.
    """
    console = Console(stderr=True)
    root = Path(directory)
    data = root / "data"
    if not (data / "scenes.json").exists():
        draw(ScenesOptions(out=data))
    sets = [str(data / "eval" / name) for name in ("retrieval", "colour", "shape", "swaps")]
    places = {"run_dir": directory, "data.train": str(data / "train"), "evaluate.sets": sets}
    ours = [f"{key}={json.dumps(value)}" for key, value in places.items()]  # quoted: --dir 2024 is no number
    outcome = train(recipe.load("quickstart", [*overrides, *ours]))
    if not outcome.finished:
        return
    console.print("writing the report")
    report = write_report(directory)
    print(format_table(outcome.results))
    print(f"report: {report}")


def draw(options: ScenesOptions) -> None:
    """Draw the scenes into ``options.out``, through a sibling that is renamed when it is whole."""
    data = Path(options.out)
    partial = data.with_name(data.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("drawing scenes", total=None)
        write_scenes(
            replace(options, out=partial),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    partial.rename(data)
