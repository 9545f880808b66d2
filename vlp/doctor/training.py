"""Is the model learning? Loss, gradient, logit scale, learning rate, weights."""

from __future__ import annotations

import math
from statistics import median

from vlp.doctor.finding import Finding, times
from vlp.doctor.run_files import RunFiles, stretches

ENOUGH = 10  # rows, before a curve says anything
HIGH_LR = 5e-3  # of AdamW on two towers; recipes have 1e-6 to 2e-3


def loss(run: RunFiles) -> Finding:
    topic, values = "loss", run.values("train/loss")
    last = run.rows[-1]["train/loss"] if run.rows and "train/loss" in run.rows[-1] else None
    if run.rows and last is None:
        cure = "lower train.lr, lengthen train.warmup or set train.clip_norm; go on from the last good checkpoint"
        return Finding(topic, "bad", f"not finite at step {run.rows[-1]['step']}", cure)
    if len(values) < ENOUGH:
        return Finding(topic, "ok", f"{values[-1]:.4g} now: too few rows to judge" if values else "no row yet")
    medians = stretches(values)
    first, now, best = medians[0], medians[-1], min(medians)
    way = f"{first:.4g} at first, {now:.4g} now"
    if stuck := _at_chance(run):
        return Finding(topic, "bad", stuck, "lower train.lr, lengthen train.warmup; look at the data: vlp data stats")
    spread = first - best
    if spread <= 0.02 * abs(first) or now >= first:
        cure = "raise or lower train.lr (try a tenth, ten times); check captions and pictures: vlp data stats"
        return Finding(topic, "look", f"not falling: {way}", cure)
    if now - best > 0.25 * spread:
        cure = "see below for a spike, a scale or a rate that explains it; a weight on a schedule may"
        return Finding(topic, "look", f"rose again: {way}, {best:.4g} at its best", cure)
    return Finding(topic, "ok", f"falls: {way}")


def _at_chance(run: RunFiles) -> str:
    """Whether InfoNCE is at the logarithm of the rows that it compares, or worse, as of features that are all alike."""
    values = run.values("train/contrastive_loss")
    rows = run.option("train.global_batch_size", 0) * (2 if run.option("data.neighbours") else 1)
    plain = any(o.get("name") == "infonce" and o.get("captions", 1) == 1 for o in run.option("objectives", []))
    if not plain or len(values) < ENOUGH or rows < 2 or (run.warmup_steps or 0) > 0.5 * run.step:
        return ""
    chance, now = math.log(rows), stretches(values)[-1]
    if now < 0.98 * chance:
        return ""
    return (
        f"contrastive loss {now:.4g}, that of guessing is ln {rows:,} = {chance:.4g}: all pairs look alike (collapsed)"
    )


def not_finite(run: RunFiles) -> Finding:
    topic = "not finite"
    events = [event for event in run.events if event["kind"] == "nonfinite"]
    skipped = sum(run.values("train/skipped_updates"))
    if not events and not run.points("train/skipped_updates"):
        return Finding(topic, "ok", "no such loss is known (this run was not watched)")
    if not events:
        scaler = f"; {skipped:.0f} updates left out while the scaler looked for its scale" if skipped else ""
        return Finding(topic, "ok", f"every loss and gradient was finite{scaler}")
    last = events[-1]
    says = f"{times(len(events))}, the last: {last['note']}"
    keys = sum(map(len, last["keys"]))
    cure = (
        f"look at its batch ({keys:,} keys in {run.directory / 'health.jsonl'}); lower train.lr or set train.clip_norm"
    )
    ended = run.news_of_health and last["step"] >= run.step
    return Finding(topic, "bad" if ended or len(events) > max(3, 0.01 * run.step) else "look", says, cure)


def spikes(run: RunFiles) -> Finding:
    steps = [event["step"] for event in run.events if event["kind"] == "spike"]
    if not steps:
        return Finding("loss spikes", "ok", "none")
    last = next(event for event in reversed(run.events) if event["kind"] == "spike")
    cure = "many: set train.clip_norm to 1, lower train.betas' second to 0.95; one: look at the keys in health.jsonl"
    return Finding("loss spikes", "look", f"{len(steps)}, at step {_some(steps)}; {last['note']}", cure)


def gradient(run: RunFiles) -> Finding:
    topic, values, clip = "gradient", run.values("train/grad_norm"), run.option("train.clip_norm")
    if len(values) < ENOUGH:
        return Finding(topic, "ok", f"norm {values[-1]:.3g}" if values else "no norm yet")
    usual, now = median(values), stretches(values)[-1]
    if now < 1e-6:
        return Finding(
            topic, "bad", f"norm {now:.1g}: nothing moves", "the model has collapsed, or all of it is locked"
        )
    clipped = sum(value > clip for value in values) / len(values) if clip else 0.0
    if now > 10 * usual:
        cure = "lower train.lr; set train.clip_norm" if not clip else "lower train.lr"
        return Finding(topic, "bad", f"exploding: norm {now:.3g} now, {usual:.3g} in the middle", cure)
    if clipped > 0.95:
        says = (
            f"clipped at {100 * clipped:.0f} % of the steps: norm {usual:.3g} in the middle, train.clip_norm {clip:g}"
        )
        return Finding(topic, "look", says, f"clip what is rare: train.clip_norm={3 * usual:.2g}, or none")
    share = f", clipped at {100 * clipped:.0f} % of the steps" if clip else ""
    return Finding(topic, "ok", f"norm {usual:.3g} in the middle, {max(values):.3g} at most{share}")


def scale(run: RunFiles) -> Finding:
    topic, points, most = "logit scale", run.points("train/logit_scale"), run.option("train.max_logit_scale", 100.0)
    if not points:
        return Finding(topic, "ok", "no row yet")
    first, now = points[0][1], points[-1][1]
    if run.option("train.temperature") is not None:
        return Finding(topic, "ok", f"{now:.1f}, as train.temperature says")
    if run.option("model.init") is not None and min(first, now) >= 0.999 * most:
        return Finding(topic, "ok", f"{now:.1f}, as at the start")
    if now >= 0.999 * most:
        since = next((step for step, value in points if value >= 0.999 * most), points[-1][0])
        cure = "usual late in large runs; early: train.lr is too high, or the pairs are too easy or too few (overfit)"
        return Finding(topic, "look", f"{now:.1f}, held down by train.max_logit_scale since step {since}", cure)
    if now < 1.01 or now < 0.5 * first:
        cure = "the model cannot tell pairs apart: lower train.lr, check that captions belong to their pictures"
        return Finding(topic, "bad", f"sank to {now:.1f} (first row: {first:.1f})", cure)
    return Finding(topic, "ok", f"{first:.1f} at first, {now:.1f} now")


def learning_rate(run: RunFiles) -> Finding:
    topic, points, peak = "learning rate", run.points("train/lr"), run.option("train.lr", 0.0)
    if not points:
        return Finding(topic, "ok", "no row yet")
    step, now = points[-1]
    warmup = run.warmup_steps
    says = f"{now:.2e} at step {step}" + (
        "" if warmup is None else f", warm-up {'over at' if step >= warmup else 'until'} {warmup}"
    )
    if peak > HIGH_LR:
        return Finding(topic, "look", f"{says}; train.lr {peak:g}", "AdamW on two towers takes 1e-6 to 2e-3: lower it")
    return Finding(topic, "ok", says)


def drift(run: RunFiles) -> Finding:
    topic, world = "ranks", run.world
    events = [event for event in run.events if event["kind"] == "drift"]
    if events:
        cure = "go on from the checkpoint before; check the memory and the links of that machine"
        return Finding(topic, "bad", f"drifting since step {events[0]['step']}: {events[-1]['note']}", cure)
    if world == 1:
        return Finding(topic, "ok", "one process")
    compared = run.points("train/rank_drift")
    says = f"weights equal to the bit on {world} processes" if compared else f"{world} processes, weights not compared"
    return Finding(
        topic, "ok", says + (f" (step {compared[-1][0]})" if compared else " (sharded, or nothing saved yet)")
    )


def _some(steps: list[int]) -> str:
    return ", ".join(map(str, steps[:5])) + (f" and {len(steps) - 5} more" if len(steps) > 5 else "")
