"""What a run has written so far, as its doctor reads it: figures by name, options by key."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from vlp.durations import Span
from vlp.track import read_metrics
from vlp.types import UserError

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class RunFiles:
    """A run, also one that is going on.

    Attributes:
        recipe: resolved, as plain values, so that runs of other versions can be looked at, too.
        rows: of training, in order.
        evaluations: rows of the log with ``val/...``.
        events: rows of ``health.jsonl``.
        results: of the last evaluation, as ``evaluation/*.json`` has them.
        checkpoints: their steps.
        num_samples: of the data, as a checkpoint says; None before the first.
        silent_seconds: since the last row was written.
        news_of_health: whether the last event came after the last row; one of before the run was resumed did not.
    """

    directory: Path
    recipe: dict[str, Any]
    rows: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    events: list[dict[str, Any]]
    results: list[dict[str, Any]]
    checkpoints: list[int]
    num_samples: int | None
    silent_seconds: float
    news_of_health: bool

    def option(self, key: str, default: Any = None) -> Any:
        """The value of ``train.lr``; ``default`` where the recipe has no such key."""
        node: Any = self.recipe
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return default if node is None else node

    def points(self, name: str) -> Points:
        """``(step, value)`` of a figure of training, where it is finite."""
        return [(row["step"], row[name]) for row in self.rows if row.get(name) is not None]

    def values(self, name: str) -> list[float]:
        return [value for _, value in self.points(name)]

    @property
    def step(self) -> int:
        """The last one that anything is known of."""
        news = self.events[-1:] if self.news_of_health else []
        return max([row["step"] for row in [*self.rows, *self.evaluations, *news]] + self.checkpoints, default=0)

    @property
    def is_early(self) -> bool:
        """Too early to expect much; also where the length of the run is not known yet."""
        return self.total_steps is None or self.step < max(2 * (self.warmup_steps or 0), 0.3 * self.total_steps)

    @property
    def phase(self) -> RunFiles:
        """The run since pictures and texts have had the shape that they have in its last row."""
        shape = ("train/image_size", "train/text_length", "train/patch_dropout")
        rows = [row for row in self.rows if all(row.get(name) == self.rows[-1].get(name) for name in shape)]
        return replace(self, rows=rows)

    @property
    def world(self) -> int:
        """Number of processes."""
        row = self.rows[-1] if self.rows else {}
        per_gpu = row.get("train/samples_per_second_per_gpu")
        return round(row["train/samples_per_second"] / per_gpu) if per_gpu else 1

    @property
    def total_steps(self) -> int | None:
        """Length of the run; None where it is told in epochs of data not known yet."""
        train = self.recipe.get("train", {})
        batch, epochs = train.get("global_batch_size"), train.get("epochs")
        if train.get("steps"):
            return int(train["steps"])
        samples = train.get("samples") or (epochs * self.num_samples if epochs and self.num_samples else None)
        return max(1, math.ceil(samples / batch - 1e-9)) if samples and batch else None

    @property
    def warmup_steps(self) -> int | None:
        """Of the learning rate; None where it cannot be told yet."""
        warmup, total = self.option("train.warmup"), self.total_steps
        if isinstance(warmup, int) or warmup is None:
            return warmup
        if total is None:
            return None
        return Span(total, self.option("train.global_batch_size", 1), self.num_samples or 0).steps(warmup, "warmup")


def read(directory: Path) -> RunFiles:
    """Raises UserError: ``directory`` is no run, or one that has not trained yet."""
    if not directory.is_dir():
        raise UserError(f"there is no run {directory}: give the directory that vlp train wrote")
    if not any((directory / name).exists() for name in ("recipe.yaml", "metrics.jsonl")):
        raise UserError(f"{directory} is no run: it has neither recipe.yaml nor metrics.jsonl")
    metrics, health = directory / "metrics.jsonl", directory / "health.jsonl"
    rows = _rows(metrics)
    events = _rows(health)
    written = metrics.stat().st_mtime if metrics.exists() else 0.0
    run = RunFiles(
        directory,
        _recipe(directory / "recipe.yaml"),
        [row for row in rows if "train/lr" in row],
        [row for row in rows if any(name.startswith("val/") for name in row)],
        events,
        _results(directory / "evaluation"),
        sorted(int(path.name[5:]) for path in directory.glob("checkpoints/step-*") if path.name[5:].isdigit()),
        _num_samples(directory),
        max(0.0, time.time() - written) if written else 0.0,
        bool(events) and health.stat().st_mtime >= written,
    )
    if not rows and not run.events:
        every = run.option("track.every", 10)
        raise UserError(
            f"{directory} has no row of training yet: wait for step {every} (track.every), or see what vlp train said"
        )
    return run


def _rows(path: Path) -> list[dict[str, Any]]:
    return list(read_metrics(path)) if path.exists() else []


def _recipe(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    return tree if isinstance(tree, dict) else {}


def _results(folder: Path) -> list[dict[str, Any]]:
    contents = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and "metrics" in content:
            contents.append(content)
    return contents


def _num_samples(directory: Path) -> int | None:
    for path in sorted(directory.glob("checkpoints/step-*/state.json"), reverse=True):
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["num_samples"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def stretches(values: list[float]) -> list[float]:
    """Medians of ten equal stretches of the values; of fewer, so that each has three values, where there are few."""
    number = max(1, min(10, len(values) // 3))
    return [median(values[i * len(values) // number : (i + 1) * len(values) // number]) for i in range(number)]
