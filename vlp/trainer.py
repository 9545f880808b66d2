"""The straight loop: world, run, data, model, optimiser, resume, steps, evaluation, checkpoints."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn

from vlp import checkpoint, distributed, embeddings
from vlp.data.batches import BadSamples, TrainingData
from vlp.ema import EMA
from vlp.encoders.openclip import build
from vlp.encoders.two_tower import TwoTower
from vlp.evaluation import run as evaluation
from vlp.objectives.base import Objective, check_needs, combined_loss
from vlp.optim import Span, adamw, learning_rate
from vlp.recipe import Recipe, difference
from vlp.track import Tracker
from vlp.types import Embeddings, Loss, UserError

# Sections that may change when a run goes on: they do not change what it computes.
FREE_TO_CHANGE = ("track.", "checkpoint.", "evaluate.", "data.workers", "data.max_bad_fraction")


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: ``finished`` is False when a signal stopped it at ``step``."""

    run_dir: Path
    step: int
    finished: bool
    results: list[evaluation.Result] = field(default_factory=list)


def train(recipe: Recipe) -> Outcome:
    """Train ``recipe`` to its end, or go on with the run that lies in its directory.

    Raises:
        UserError: the recipe, the data or the launch cannot work; the sentence says why and the cure.
    """
    # ---- World: one process, or those that torchrun and accelerate started
    distributed.check_launch()
    accelerator = _accelerator(recipe)
    rank, world = distributed.rank(), distributed.world_size()
    local_batch_size = recipe.train.global_batch_size // world
    micro_batch_size = min(recipe.train.micro_batch_size or local_batch_size, local_batch_size)

    # ---- Run directory: new, or the one to go on with
    run_dir = Path(recipe.run_dir)
    resumed = _open_run(run_dir, recipe)

    # ---- Model, data, objectives
    with _Signals() as signals:
        check_needs(recipe.objectives, provided_by(recipe))
        model = _build_model(recipe)
        _check_batch_statistics(model, micro_batch_size < local_batch_size)
        data = TrainingData(
            recipe.data, model.picture_format, model.tokenizer, recipe.train.global_batch_size, recipe.seed, rank, world
        )
        tasks = evaluation.open_tasks(recipe.evaluate)
        span = run_span(recipe, data.num_samples)

        # ---- Optimiser, average, engine
        if recipe.train.gradient_checkpointing:
            model.use_gradient_checkpointing()
        model.to(accelerator.device)
        ema = EMA(model.clip, recipe.train.ema_decay) if recipe.train.ema_decay else None
        optimizer = adamw(model, recipe.train)
        bad_samples = BadSamples(recipe.data.max_bad_fraction, data.num_samples)
        first_step = 0
        if resumed is not None:
            state = checkpoint.restore(resumed, model, optimizer, ema)
            first_step = state["step"]
            bad_samples.load_state(state["bad_samples"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
        wrapped, engine_optimizer = accelerator.prepare(model, optimizer)
        run = Run(recipe, run_dir, accelerator, wrapped, model, optimizer, engine_optimizer, ema, bad_samples, span)
        run.micro_batch_size = micro_batch_size

        tracker = None
        if rank == 0:
            tracker = Tracker(recipe.track, run_dir, recipe.name, span.total_steps, first_step)
            for line in _decisions(recipe, model, data, span, world, micro_batch_size, accelerator, first_step):
                tracker.say(line)
        try:
            return _loop(run, data, tasks, tracker, signals, first_step)
        finally:
            if tracker is not None:
                tracker.close()


@dataclass
class Run:
    """The moving parts that the loop and its helpers share."""

    recipe: Recipe
    run_dir: Path
    accelerator: Accelerator
    wrapped: nn.Module
    model: TwoTower
    optimizer: torch.optim.Optimizer
    engine_optimizer: torch.optim.Optimizer
    ema: EMA | None
    bad_samples: BadSamples
    span: Span
    micro_batch_size: int = 0

    def loss_of(self, embedded: Embeddings) -> Loss:
        return combined_loss(self.recipe.objectives, embedded)

    def update(self, batch: Any, step: int) -> dict[str, Tensor]:
        """One optimiser step on ``batch``; returns its figures as tensors, so that nothing waits for the device."""
        options, accelerator = self.recipe.train, self.accelerator
        loss = embeddings.backward(
            self.wrapped,
            batch.to(accelerator.device),
            self.loss_of,
            micro_batch_size=self.micro_batch_size,
            seed=distributed.seed_of(self.recipe.seed, "step", step, distributed.rank()),
            backward_of=accelerator.backward,
            no_sync=lambda: accelerator.no_sync(self.wrapped),
        )
        figures = {"loss": loss.total, **loss.parts}
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        figures["grad_norm"] = accelerator.clip_grad_norm_(parameters, options.clip_norm or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(options, self.span, step)
        self.engine_optimizer.step()
        self.engine_optimizer.zero_grad()
        self.model.clamp_logit_scale(options.max_logit_scale)
        if self.ema is not None:
            self.ema.update(self.model.clip)
        return figures

    def evaluate(self, tasks: list[Any], step: int) -> list[evaluation.Result]:
        """Zero-shot evaluation by rank zero with the averaged weights where there are any; the others wait."""
        results: list[evaluation.Result] = []
        if tasks and distributed.rank() == 0:
            with self.ema.applied(self.model.clip) if self.ema else nullcontext():
                results = evaluation.run_tasks(
                    self.model, tasks, self.recipe.evaluate.batch_size, self.recipe.name, str(self.run_dir), step
                )
            for result in results:
                evaluation.write_results([result], self.run_dir / "evaluation" / f"{result.dataset}.json")
        distributed.barrier()
        return results

    def save(self, step: int) -> None:
        """Checkpoint from rank zero; everybody waits until it is whole."""
        if distributed.rank() == 0:
            scaler = self.accelerator.scaler
            state = {
                "samples": step * self.recipe.train.global_batch_size,
                "bad_samples": self.bad_samples.state(),
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            checkpoint.save(
                self.run_dir, step, self.model, self.optimizer, self.ema, state, self.recipe.checkpoint.keep
            )
        distributed.barrier()


def _loop(
    run: Run, data: TrainingData, tasks: list[Any], tracker: Tracker | None, signals: _Signals, first_step: int
) -> Outcome:
    recipe, total = run.recipe, run.span.total_steps
    device = run.accelerator.device
    results: list[evaluation.Result] = []
    window = _Window()
    run.wrapped.train()
    batches = data.batches(first_step, total)
    for step in range(first_step + 1, total + 1):
        started = time.perf_counter()
        batch = next(batches)
        run.bad_samples.add(batch.skipped, seen=len(batch))
        run.bad_samples.check()
        window.waited(time.perf_counter() - started)
        figures = run.update(batch, step - 1)
        window.stepped()

        if step % recipe.track.every == 0 or step == total:
            metrics = _training_metrics(run, figures, window, step, device)
            if tracker is not None:
                tracker.log(step, step * recipe.train.global_batch_size, metrics, _line(metrics))
        if tracker is not None:
            tracker.step(step)

        stop = distributed.any_rank(signals.received, device)
        if step % recipe.checkpoint.every == 0 or step == total or stop:
            _check_finite(figures["loss"].item(), step)
            run.save(step)
        every = recipe.evaluate.every
        if (step == total or (every and step % every == 0)) and not stop:
            results = run.evaluate(tasks, step)
            if tracker is not None and results:
                metrics = evaluation.metrics_for_log(results)
                tracker.log(step, step * recipe.train.global_batch_size, metrics)
                tracker.say(_evaluation_line(step, metrics))
            window = _Window()
        if stop and step < total:
            distributed.say(f"stopped at step {step} and saved; run the same command again to go on")
            return Outcome(run.run_dir, step, finished=False)
    if first_step >= total:
        results = run.evaluate(tasks, total)
    for line in run.bad_samples.summary():
        distributed.say(line)
    return Outcome(run.run_dir, total, finished=True, results=results)


# ---- Set-up


def provided_by(recipe: Recipe) -> frozenset[str]:
    """Columns and capabilities that data and encoders of this recipe give to objectives."""
    provided = {"image", "text"}
    if recipe.model.init_logit_bias is not None or any(o.initial_logits().get("logit_bias") for o in recipe.objectives):
        provided.add("logit_bias")
    return frozenset(provided)


def run_span(recipe: Recipe, num_samples: int) -> Span:
    """Length of the run in steps, from steps, samples or epochs."""
    options = recipe.train
    samples = options.samples if options.samples is not None else (options.epochs or 0) * num_samples
    total = options.steps or math.ceil(samples / options.global_batch_size - 1e-9)
    span = Span(max(1, total), options.global_batch_size, num_samples)
    for key in ("warmup", "cooldown"):
        if span.steps(getattr(options, key), f"train.{key}") > span.total_steps and key == "warmup":
            raise UserError(f"train.warmup: {options.warmup} is longer than the run of {span.total_steps} steps")
    return span


def model_options(recipe: Recipe) -> Any:
    """The recipe's model section with the start values of logit scale and bias that its objectives ask for."""
    starts = {name: value for o in recipe.objectives for name, value in o.initial_logits().items()}
    missing = {
        f"init_{name}": value for name, value in starts.items() if getattr(recipe.model, f"init_{name}") is None
    }
    return recipe.model.model_copy(update=missing)


def _build_model(recipe: Recipe) -> TwoTower:
    model = build(model_options(recipe), recipe.seed)
    if distributed.world_size() > 1 and torch.cuda.is_available():
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def _accelerator(recipe: Recipe) -> Accelerator:
    precision = {"fp32": "no"}.get(recipe.train.precision, recipe.train.precision)
    cpu = not torch.accelerator.is_available()
    if recipe.train.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.precision: fp16 needs a CUDA device; use bf16 or fp32 here")
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu)
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked or distributed.world_size() != asked:
        raise UserError(
            f"the launcher asked for {asked} processes but accelerate runs {accelerator.num_processes}: "
            "start with torchrun --nproc_per_node N -m vlp train ..."
        )
    if recipe.train.global_batch_size % asked:
        raise UserError(
            f"train.global_batch_size: {recipe.train.global_batch_size} cannot be divided among {asked} processes"
        )
    return accelerator


def _open_run(run_dir: Path, recipe: Recipe) -> Path | None:
    """Write the resolved recipe into a new run, or find the checkpoint of the one that lies there."""
    stored = run_dir / "recipe.yaml"
    resolved = recipe.to_yaml()
    resumed = checkpoint.latest(run_dir)
    if stored.exists() and resumed is not None:
        changed = [k for k in difference(stored.read_text(), resolved) if not k.startswith(FREE_TO_CHANGE)]
        if changed:
            old = yaml.safe_load(stored.read_text())
            raise UserError(
                f"{run_dir} holds a run of another recipe ({', '.join(changed[:5])} differ): "
                f"choose another run_dir or name, or remove {run_dir}, a run of seed {old.get('seed')}"
            )
    distributed.barrier()
    if distributed.rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        partial = stored.with_suffix(".partial")
        partial.write_text(resolved, encoding="utf-8")
        partial.replace(stored)
    distributed.barrier()
    return resumed


def _check_batch_statistics(model: nn.Module, cached: bool) -> None:
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if batch_norm and (cached or (distributed.world_size() > 1 and not torch.cuda.is_available())):
        raise UserError(
            "model: this tower has batch norms, whose statistics would be those of a part of the batch: "
            "leave train.micro_batch_size out and use one process (or GPUs), or choose a tower with layer norms"
        )


class _Signals:
    """Ctrl-C and SIGTERM ask the loop to save and stop; a second one stops at once."""

    def __init__(self) -> None:
        self.received = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = True
        distributed.say("saving; a second signal stops at once")
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


# ---- Figures


class _Window:
    """Times since the last row of metrics."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.steps = 0
        self.data_seconds = 0.0

    def waited(self, seconds: float) -> None:
        self.data_seconds += seconds

    def stepped(self) -> None:
        self.steps += 1

    def read(self) -> tuple[float, float]:
        """Seconds per step, and those of them spent waiting for data; starts the next window."""
        seconds, waited = time.perf_counter() - self.started, self.data_seconds
        steps = max(1, self.steps)
        self.__init__()  # type: ignore[misc]
        return seconds / steps, waited / steps


def _training_metrics(
    run: Run, figures: dict[str, Tensor], window: _Window, step: int, device: torch.device
) -> dict[str, float]:
    """One row under open_clip's names; losses are means over the ranks."""
    values = distributed.mean_over_ranks({name: float(value) for name, value in figures.items()}, device)
    _check_finite(values["loss"], step)
    batch_time, data_time = window.read()
    rate = run.recipe.train.global_batch_size / batch_time
    return {
        **{f"train/{name}": value for name, value in values.items()},
        "train/lr": run.optimizer.param_groups[0]["lr"],
        "train/logit_scale": float(run.model.clip.logit_scale.detach().exp()),
        "train/batch_time": batch_time,
        "train/data_time": data_time,
        "train/samples_per_second": rate,
        "train/samples_per_second_per_gpu": rate / distributed.world_size(),
        "train/skipped_samples": float(run.bad_samples.total),
    }


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"train: the loss is {loss} at step {step}: lower train.lr, lengthen train.warmup or set train.clip_norm; "
            "the last checkpoint before is kept"
        )


def _line(metrics: dict[str, float]) -> str:
    return (
        f"loss {metrics['train/loss']:.4f}  lr {metrics['train/lr']:.2e}  scale {metrics['train/logit_scale']:.1f}  "
        f"{metrics['train/samples_per_second']:.0f} samples/s  data {metrics['train/data_time']:.3f} of "
        f"{metrics['train/batch_time']:.3f} s"
    )


def _evaluation_line(step: int, metrics: dict[str, float]) -> str:
    shown = {n: v for n, v in metrics.items() if n.endswith(("R@1", "top1", "accuracy")) and n.count("/") > 0}
    return f"evaluation at step {step}: " + "  ".join(f"{n.removeprefix('val/')} {v:.3f}" for n, v in shown.items())


def _decisions(
    recipe: Recipe,
    model: TwoTower,
    data: TrainingData,
    span: Span,
    world: int,
    micro_batch_size: int,
    accelerator: Accelerator,
    first_step: int,
) -> Iterator[str]:
    """What was decided, said once at the start."""
    batch = recipe.train.global_batch_size
    passes = math.ceil(batch // world / micro_batch_size)
    cached = f" in {passes} cached micro-batches each" if passes > 1 else ""
    counts = model.parameters_by_tower()
    yield f"run {recipe.run_dir}  device {accelerator.device}  precision {recipe.train.precision} (losses fp32)"
    yield f"data {data.num_samples} samples in {data.num_shards} shards, {data.num_samples / batch:.1f} steps an epoch"
    yield f"global batch {batch} = {world} process(es) x {batch // world}{cached}; {span.total_steps} steps"
    yield "parameters " + ", ".join(f"{name} {count:,}" for name, count in counts.items())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    if frozen:
        yield f"frozen parameters {frozen:,}"
    for defect in data.defects[:10]:
        yield f"skipped: {defect.kind}: {defect.where}"
    if first_step:
        yield f"going on from step {first_step}"
