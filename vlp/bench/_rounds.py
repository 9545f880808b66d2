"""Loaders timed turn by turn, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

Name = TypeVar("Name", bound=str)


@dataclass(frozen=True)
class Contender:
    """``start()`` begins an endless stream of batches: of each its number of samples, once it is there.

    Closing the stream ends its ``workers``.
    """

    start: Callable[[], Iterator[int]]
    workers: int


@dataclass(frozen=True)
class Window:
    """What passed between two moments in the middle of a stream; ``cpu`` is of this process and its children."""

    samples: int
    seconds: float
    cpu_seconds: float


def rounds(
    contenders: Mapping[Name, Contender],
    repeats: int,
    seconds: float,
    told: Callable[[Name], None] = lambda name: None,
) -> dict[Name, list[Window]]:
    """A window of each in each of ``repeats`` rounds, every other round in the reverse order."""
    windows: dict[Name, list[Window]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        names = list(contenders)
        for name in names if repeat % 2 == 0 else reversed(names):
            told(name)
            windows[name].append(window(contenders[name], seconds))
    return windows


def window(contender: Contender, seconds: float) -> Window:
    """At least ``seconds`` and a batch of each worker, after each has delivered its first one.

    Nothing is done with the batches, so the workers are never ahead: what arrives in the window was made in it.
    """
    group = max(1, contender.workers)
    with closing(contender.start()) as batches:  # type: ignore[type-var]
        for _ in range(group):
            next(batches)
        started, cpu_before, samples = time.perf_counter(), cpu_seconds(), 0
        while True:
            samples += sum(next(batches) for _ in range(group))
            passed = time.perf_counter() - started
            if passed >= seconds:
                return Window(samples, passed, cpu_seconds() - cpu_before)


def cpu_seconds() -> float:
    """Of this process and of its living children, since they began."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        with suppress(psutil.NoSuchProcess):
            times = psutil.Process(child.pid).cpu_times()
            total += times.user + times.system
    return total


def summary(windows: Sequence[Window]) -> dict[str, float]:
    """Medians over the windows."""
    return {
        "samples_per_second": statistics.median(w.samples / w.seconds for w in windows),
        "milliseconds_per_sample": statistics.median(1000 * w.seconds / w.samples for w in windows),
        "cpu_milliseconds_per_sample": statistics.median(1000 * w.cpu_seconds / w.samples for w in windows),
    }


def ratio(theirs: Sequence[Window], ours: Sequence[Window]) -> dict[str, dict[str, Any]]:
    """Their time a sample over ours, round by round: by the clock and of the processors."""

    def spread(seconds: Callable[[Window], float]) -> dict[str, Any]:
        values = [(seconds(a) / a.samples) / (seconds(b) / b.samples) for a, b in zip(theirs, ours, strict=True)]
        return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": values}

    return {"clock": spread(lambda w: w.seconds), "cpu": spread(lambda w: w.cpu_seconds)}
