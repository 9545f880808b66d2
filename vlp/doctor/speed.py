"""Is the machine used well? Progress, waiting for data, speed, memory, saving, bad samples."""

from __future__ import annotations

from statistics import median

from vlp.doctor.finding import Finding, judged
from vlp.doctor.run_files import RunFiles, stretches

LONG = 1800.0  # seconds of work that nobody likes to lose


def progress(run: RunFiles) -> Finding:
    topic, total = "progress", run.total_steps
    of = f"step {run.step:,}" + (f" of {total:,}" if total else "")
    if total and run.step >= total:
        return Finding(topic, "ok", f"finished: {of}")
    if run.news_of_health and run.events[-1]["kind"] == "nonfinite" and run.option("train.nonfinite") == "stop":
        return Finding(topic, "look", f"stopped at {of}", "mend what is not finite; the same command goes on")
    says = f"{of}, last row {_long(run.silent_seconds)} ago"
    if run.silent_seconds > max(600.0, 20 * run.option("track.every", 10) * _batch_time(run)):
        cure = "if nothing trains there any more, the same command goes on from the last checkpoint"
        return Finding(topic, "look", says, cure)
    left = f", about {_long((total - run.step) * _batch_time(run))} left" if total and run.rows else ""
    return Finding(topic, "ok", says + left)


def data(run: RunFiles) -> Finding:
    topic, rows = "data", _settled(run)
    total = sum(row["train/batch_time"] for row in rows)
    if not total:
        return Finding(topic, "ok", "too few rows to judge")
    share = sum(row["train/data_time"] for row in rows) / total
    says = f"a step waits for it {100 * share:.1f} % of its {total / len(rows):.3g} s"
    cure = f"more data.workers (now {run.option('data.workers', 0)}); vlp bench data RECIPE finds what takes long"
    return judged(topic, says, cure, bad=share > 0.3, look=share > 0.1)


def speed(run: RunFiles) -> Finding:
    run = run.phase
    topic, rates, mfu = "speed", run.values("train/samples_per_second")[1:], run.values("train/mfu")[1:]
    if len(rates) < 6:
        return Finding(topic, "ok", f"{rates[-1]:,.0f} samples/s" if rates else "too few rows to judge")
    says = f"{median(rates):,.0f} samples/s" + (f" on {run.world} processes" if run.world > 1 else "")
    if mfu:
        says += f", MFU {100 * median(mfu):.0f} %"
    elif tflops := run.values("train/tflops_per_gpu")[1:]:
        says += f", {median(tflops):.3g} TFLOP/s a process"
    now = stretches(rates)[-1]
    if now < 0.75 * median(rates):
        cure = "other work on the machine, heat or a slow store"
        return Finding(topic, "look", f"falling: {now:,.0f} samples/s now, {median(rates):,.0f} in the middle", cure)
    if mfu and median(mfu) < 0.2 and data(run).verdict == "ok":
        return Finding(topic, "look", says, "a larger batch per GPU, train.precision=bf16")
    return Finding(topic, "ok", says)


def memory(run: RunFiles) -> Finding | None:
    points = run.phase.points("train/peak_memory_gib")
    if not points:
        return None
    (_, early), (_, now) = points[len(points) // 4], points[-1]
    says = f"{now:.1f} GiB at most"
    if len(points) >= 8 and now > 1.3 * early and now > early + 1:
        return Finding(
            "memory", "look", f"{says}, {early:.1f} earlier: it grows", "fewer data.workers; a leak is worth an issue"
        )
    return Finding("memory", "ok", says)


def checkpoints(run: RunFiles) -> Finding:
    topic, every, saving = "checkpoints", run.option("checkpoint.every", 1000), run.values("train/save_time")
    total = run.total_steps
    lost = 0.0 if total and run.step >= total else min(every, total or every) * _batch_time(run)
    says = f"{len(run.checkpoints)} kept, the last of step {run.checkpoints[-1]:,}" if run.checkpoints else "none yet"
    says += f"; a kill loses {_long(lost)} at most" if lost else ""
    trained = sum(row["train/batch_time"] for row in run.rows) * run.option("track.every", 10)
    share = sum(saving) / (trained + sum(saving)) if trained else 0.0
    if saving and run.checkpoints:
        says += f"; saving took {100 * share:.1f} % of the time"
    if not run.checkpoints and run.step >= 2 * every:
        return Finding(
            topic, "bad", f"none, at step {run.step:,}", f"they are due every {every:,} steps: look at the disk"
        )
    if share > 0.05:
        return Finding(topic, "look", says, f"save less often: checkpoint.every={2 * every} or more")
    if lost > LONG:
        return Finding(topic, "look", says, f"save more often: checkpoint.every={max(1, int(every * LONG / lost))}")
    return Finding(topic, "ok", says)


def bad_samples(run: RunFiles) -> Finding | None:
    points = run.points("train/skipped_samples")
    if not points:
        return None
    skipped, seen = points[-1][1], run.rows[-1]["samples"]
    most = run.option("data.max_bad_fraction", 0.01)
    drawn = max(seen + skipped, min(run.num_samples or 10_000, 10_000))
    share = f"{100 * skipped / drawn:.2g} %, {100 * most:g} % are allowed"
    says = f"{skipped:,.0f} of {drawn:,.0f} samples could not be used ({share})"
    if skipped / drawn > 0.5 * most:
        return Finding("bad samples", "look", says, "the run ends at the bound: vlp data verify names them")
    return Finding("bad samples", "ok", says if skipped else "none")


def _settled(run: RunFiles) -> list[dict[str, float]]:
    """Rows without the first, which waits for workers to start and caches to fill."""
    return [row for row in run.rows[1:] if row.get("train/batch_time") and row.get("train/data_time") is not None]


def _batch_time(run: RunFiles) -> float:
    times = run.values("train/batch_time")
    return median(times[-20:]) if times else 0.0


def _long(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36 * 3600 else f"{seconds / 86400:.1f} days"
