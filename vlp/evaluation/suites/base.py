"""What a suite is: a list of evaluation sets with the main metric of each, and means over groups of them.

A suite is a file of this folder (``imagenet_shifts.py`` is ``--suite imagenet-shifts``): a docstring whose first line
is its summary, and ``SUITE``. Which of its sets a result belongs to is told by the name of the result's directory, so
means can be computed from stored results alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from vlp import resolve
from vlp.types import UserError

SUITES = "vlp.evaluation.suites"
HUB = "https://huggingface.co/datasets"


@dataclass(frozen=True)
class Entry:
    """One set of a suite.

    Attributes:
        name: as tables call it.
        places: paths below the root at which it may lie, the first that is there counts.
        metrics: names of the metrics whose mean is the main metric; empty where there is none.
        where: how to get it.
        groups: those of the suite's means that it counts in.
        task: of `vlp.evaluation.tasks`, where the layout does not tell.
        images, classes: how many the published set has, where that is known.
        not_computed: why its main metric cannot be had from vlp; such a set is not run.
    """

    name: str
    places: tuple[str, ...]
    metrics: tuple[str, ...]
    where: str
    groups: tuple[str, ...] = ()
    task: str = ""
    images: int | None = None
    classes: int | None = None
    not_computed: str = ""

    def set_below(self, root: Path) -> str | None:
        """What ``--on`` would name, where it is there."""
        for place in self.places:
            if (root / place).exists():
                return f"{self.task}:{root / place}" if self.task else str(root / place)
        return None

    def differs(self, task: Any) -> str:
        """A sentence where an opened set has other numbers than the published one; else nothing."""
        classes = getattr(task, "classnames", None)
        numbers = [("pictures", self.images, len(task.images))]
        numbers += [("classes", self.classes, len(classes))] if classes is not None else []
        parts = [f"{here:,} {noun}, not {known:,}" for noun, known, here in numbers if known not in (None, here)]
        return f"has {' and '.join(parts)} as the {self.name} of this suite" if parts else ""

    @property
    def metric(self) -> str:
        """The main metric's name."""
        return f"mean of {' and '.join(self.metrics)}" if len(self.metrics) > 1 else "".join(self.metrics)

    def main(self, metrics: Mapping[str, float | None]) -> float | None:
        """The main metric, of the metrics of a result."""
        values = [metrics.get(name) for name in self.metrics]
        found = [value for value in values if value is not None and value == value]
        return fmean(found) if found and len(found) == len(values) else None


@dataclass(frozen=True)
class Mean:
    """A mean over the ``present`` of ``total`` sets of a group; None where none is present."""

    name: str
    value: float | None
    present: int
    total: int

    @property
    def label(self) -> str:
        """``VTAB``, or ``VTAB (5 of 13)`` where sets are missing."""
        return self.name if self.present == self.total else f"{self.name} ({self.present} of {self.total})"


@dataclass(frozen=True)
class Suite:
    """Sets, the groups of which means are told, and what the mean over all is called ("" where there is none)."""

    entries: tuple[Entry, ...]
    groups: tuple[str, ...] = ()
    average: str = ""

    def below(self, root: Path) -> tuple[dict[str, Entry], list[Entry]]:
        """The sets that are there, by what ``--on`` would call them, and those that are not, or not computed."""
        if not root.is_dir():
            raise UserError(f"--root {root} is no directory: give the one in which the evaluation sets lie")
        places = [(entry, None if entry.not_computed else entry.set_below(root)) for entry in self.entries]
        present = {place: entry for entry, place in places if place is not None}
        return present, [entry for entry, place in places if place is None]

    def entry_of(self, dataset: str) -> Entry | None:
        """The set that a result's ``dataset`` is, by the name of its directory or file."""
        named = (entry for entry in self.entries for place in entry.places if Path(place).stem == dataset)
        return next(named, None)

    def scores(self, metrics_of: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
        """Main metrics by the name of the entry.

        Args:
            metrics_of: for each ``dataset`` the metrics of its result.
        """
        found = {}
        for dataset, metrics in metrics_of.items():
            entry = self.entry_of(dataset)
            score = entry.main(metrics) if entry is not None else None
            if entry is not None and score is not None:
                found[entry.name] = score
        return found

    def means(self, scores: Mapping[str, float]) -> list[Mean]:
        """The means of the groups over what is present of them; the average over all only if nothing is missing."""
        counted = [entry for entry in self.entries if entry.metrics]
        means = [self._mean(group, [e for e in counted if group in e.groups], scores) for group in self.groups]
        whole = all(entry.name in scores for entry in counted)
        average = self.average if whole else "mean of what is there"
        return means + ([self._mean(average, counted, scores)] if self.average else [])

    @staticmethod
    def _mean(name: str, entries: Sequence[Entry], scores: Mapping[str, float]) -> Mean:
        values = [scores[entry.name] for entry in entries if entry.name in scores]
        return Mean(name, fmean(values) if values else None, len(values), len(entries))


def names() -> list[str]:
    return [name.replace("_", "-") for name in resolve.names(SUITES)]


def suite(name: str) -> Suite:
    """
    Raises:
        UserError: no such suite.
    """
    if name not in names():
        raise UserError(f"unknown suite '{name}'{resolve.nearest(name, names())}; known: {', '.join(names())}")
    return resolve.module(SUITES, name.replace("-", "_"), "suite").SUITE


def missing(entries: Sequence[Entry]) -> list[str]:
    """A line for each set that is not there."""
    return [
        f"{entry.name}: not computed, {entry.not_computed}"
        if entry.not_computed
        else f"{entry.name}: looked for {', '.join(entry.places)}; get it from {entry.where}"
        for entry in entries
    ]


def benchmark_places(name: str) -> tuple[str, ...]:
    """Where a set of CLIP_benchmark's name may lie: as DataComp, CLIP_benchmark's hub and people call the directory."""
    joined, plain = name.replace("/", "-"), name.rpartition("/")[2]
    return tuple(dict.fromkeys((f"wds_{joined}_test", f"wds_{joined}", joined, f"wds_{plain}", plain)))


def on_hub(name: str, owner: str = "clip-benchmark", suffix: str = "") -> str:
    return f"{HUB}/{owner}/wds_{name.replace('/', '-')}{suffix}"
