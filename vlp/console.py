"""What a run says: its decisions at the start, figures as it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vlp import distributed
from vlp.data.batches import TrainingData
from vlp.durations import Span
from vlp.encoders import lora
from vlp.encoders.two_tower import TwoTower
from vlp.optim import described_groups
from vlp.recipe import Recipe


class Stopwatch:
    """Mean times of the steps since they were last read, and the time spent in saving, which is no step's."""

    def __init__(self) -> None:
        self._saving = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget the steps since the last row; what saving took is still told."""
        self._started = time.perf_counter()
        self._steps = 0
        self._data_seconds = 0.0
        self._stopped = 0.0

    def step(self, data_seconds: float) -> None:
        self._steps += 1
        self._data_seconds += data_seconds

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around what a checkpoint makes the step wait for."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._saving += seconds
            self._stopped += seconds

    def metrics(self, samples: int, flops: float, peak: float | None = None) -> dict[str, float]:
        """Times and speed for a row of the log; starts again.

        ``train/save_time`` are the seconds spent in saving since the last row, ``train/tflops_per_gpu`` the model's
        arithmetic of each process in a second (`vlp.flops`), ``train/mfu`` its share of ``peak``.

        Args:
            samples: of a step, over all processes.
            flops: of a sample, forward and backward.
            peak: FLOP/s of a device, where it is known.
        """
        steps = max(1, self._steps)
        batch_time = (time.perf_counter() - self._started - self._stopped) / steps
        data_time, saving = self._data_seconds / steps, self._saving
        self._saving = 0.0
        self.reset()
        per_gpu = samples / batch_time / distributed.world_size()
        return {
            "train/batch_time": batch_time,
            "train/data_time": data_time,
            "train/save_time": saving,
            "train/samples_per_second": samples / batch_time,
            "train/samples_per_second_per_gpu": per_gpu,
            "train/tflops_per_gpu": per_gpu * flops / 1e12,
            **({} if peak is None else {"train/mfu": per_gpu * flops / peak}),
        }


def training_line(metrics: dict[str, float]) -> str:
    """One line of the figures that people watch."""
    memory, mfu = metrics.get("train/peak_memory_gib"), metrics.get("train/mfu")
    return (
        f"loss {metrics['train/loss']:.4f}  lr {metrics['train/lr']:.2e}  scale {metrics['train/logit_scale']:.1f}  "
        f"{metrics['train/samples_per_second']:.0f} samples/s  "
        f"data {metrics['train/data_time']:.3f} of {metrics['train/batch_time']:.3f} s"
        + (f"  MFU {100 * mfu:.0f} %" if mfu is not None else "")
        + (f"  {memory:.1f} GiB" if memory is not None else "")
    )


def evaluation_line(step: int, metrics: dict[str, float]) -> str:
    """R@1 and accuracies of an evaluation, by set; of captions CIDEr, of a hundred as papers write it, and slots."""
    of_task, of_probe = ("R@1", "top1", "accuracy", "slot_acc", "CIDEr"), ("image_knn_accuracy", "image_probe_accuracy")
    shown = {n: v for n, v in metrics.items() if n.endswith(of_task) and not n.endswith(of_probe)}
    by_set = {n.removeprefix("val/"): v for n, v in shown.items() if n.count("/") > 1 or not n.endswith("R@1")}
    return f"evaluation at step {step}: " + "  ".join(f"{name} {100 * value:.1f} %" for name, value in by_set.items())


def decisions(
    recipe: Recipe,
    model: TwoTower,
    data: TrainingData,
    span: Span,
    micro_batch_size: int,
    device: str,
) -> Iterator[str]:
    """What was decided, a line each."""
    batch, world = recipe.train.global_batch_size, distributed.world_size()
    rows = recipe.rows // world
    passes = math.ceil(rows / micro_batch_size)
    cached = f" in {passes} cached micro-batches" if passes > 1 else ""
    yield f"run {recipe.run_dir}: {device}, {recipe.train.precision} towers, fp32 losses, seed {recipe.seed}"
    epoch = f"{data.num_samples / batch:.1f} steps an epoch"
    yield f"data: {data.num_samples:,} samples in {data.num_shards} shards, {epoch}"
    yield from data.notes
    processes = f"{world} process{'es' if world > 1 else ''}"
    half = ", half of them neighbours" if recipe.rows > batch else ""
    yield f"global batch: {recipe.rows} = {processes} x {rows}{half}{cached}; {span.total_steps} steps"
    parameters = ", ".join(f"{tower} {count:,}" for tower, count in model.parameters_by_tower().items())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    for objective in recipe.objectives:
        yield from (f"{objective.name}: {note}" for note in objective.notes())
    yield f"parameters: {parameters}" + (f", of which frozen {frozen:,}" if frozen else "")
    if recipe.model.lora is not None:
        yield f"lora: {lora.described(model.clip, recipe.model.lora)}"
    yield from (f"optimiser: {group}" for group in described_groups(model, recipe.train))
    for defect in data.defects[:10]:
        lost = f" ({defect.samples:,} samples)" if defect.samples > 1 else ""
        yield f"skipped: {defect.kind}: {defect.where}{lost}"
    if len(data.defects) > 10:
        yield f"skipped: {len(data.defects) - 10} more defects; vlp inspect counts them"
