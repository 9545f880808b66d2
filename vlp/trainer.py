"""The straight loop: world, run, data, model, optimiser, resume, steps, evaluation, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vlp import checkpoint, distributed, embeddings
from vlp.console import Stopwatch, decisions, evaluation_line, training_line
from vlp.data.bad_samples import BadSamples
from vlp.data.batches import TrainingData
from vlp.data.prefetch import to_device
from vlp.durations import Span, value_at
from vlp.ema import EMA
from vlp.encoders import batch_norm
from vlp.encoders.openclip import build
from vlp.encoders.source import EMA_FILE, latest_checkpoint
from vlp.encoders.two_tower import TwoTower
from vlp.encoding import Encoding, crops
from vlp.engine import Signals, accelerator_for, alone_in, check_batch_statistics
from vlp.evaluation import run as evaluation
from vlp.evaluation.tasks.base import Task
from vlp.objectives.base import check_needs, hard_texts, loss_of, moving_weights, needs, text_views
from vlp.optim import adamw, learning_rate
from vlp.recipe import Recipe, difference
from vlp.track import Tracker
from vlp.types import Batch, UserError

# What may change when a run goes on, because it does not change what the run computes.
FREE_TO_CHANGE = (
    *("run_dir", "track.", "checkpoint.", "evaluate."),
    *("data.workers", "data.max_bad_fraction", "data.cache", "data.read_ahead_mb"),
    "data.train",  # the same shards may have another path; that they are the same, their digest tells
)
# Of the digest of the data: what people call it.
_OF_THE_ORDER = {
    "names": "names of shards",
    "counts": "numbers of samples in its shards",
    "weights": "weights or kinds of draws of its sources",
    "filter": "samples that pass data.filter",
    "layers": "folders of layers",
    "version": "rules of shuffling (those of another version of vlp)",
}


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
    with Signals() as signals:
        # ---- World: one process, or those that torchrun or accelerate started
        accelerator = accelerator_for(recipe.train)
        with alone_in(Path(recipe.run_dir)):
            return _train(recipe, accelerator, signals)


def _train(recipe: Recipe, accelerator: Accelerator, signals: Signals) -> Outcome:
    rank, world = distributed.rank(), distributed.world_size()

    # ---- Run directory: new, or the one to go on with
    run_dir = Path(recipe.run_dir)
    resumed = _resumed(run_dir, recipe)

    # ---- Model and data
    check_needs(recipe.objectives, recipe.provides())
    tasks = evaluation.open_tasks(recipe.evaluate)
    wanted = needs(recipe.objectives)
    model = build(recipe.model, recipe.seed, recipe.starts(), wanted)
    for task in tasks:
        task.check(model)
    batch_norm.synchronise(model.clip)
    data = TrainingData(
        recipe.data,
        model.picture_format,
        model.tokenizer,
        recipe.train.global_batch_size,
        recipe.seed,
        rank,
        world,
        crops(recipe.objectives),
        text_views(recipe.objectives),
        with_picture_ids="picture_ids" in wanted,
        hard_texts=hard_texts(recipe.objectives),
    )
    span = recipe.span(data.num_samples)
    rows = recipe.rows // world
    micro_batch_size = min(recipe.train.micro_batch_size or rows, rows)
    check_batch_statistics(model, cached=micro_batch_size < rows)

    # ---- Optimiser, average, what an earlier call left
    if recipe.train.gradient_checkpointing:
        model.use_gradient_checkpointing()
    model.to(accelerator.device)
    if recipe.train.temperature is not None:
        model.set_temperature(value_at(recipe.train.temperature, span, 0, "train.temperature"))
    optimizer = adamw(model, recipe.train)
    encoding = Encoding(model, recipe.objectives, recipe.rows, data.num_samples)
    ema = EMA(model.averaged(), recipe.train.ema_decay) if recipe.train.ema_decay else None
    bad_samples = BadSamples(recipe.data.max_bad_fraction, data.num_samples)
    earlier: list[dict[str, Any]] = []
    first_step = 0
    if resumed is not None:
        state = checkpoint.restore(resumed, model, optimizer)
        if ema is not None:
            checkpoint.load(resumed, EMA_FILE, ema.load)
        if encoding.state():
            checkpoint.load(resumed, checkpoint.MOMENTUM_FILE, encoding.load_state)
        if model.fusion is not None:
            checkpoint.load(resumed, checkpoint.FUSION_FILE, model.fusion.load_state_dict)
        first_step = state["step"]
        _check_same_data(data, state)
        earlier.append(state["bad_samples"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
    wrapped, engine_optimizer = accelerator.prepare(model, optimizer)
    _write_recipe(run_dir, recipe)

    # ---- Steps
    run = _Run(
        recipe,
        run_dir,
        accelerator,
        wrapped,
        model,
        optimizer,
        engine_optimizer,
        ema,
        encoding,
        bad_samples,
        earlier,
        span,
        micro_batch_size,
        data.digest,
    )
    if rank == 0:
        run.tracker = Tracker(recipe.track, run_dir, recipe.name, span.total_steps, first_step)
        device = str(accelerator.device)
        for line in decisions(recipe, model, data, span, world, micro_batch_size, device):
            run.tracker.say(line)
        if first_step:
            run.tracker.say(f"going on from step {first_step}")
    try:
        with closing(to_device(data.batches(first_step, span.total_steps), accelerator.device)) as batches:
            return _steps(run, data, batches, tasks, signals, first_step)
    finally:
        if run.tracker is not None:
            run.tracker.close()


@dataclass
class _Run:
    """The moving parts of a run."""

    recipe: Recipe
    run_dir: Path
    accelerator: Accelerator
    wrapped: nn.Module
    model: TwoTower
    optimizer: torch.optim.Optimizer
    engine_optimizer: torch.optim.Optimizer
    ema: EMA | None
    encoding: Encoding
    bad_samples: BadSamples
    earlier_bad_samples: list[dict[str, Any]]
    span: Span
    micro_batch_size: int
    data_digest: dict[str, Any]
    tracker: Tracker | None = None

    def samples(self, step: int) -> int:
        return step * self.recipe.train.global_batch_size

    def all_bad_samples(self) -> BadSamples:
        """Those of every rank, and of the run before it was resumed."""
        states = distributed.from_all_ranks(self.bad_samples.state())
        return self.bad_samples.merged([*self.earlier_bad_samples, *states])


def _steps(
    run: _Run, data: TrainingData, batches: Iterator[Batch], tasks: list[Task], signals: Signals, first_step: int
) -> Outcome:
    recipe, total = run.recipe, run.span.total_steps
    results: list[evaluation.Result] = []
    stopwatch = Stopwatch()
    run.wrapped.train()
    for step in range(first_step + 1, total + 1):
        waiting = time.perf_counter()
        batch = _next(run, batches)
        stopwatch.step(time.perf_counter() - waiting)
        figures = _update(run, batch, step - 1)

        last = step == total
        if run.tracker is not None:
            run.tracker.step(step)
        if last or step % recipe.track.every == 0:
            _log(run, figures, stopwatch, step)
        stop = distributed.any_rank(signals.received, run.accelerator.device)
        if last or stop or step % recipe.checkpoint.every == 0:
            _check_finite(float(figures["loss"]), "loss", step)
            # The update came after the loss: weights that diverged with it must not become the newest checkpoint.
            _check_finite(float(sum(p.detach().sum() for p in run.model.parameters())), "sum of the weights", step)
            _save(run, step)
        if last or (recipe.evaluate.every and step % recipe.evaluate.every == 0):
            results = _evaluate(run, tasks, step)
            loss = distributed.mean_over_ranks({"train/loss": float(figures["loss"])}, run.accelerator.device)
            if run.tracker is not None and results:
                # Every row has the loss, so that readers need not tell the kinds of rows apart.
                metrics = {**loss, **evaluation.metrics_for_log(results)}
                run.tracker.log(step, run.samples(step), metrics)
            stopwatch.reset()
        # After the evaluation, which would be missing otherwise: the run goes on with the next step.
        if stop and not last:
            distributed.say(f"stopped at step {step} and saved; run the same command again to go on")
            return Outcome(run.run_dir, step, finished=False)
    if first_step >= total:
        results = _evaluate(run, tasks, total)
    for line in [*data.defects_by_kind(), *run.all_bad_samples().summary()]:
        distributed.say(line)
    return Outcome(run.run_dir, total, finished=True, results=results)


def _next(run: _Run, batches: Iterator[Batch]) -> Batch:
    """The next batch of this rank, counted; all ranks end if one has none or too many bad samples."""
    batch, sentence = None, ""
    try:
        batch = next(batches)
        run.bad_samples.add(batch.skipped, seen=len(batch))
        run.bad_samples.check()
    except UserError as error:
        sentence = str(error)
    distributed.fail_together(sentence, run.accelerator.device)
    assert batch is not None
    return batch


def _update(run: _Run, batch: Batch, step: int) -> dict[str, Tensor]:
    """One optimiser step; its figures stay on the device, so that nothing waits for them."""
    options, accelerator = run.recipe.train, run.accelerator
    objectives = [objective.at(run.span, step) for objective in run.recipe.objectives]
    if options.temperature is not None:
        run.model.set_temperature(value_at(options.temperature, run.span, step, "train.temperature"))
    seed = distributed.seed_of(run.recipe.seed, "step", step)
    loss, embedded = embeddings.backward(
        run.encoding.encoders(run.wrapped, batch, seed, accelerator.autocast),
        batch,
        loss_of(objectives, couples_batch=True),
        loss_of(objectives, couples_batch=False),
        micro_batch_size=run.micro_batch_size,
        seeds=(seed, distributed.seed_of(seed, distributed.rank())),
        backward_of=accelerator.backward,
        no_sync=lambda: accelerator.no_sync(run.wrapped),
    )
    trainable = [p for p in run.model.parameters() if p.requires_grad]
    grad_norm = accelerator.clip_grad_norm_(trainable, options.clip_norm or math.inf)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(options, run.span, step)
    run.engine_optimizer.step()
    run.engine_optimizer.zero_grad()
    if options.temperature is None:
        run.model.clamp_logit_scale(options.max_logit_scale)
    run.encoding.after_step(embedded)
    if run.ema is not None:
        run.ema.update(run.model.averaged())
    return {
        "loss": loss.total,
        **loss.parts,
        "grad_norm": grad_norm,
        **moving_weights(run.recipe.objectives, objectives),
    }


def _log(run: _Run, figures: dict[str, Tensor], stopwatch: Stopwatch, step: int) -> None:
    """A row of figures under open_clip's names; losses are means over the ranks."""
    local = {name: float(value) for name, value in figures.items()}
    values = distributed.mean_over_ranks(local, run.accelerator.device)
    _check_finite(values["loss"], "loss", step)
    batch_time, data_time = stopwatch.read()
    rate = run.recipe.train.global_batch_size / batch_time
    bad_samples = run.all_bad_samples()
    bad_samples.check()
    metrics = {
        **{f"train/{name}": value for name, value in values.items()},
        "train/lr": run.optimizer.param_groups[0]["lr"],
        "train/logit_scale": float(run.model.clip.logit_scale.detach().exp()),
        "train/batch_time": batch_time,
        "train/data_time": data_time,
        "train/samples_per_second": rate,
        "train/samples_per_second_per_gpu": rate / distributed.world_size(),
        "train/skipped_samples": float(bad_samples.total),
    }
    if run.tracker is not None:
        run.tracker.log(step, run.samples(step), metrics, training_line(metrics))


def _evaluate(run: _Run, tasks: list[Task], step: int) -> list[evaluation.Result]:
    """Zero-shot evaluation by rank zero, with the averaged weights where there are any; the others wait."""
    results: list[evaluation.Result] = []
    if tasks and run.tracker is not None:
        with run.ema.applied(run.model.averaged()) if run.ema else nullcontext():
            name, place = run.recipe.name, str(run.run_dir)
            results = evaluation.run_tasks(run.model, tasks, run.recipe.evaluate.batch_size, name, place, step)
        evaluation.write_results(results, run.run_dir / "evaluation" / "{dataset}.json")
        run.tracker.say(evaluation_line(step, evaluation.metrics_for_log(results)))
    distributed.barrier()
    return results


def _save(run: _Run, step: int) -> None:
    """Checkpoint from rank zero; the others wait until it is whole."""
    bad_samples = run.all_bad_samples()
    if distributed.rank() == 0:
        scaler = run.accelerator.scaler
        state: dict[str, Any] = {
            "samples": run.samples(step),
            "num_samples": run.span.num_samples,
            "data": run.data_digest,
            "bad_samples": bad_samples.state(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        beside = {
            EMA_FILE: run.ema.average if run.ema else {},
            checkpoint.MOMENTUM_FILE: run.encoding.state(),
            checkpoint.FUSION_FILE: run.model.fusion.state_dict() if run.model.fusion is not None else {},
        }
        checkpoint.save(run.run_dir, step, run.model, run.optimizer, beside, state, run.recipe.checkpoint.keep)
    distributed.barrier()


def _resumed(run_dir: Path, recipe: Recipe) -> Path | None:
    """The checkpoint to go on from, of the run that lies in ``run_dir``."""
    stored = run_dir / "recipe.yaml"
    resumed = latest_checkpoint(run_dir)
    if stored.exists() and resumed is not None:
        changed = [k for k in difference(stored, recipe.to_yaml()) if not k.startswith(FREE_TO_CHANGE)]
        if changed:
            raise UserError(
                f"{run_dir} holds a run of another recipe (different: {', '.join(changed[:5])}): "
                "choose another run_dir, or remove that one"
            )
    return resumed


def _write_recipe(run_dir: Path, recipe: Recipe) -> None:
    """Not before all checks: a run keeps the recipe that it was trained with."""
    distributed.barrier()  # the others may still be comparing with the one that lies there
    if distributed.rank() == 0:
        stored = run_dir / "recipe.yaml"
        partial = stored.with_suffix(".partial")
        partial.write_text(recipe.to_yaml(), encoding="utf-8")
        partial.replace(stored)
    distributed.barrier()


def _check_same_data(data: TrainingData, state: dict[str, Any]) -> None:
    """Other shards mean another order: what was seen would come again, and some would never come."""
    now, before = data.digest, state["data"]
    changed = [what for key, what in _OF_THE_ORDER.items() if now[key] != before.get(key)]
    lengths = [name for name, length in now["bytes"].items() if before["bytes"].get(name, length) != length]
    if data.num_samples != state["num_samples"]:
        difference = f"has {data.num_samples:,} samples now, but {state['num_samples']:,}"
    elif changed:
        difference = f"has other {' and '.join(changed)} now than"
    elif lengths:
        name = lengths[0]
        difference = f"has a {name}.tar of {now['bytes'][name]:,} bytes now, but of {before['bytes'][name]:,}"
    else:
        return
    raise UserError(
        f"data.train {difference} when this run was saved: bring the shards and layers back (or take away an index "
        "that counts them otherwise), or choose another run_dir"
    )


def _check_finite(value: float, what: str, step: int) -> None:
    if not math.isfinite(value):
        raise UserError(
            f"train: the {what} is {value} at step {step}: lower train.lr, lengthen train.warmup or set "
            "train.clip_norm; the last checkpoint stays as it is"
        )
