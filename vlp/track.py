"""Where figures go: the console, ``metrics.jsonl`` always, TensorBoard and Weights & Biases on request."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vlp.types import UserError


class TrackOptions(BaseModel, frozen=True, extra="forbid"):
    """What is logged, and how often."""

    every: int = Field(10, gt=0, description="steps between two rows of training metrics")
    tensorboard: bool = Field(True, description="write RUN/tensorboard")
    wandb: str | None = Field(None, description="Weights & Biases project to log to")


class Tracker:
    """Writes rows ``{step, samples, name: value}``. Only rank zero has one."""

    def __init__(self, options: TrackOptions, run_dir: Path, name: str, total_steps: int, first_step: int) -> None:
        self.path = run_dir / "metrics.jsonl"
        _forget_after(self.path, first_step)
        self._rows = self.path.open("a", encoding="utf-8")
        self._board: Any = None
        if options.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)
        self._wandb = _open_wandb(options.wandb, run_dir, name) if options.wandb else None
        self._console = Console(stderr=True)
        self._total_steps = total_steps
        self._progress: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console)
            self._task = self._progress.add_task("training", total=total_steps, completed=first_step)
            self._progress.start()

    def step(self, step: int) -> None:
        """Move the progress bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def log(self, step: int, samples: int, metrics: dict[str, float], line: str | None = None) -> None:
        """Record ``metrics`` at ``step`` everywhere, and print ``line``."""
        # What is not finite is null in the row: NaN is no JSON.
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._rows.write(json.dumps({"step": step, "samples": samples, **finite}) + "\n")
        self._rows.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(metrics, step=step)
        if line is not None and self._progress is not None:
            self._progress.update(self._task, description=line)
        elif line is not None:
            self.say(f"step {step}/{self._total_steps}  {line}")

    def say(self, message: str) -> None:
        """Print above the progress bar."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._rows.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.jsonl``; what was not finite is None, a last line cut off by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _forget_after(path: Path, step: int) -> None:
    """Drop rows beyond the checkpoint that a run goes on from, or they would stand there twice."""
    if path.exists():
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        partial.replace(path)  # in one step: a kill must not take the rows


def _open_wandb(project: str, run_dir: Path, name: str) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("track.wandb needs the wandb package: pip install 'vlp[wandb]'") from error
    return wandb.init(project=project, name=name, dir=str(run_dir), id=name, resume="allow")
