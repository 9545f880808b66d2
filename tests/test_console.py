"""The time of a step is that of a step, and a line says what there is to say."""

from __future__ import annotations

import pytest

from vlp import console
from vlp.console import Stopwatch, training_line

ROW = {
    "train/loss": 2.3456,
    "train/lr": 5e-4,
    "train/logit_scale": 14.27,
    "train/samples_per_second": 1234.4,
    "train/data_time": 0.003,
    "train/batch_time": 0.21,
}


class Clock:
    """A time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def run_steps(clock: Clock, stopwatch: Stopwatch, number: int, seconds: float) -> None:
    for _ in range(number):
        stopwatch.step(0.1)
        clock.now += seconds


def test_saving_is_no_part_of_a_step(clock):
    stopwatch = Stopwatch()
    run_steps(clock, stopwatch, 4, 0.5)
    with stopwatch.saving():
        clock.now += 30
    metrics = stopwatch.metrics(64, flops=1e9, peak=1e12)
    assert metrics == pytest.approx(
        {
            "train/batch_time": 0.5,
            "train/data_time": 0.1,
            "train/save_time": 30,
            "train/samples_per_second": 128,
            "train/samples_per_second_per_gpu": 128,
            "train/tflops_per_gpu": 0.128,
            "train/mfu": 0.128,
        }
    )
    run_steps(clock, stopwatch, 2, 0.25)
    metrics = stopwatch.metrics(64, flops=1e9)
    assert (metrics["train/batch_time"], metrics["train/save_time"]) == (0.25, 0)
    assert "train/mfu" not in metrics, "of what has no known peak"


def test_what_saving_took_is_told_although_an_evaluation_came_between(clock):
    stopwatch = Stopwatch()
    run_steps(clock, stopwatch, 2, 0.5)
    with stopwatch.saving():
        clock.now += 3
    stopwatch.reset()
    run_steps(clock, stopwatch, 2, 0.5)
    metrics = stopwatch.metrics(64, flops=1e9)
    assert (metrics["train/batch_time"], metrics["train/save_time"]) == (0.5, 3)


def test_the_line_tells_what_is_known():
    plain = "loss 2.3456  lr 5.00e-04  scale 14.3  1234 samples/s  data 0.003 of 0.210 s"
    assert training_line(ROW) == plain
    more = {**ROW, "train/mfu": 0.431, "train/peak_memory_gib": 71.24}
    assert training_line(more) == f"{plain}  MFU 43 %  71.2 GiB"
