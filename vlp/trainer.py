"""The straight loop: world, run, data, model, optimiser, resume, steps, evaluation, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vlp import checkpoint, distributed, embeddings, flops, run_state
from vlp.checkpoint import EarlyStopping
from vlp.console import decisions, evaluation_line, training_line
from vlp.data.bad_samples import BadSamples
from vlp.data.batches import TrainingData
from vlp.data.prefetch import to_device
from vlp.durations import value_at
from vlp.ema import EMA
from vlp.encoders import batch_norm, shape_check
from vlp.encoders.openclip import build, outline
from vlp.encoders.source import best_checkpoint
from vlp.encoders.two_tower import TwoTower
from vlp.encoders.vision import PatchDropout
from vlp.encoding import Encoding, crops
from vlp.engines import load as engines
from vlp.engines.launch import Launch, start
from vlp.evaluation import run as evaluation
from vlp.evaluation.tasks.base import Task
from vlp.evaluation.team import ALONE, everyone
from vlp.health import Health, running_statistics
from vlp.objectives.base import check_needs, hard_texts, loss_of, moving_weights, needs, text_views
from vlp.optim import learning_rate, set_rate
from vlp.recipe import Recipe
from vlp.run_directory import alone_in, check_same_data, check_same_recipe, write_recipe
from vlp.run_state import Run
from vlp.shapes import moving, shape_at
from vlp.signals import Signals
from vlp.track import Tracker
from vlp.types import Batch, UserError
from vlp.watchdog import Watchdog


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: ``finished`` is False when a signal stopped it at ``step``.

    With early stopping ``results`` are those of the best checkpoint, empty where an earlier call found it.
    """

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
        launch = start(recipe)
        with alone_in(Path(recipe.run_dir)), Watchdog(recipe.train.hang_timeout, Path(recipe.run_dir)) as watchdog:
            return _train(recipe, launch, signals, watchdog)


def _train(recipe: Recipe, launch: Launch, signals: Signals, watchdog: Watchdog) -> Outcome:
    # ---- Run directory: new, or the one to go on with
    run_dir = Path(recipe.run_dir)
    resumed = checkpoint.newest(run_dir, recipe.checkpoint)
    state = checkpoint.read_state(resumed) if resumed else None
    if resumed is not None:
        check_same_recipe(resumed, recipe)

    # ---- Model and data
    check_needs(recipe.objectives, recipe.provides())
    engines.check(launch, recipe)
    tasks = evaluation.open_tasks(recipe.evaluate)
    wanted = needs(recipe.objectives)
    model = build(recipe.model, recipe.seed, recipe.starts(), wanted)
    for task in tasks:
        task.check(model)
    batch_norm.synchronise(model.clip)
    data = _data(recipe, model)
    if state is not None:
        check_same_data(data, state)
    span = recipe.span(data.num_samples)
    shape_check.check(model, recipe.train, span, wanted)
    rows = recipe.rows // distributed.world_size()
    micro_batch_size = min(recipe.train.micro_batch_size or rows, rows)
    batch_norm.check(model, cached=micro_batch_size < rows)

    # ---- Optimiser, average, what an earlier call left
    if recipe.train.gradient_checkpointing is not None:
        model.use_gradient_checkpointing(recipe.train.gradient_checkpointing)
    model.to(launch.device)
    if recipe.train.temperature is not None:
        model.set_temperature(value_at(recipe.train.temperature, span, 0, "train.temperature"))
    encoding = Encoding(model, recipe.objectives, recipe.rows, data.num_samples)
    if resumed is not None:
        run_state.restore_model(resumed, model, encoding)
    said = list(decisions(recipe, model, data, span, micro_batch_size, f"{launch.device.type}, {launch.engine}"))
    engine = engines.load(launch, model, recipe, [encoding.momentum.twin] if encoding.momentum else [])
    average = EMA(model.averaged(), recipe.train.ema_decay) if recipe.train.ema_decay else None
    if resumed is not None and state is not None:
        run_state.restore_training(resumed, engine, average, state)
    write_recipe(recipe)

    # ---- Steps
    full, statistics = shape_check.full_shape(model), running_statistics(model.clip)
    warmup = span.steps(recipe.train.warmup, "train.warmup")
    run = Run(
        recipe,
        engine,
        average,
        encoding,
        data,
        span,
        micro_batch_size,
        lambda step: shape_at(recipe.train, span, step, full),
        # LoRA computes what full training does, as its sums are the weights that the towers see.
        flops.per_row(
            outline(recipe.model.model_copy(update={"lora": None}), recipe.starts(), wanted), recipe.objectives
        )
        * recipe.rows,
        watchdog,
        Health(recipe.train, run_dir, warmup, scaled=engine.scales_gradients, statistics=statistics),
        BadSamples(recipe.data.max_bad_fraction, data.num_samples),
        [state["bad_samples"]] if state is not None else [],
    )
    run.stopping = _stopping(recipe, state)
    first_step = state["step"] if state is not None else 0
    with ExitStack() as stack:
        if distributed.rank() == 0:
            run.tracker = Tracker(recipe.track, run_dir, recipe.name, span.total_steps, first_step)
            stack.callback(run.tracker.close)
            run.writer = stack.enter_context(checkpoint.Writer(run_dir, recipe.checkpoint))
            run.health.say = run.tracker.say
            for line in [*said, *([f"going on from step {first_step}"] if first_step else [])]:
                run.tracker.say(line)
        on_host = data.batches(first_step, span.total_steps, run.shape)
        batches = to_device(on_host, launch.device, encoding.with_text_lengths)
        return _steps(run, stack.enter_context(closing(batches)), tasks, signals, first_step)


def _stopping(recipe: Recipe, state: dict[str, Any] | None) -> EarlyStopping | None:
    if recipe.train.early_stopping is None:
        return None
    stopping = EarlyStopping(recipe.train.early_stopping, state and state["early_stopping"])
    if stopping.best_step is not None and best_checkpoint(Path(recipe.run_dir)) is None:
        distributed.say(
            f"warning: the best checkpoint so far, of step {stopping.best_step}, is not in {recipe.run_dir}: until "
            "there is a better one, the newest counts as the run's model"
        )
    return stopping


def _data(recipe: Recipe, model: TwoTower) -> TrainingData:
    return TrainingData(
        recipe.data,
        model.picture_format,
        model.tokenizer,
        recipe.train.global_batch_size,
        recipe.seed,
        distributed.rank(),
        distributed.world_size(),
        crops(recipe.objectives),
        text_views(recipe.objectives),
        with_picture_ids="picture_ids" in needs(recipe.objectives),
        hard_texts=hard_texts(recipe.objectives),
    )


def _steps(run: Run, batches: Iterator[Batch], tasks: list[Task], signals: Signals, first_step: int) -> Outcome:
    recipe, total = run.recipe, run.span.total_steps
    results = _evaluate_before(run, tasks, first_step)
    run.model.train()
    step = first_step
    while step < total and not run.is_over:
        step += 1
        run.watchdog.at(step, "data")
        waiting = time.perf_counter()
        batch = _next(run, batches)
        run.stopwatch.step(time.perf_counter() - waiting)
        run.watchdog.at(step, "step")
        figures = _update(run, batch, step - 1)

        last = step == total
        saves = last or step % recipe.checkpoint.every == 0
        stop = distributed.any_rank(signals.received)
        if run.tracker is not None:
            run.tracker.step(step)
        if last or step % recipe.track.every == 0:
            _log(run, figures, step)
        if saves or stop:
            with run.stopwatch.saving():
                _save(run, step)
        if last or run.evaluates_at(step):
            found = _evaluate(run, tasks, step)
            results = found if run.is_best(step) else results
            loss = distributed.mean_over_ranks({"train/loss": float(figures["loss"])})
            if run.tracker is not None and found:
                # Every row has the loss, so that readers need not tell the kinds of rows apart.
                metrics = {**loss, **evaluation.metrics_for_log(found)}
                run.tracker.log(step, run.samples(step), metrics)
            _keep_best(run, step, saved=saves or stop)
            run.stopwatch.reset()
        # After the evaluation, which would be missing otherwise: the run goes on with the next step.
        if stop and not last and not run.is_over:
            _written(run)
            distributed.say(f"stopped at step {step} and saved; run the same command again to go on")
            return Outcome(run.run_dir, step, finished=False)
    if first_step >= total and run.stopping is None:
        results = _evaluate(run, tasks, total)
    _written(run)
    for line in [*run.data.defects_by_kind(), *run.all_bad_samples().summary()]:
        distributed.say(line)
    if run.stopping is not None:
        kept = f": {run.run_dir}/checkpoints/best" if best_checkpoint(run.run_dir) else ""
        distributed.say(f"ended at step {step} of {total}; {run.stopping.described()}{kept}")
    return Outcome(run.run_dir, step, finished=True, results=results)


def _next(run: Run, batches: Iterator[Batch]) -> Batch:
    """The next batch of this rank, counted.

    All ranks end if one has none, too many bad samples, or a checkpoint that could not be written.
    """
    batch, sentence = None, ""
    try:
        batch = next(batches)
        run.bad_samples.add(batch.skipped, seen=len(batch))
        run.bad_samples.check()
        if run.writer is not None:
            run.writer.check()
    except UserError as error:
        sentence = str(error)
    distributed.fail_together(sentence)
    assert batch is not None
    return batch


def _update(run: Run, batch: Batch, step: int) -> dict[str, Tensor | float]:
    """One optimiser step; its figures stay on the device, so that nothing waits for them."""
    options, engine = run.recipe.train, run.engine
    objectives = [objective.at(run.span, step) for objective in run.recipe.objectives]
    if options.temperature is not None:
        run.model.set_temperature(value_at(options.temperature, run.span, step, "train.temperature"))
    seed = distributed.seed_of(run.recipe.seed, "step", step)
    shape = run.shape(step)
    dropout = PatchDropout(shape.patch_dropout, seed) if shape.patch_dropout else None
    loss, embedded = embeddings.backward(
        run.encoding.encoders(engine, batch, seed, engine.autocast, dropout),
        batch,
        loss_of(objectives, couples_batch=True),
        loss_of(objectives, couples_batch=False),
        micro_batch_size=run.micro_batch_size,
        seeds=(seed, distributed.seed_of(seed, distributed.rank())),
        backward_of=engine.backward,
        no_sync=engine.no_sync,
    )
    set_rate(engine.optimizer, learning_rate(options, run.span, step))
    grad_norm = engine.step(options.clip_norm)
    if options.temperature is None:
        run.model.clamp_logit_scale(options.max_logit_scale)
        engine.written(run.model.clip.logit_scale)
    run.health.step(step + 1, batch.keys, loss.total, grad_norm)
    run.encoding.after_step(embedded)
    if run.average is not None:
        run.average.update(run.model.averaged())
    return {
        "loss": loss.total,
        **loss.parts,
        "grad_norm": grad_norm,
        **moving_weights(run.recipe.objectives, objectives),
        **moving(options, shape),
    }


def _log(run: Run, figures: dict[str, Tensor | float], step: int) -> None:
    """A row of figures under open_clip's names; losses are means over the ranks."""
    run.health.read()
    values = distributed.mean_over_ranks({name: float(value) for name, value in figures.items()})
    samples, peak = run.recipe.train.global_batch_size, flops.peak_of(run.model.device, run.recipe.train.precision)
    bad_samples = run.all_bad_samples()
    bad_samples.check()
    metrics = {
        **{f"train/{name}": value for name, value in values.items()},
        "train/lr": learning_rate(run.recipe.train, run.span, step - 1),
        "train/logit_scale": float(run.model.clip.logit_scale.detach().exp()),
        **run.stopwatch.metrics(samples, run.flops / samples, peak),
        **run.health.metrics(),
        "train/peak_memory_gib": flops.peak_memory_gib(run.model.device),
        "train/skipped_samples": float(bad_samples.total),
    }
    if run.tracker is not None:
        run.tracker.log(step, run.samples(step), metrics, training_line(metrics))


def _evaluate(run: Run, tasks: list[Task], step: int) -> list[evaluation.Result]:
    """Zero-shot evaluation with the averaged weights where there are any, by all processes that have them whole."""
    results: list[evaluation.Result] = []
    if not tasks:
        return results
    run.watchdog.at(step, "evaluation")
    with distributed.failing_together(), run.engine.evaluated(run.average) as model:
        if model is not None:
            name, place, batch_size = run.recipe.name, str(run.run_dir), run.recipe.evaluate.batch_size
            team = everyone() if run.engine.evaluates_together else ALONE
            for task in tasks:
                run.watchdog.at(step, "evaluation")  # every set is progress
                results += evaluation.run_tasks(model, [task], batch_size, name, place, step, team)
    metrics = evaluation.metrics_for_log(results)
    if run.stopping is not None:
        metrics = distributed.from_all_ranks(metrics)[0]  # so that all decide the same
        if step == 0:
            run.stopping.begin(metrics)
        else:
            run.stopping.see(step, metrics)
    with distributed.failing_together():
        if distributed.rank() == 0 and run.is_best(step):
            evaluation.write_results(results, run.run_dir / "evaluation" / "{dataset}.json")
    if run.tracker is not None:
        run.tracker.say(evaluation_line(step, metrics))
    return results


def _evaluate_before(run: Run, tasks: list[Task], first_step: int) -> list[evaluation.Result]:
    """With early stopping, whether its figure is there at all, or what a run that was cut off has not seen."""
    stopping = run.stopping
    evaluates = run.evaluates_at(first_step) or first_step == run.span.total_steps
    if stopping is None or (first_step and not (evaluates and stopping.seen < first_step)):
        return []
    found = _evaluate(run, tasks, first_step)
    if first_step:
        _keep_best(run, first_step, saved=True)
    return found if run.is_best(first_step) else []


def _keep_best(run: Run, step: int, saved: bool) -> None:
    """Save the best, unless it is, and a run that ends; checkpoints later than ``step`` know of its evaluation."""
    if run.stopping is None:
        return
    best = run.is_best(step)
    if not saved and (best or run.is_over):
        with run.stopwatch.saving():
            _save(run, step)
    with distributed.failing_together():
        if best and run.writer is not None:
            run.writer.keep_best(step)


def _save(run: Run, step: int) -> None:
    """A snapshot, which is written while the run goes on."""
    run.watchdog.at(step, "save")
    run.health.read()
    run.health.compare(step, dict(run.model.named_parameters()))
    # The update came after the gradient: weights that diverged with it must not become the newest checkpoint.
    averages = run.average.average if run.average else {}
    run.health.check(step, {**run.engine.parts(), **averages, **run.encoding.state()})
    counters = {
        "samples": run.samples(step),
        "num_samples": run.span.num_samples,
        "data": run.data.digest,
        "bad_samples": run.all_bad_samples().state(),
        **({} if run.stopping is None else {"early_stopping": run.stopping.state()}),
    }
    with distributed.failing_together():
        if run.writer is not None:
            run.writer.wait()  # one snapshot in memory at a time
    taken = run_state.snapshot(step, run.engine, run.encoding, run.average, counters, run.recipe)
    if run.writer is not None:
        run.writer.save(taken)


def _written(run: Run) -> None:
    """Wait for the last checkpoint, whose failure is that of the run."""
    run.watchdog.at(run.span.total_steps, "save")
    with distributed.failing_together():
        if run.writer is not None:
            run.writer.close()
