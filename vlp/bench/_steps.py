"""Training loops timed turn by turn on the same batches: samples a second, memory, losses."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import psutil
import torch

from vlp.bench._losses import in_child, spread
from vlp.bench._rounds import Window

_MIB = 1 << 20
_STEPS_OF_MEMORY = 2  # in the second the optimiser has its state
_FEWEST_STEPS = 2


class Loop(Protocol):
    """A model in training, with its optimiser and batches."""

    def train(self, steps: int) -> object: ...

    def losses(self, steps: int) -> list[float]:
        """Train, and read the loss of every step."""


Start = Callable[[], Loop]


def turns(
    loops: Mapping[str, Loop],
    rows: int,
    repeats: int,
    seconds: float,
    device: torch.device,
    told: Callable[[str], None] = lambda name: None,
) -> dict[str, list[Window]]:
    """Of each loop a window in each of ``repeats`` rounds, every other round in the reverse order.

    Args:
        rows: samples of a step.
        seconds: about what a window takes; of each loop all have the same number of steps.
    """
    steps = {name: max(_FEWEST_STEPS, round(seconds / _seconds_of_step(loop, device))) for name, loop in loops.items()}
    windows: dict[str, list[Window]] = {name: [] for name in loops}
    for repeat in range(repeats):
        for name in steps if repeat % 2 == 0 else reversed(steps):
            told(name)
            if device.type == "cuda":
                torch.cuda.empty_cache()  # each begins without the memory that another one's steps left behind
            loops[name].train(1)
            windows[name].append(_window(loops[name], steps[name], rows, device))
    return windows


def _seconds_of_step(loop: Loop, device: torch.device) -> float:
    loop.train(1)
    return _window(loop, 1, 1, device).seconds


def _window(loop: Loop, steps: int, rows: int, device: torch.device) -> Window:
    _synchronise(device)
    clock, cpu = time.perf_counter(), time.process_time()
    loop.train(steps)
    _synchronise(device)
    return Window(steps * rows, time.perf_counter() - clock, time.process_time() - cpu)


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def memory(start: Start, device: torch.device) -> float:
    """MiB of weights, gradients, optimiser and whatever a step holds besides, at their highest.

    On the CPU of a forked process of its own, by its resident size; on CUDA what its allocator gave out; 0 elsewhere,
    where nobody counts.
    """
    if device.type == "cuda":
        return _allocated(start, device)
    return in_child(_resident, start) if device.type == "cpu" else 0.0


def _resident(start: Start) -> float:
    torch.set_num_threads(1)  # a forked process cannot use its parent's thread pool
    before = psutil.Process().memory_info().rss
    start().train(_STEPS_OF_MEMORY)
    unit = 1 if sys.platform == "darwin" else 1024
    return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before) / _MIB


def _allocated(start: Start, device: torch.device) -> float:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    start().train(_STEPS_OF_MEMORY)
    _synchronise(device)
    return (torch.cuda.max_memory_allocated(device) - before) / _MIB


def rate(windows: Sequence[Window]) -> dict[str, float]:
    """Samples a second, with their spread."""
    return spread([window.samples / window.seconds for window in windows])


def cpu_milliseconds(windows: Sequence[Window]) -> float:
    """Of a sample, the median."""
    return statistics.median(1000 * window.cpu_seconds / window.samples for window in windows)


def difference(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest between two curves."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
