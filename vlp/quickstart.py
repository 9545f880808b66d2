"""The main job from nothing: draw scenes, train a small CLIP, evaluate, report."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import recipe
from vlp.evaluation.report import write_report
from vlp.evaluation.run import format_table
from vlp.trainer import train


def quickstart(directory: str) -> None:
    """Run ``recipes/quickstart.yaml`` in ``directory``; running it again goes on where it stopped."""
    console = Console(stderr=True)
    root = Path(directory)
    data = root / "data"
    if not (data / "scenes.json").exists():
        draw(data)
    overrides = [f"run_dir={directory}", f"data.train={data / 'train'}"]
    sets = [str(data / "eval" / name) for name in ("retrieval", "colour", "shape", "swaps")]
    outcome = train(recipe.load("quickstart", [*overrides, f"evaluate.sets={json.dumps(sets)}"]))
    if not outcome.finished:
        return
    console.print("writing the report")
    report = write_report(directory)
    print(format_table(outcome.results))
    print(f"report: {report}")


def draw(data: Path) -> None:
    """Draw the scenes into ``data``, through a sibling that is renamed when it is whole."""
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("drawing scenes", total=None)
        partial = data.with_name(data.name + ".partial")
        _remove(partial)
        write_scenes(
            ScenesOptions(out=partial),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
        partial.rename(data)


def _remove(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
