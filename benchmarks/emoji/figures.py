"""From finished runs to figures: mean and spread over seeds, differences with their interval, the table."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlp.types import UserError

Scores = Mapping[str, Mapping[str, float]]
"""set -> metric (CLIP_benchmark's name) -> value"""
Results = Mapping[str, Mapping[str, Any]]
"""set -> what the evaluator writes: metrics, chance, num_images and so on"""

METRICS = {"text_retrieval_recall@1": "image → text", "image_retrieval_recall@1": "text → image"}
SETS = {"unseen_things": "unseen things", "unseen_drawings": "unseen drawings"}
COLUMNS = [(dataset, metric) for dataset in SETS for metric in METRICS]

PEER = "open_clip"
PEER_LAST = "open_clip, last epoch"
PEER_BEST = "open_clip, best epoch"

# 97.5 % quantiles of Student's t for 1 to 9 degrees of freedom: the two-sided 95 % interval of 2 to 10 seeds.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
MAX_SEEDS = len(T_QUANTILES) + 1


@dataclass(frozen=True)
class Run:
    """One trained model. ``by_epoch`` has the results of every checkpoint to compare, in order, the final one last."""

    method: str
    seed: int
    seconds: float
    samples: int
    epochs: float
    by_epoch: Sequence[Results]

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds

    @property
    def best_epoch(self) -> int:
        """The checkpoint (from 1) with the best mean of both R@1 on unseen things, the first of equals."""
        means = [
            statistics.fmean(results["unseen_things"]["metrics"][metric] for metric in METRICS)
            for results in self.by_epoch
        ]
        return means.index(max(means)) + 1


def read_results(evaluation: Path) -> dict[str, Any]:
    """What the evaluator wrote for each of the two sets."""
    return {name: json.loads((evaluation / f"{name}.json").read_text(encoding="utf-8")) for name in SETS}


def metrics(results: Results) -> Scores:
    return {dataset: result["metrics"] for dataset, result in results.items()}


def open_clip_seconds(log: str) -> tuple[float, int]:
    """Seconds in the training loop and samples seen, from open_clip's ``out.log``.

    A line gives the mean batch time since the line before it. After a resumption the last word on a batch counts.
    """
    epochs: dict[int, dict[int, float]] = {}
    for epoch, samples, batch_time in re.findall(r"Train Epoch: (\d+) \[\s*(\d+)/\d+ .*? Batch \(t\): ([\d.]+),", log):
        epochs.setdefault(int(epoch), {})[int(samples)] = float(batch_time)
    seconds, seen = 0.0, 0
    for lines in epochs.values():
        batch_size, before = min(lines), 0
        for samples, batch_time in sorted(lines.items()):
            seconds += batch_time * (samples - before) / batch_size
            before = samples
        seen += before
    return seconds, seen


def vlp_seconds(rows: Sequence[Mapping[str, float]]) -> tuple[float, int]:
    """Seconds in the training loop and samples seen, from the rows of ``metrics.jsonl``."""
    seconds, step, samples = 0.0, 0.0, 0.0
    for row in rows:
        if "train/batch_time" in row:
            seconds += row["train/batch_time"] * (row["step"] - step)
            step, samples = row["step"], row["samples"]
    return seconds, int(samples)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation and 95 % t-interval of the mean; null where one value says nothing."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return {"num": 1, "mean": mean, "std": None, "low": None, "high": None}
    std = statistics.stdev(values)
    half = T_QUANTILES[len(values) - 2] * std / math.sqrt(len(values))
    return {"num": len(values), "mean": mean, "std": std, "low": mean - half, "high": mean + half}


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """``sets``, ``runs`` (every figure), ``methods`` (over seeds), ``differences`` (from open_clip's best epoch).

    Raises:
        UserError: no runs.
    """
    if not runs:
        raise UserError("none of the seeds has a finished run yet: there is nothing to collect")
    columns: dict[str, list[tuple[Run, int]]] = {}
    for run in runs:
        last = len(run.by_epoch)
        if run.method == PEER:
            columns.setdefault(PEER_LAST, []).append((run, last))
            columns.setdefault(PEER_BEST, []).append((run, run.best_epoch))
        else:
            columns.setdefault(run.method, []).append((run, last))
    scores = {
        method: {run.seed: metrics(run.by_epoch[epoch - 1]) for run, epoch in chosen}
        for method, chosen in columns.items()
    }
    methods = {
        method: {
            "seeds": [run.seed for run, _ in chosen],
            "epochs": statistics.fmean(run.epochs * epoch / len(run.by_epoch) for run, epoch in chosen),
            "seconds": statistics.fmean(run.seconds * epoch / len(run.by_epoch) for run, epoch in chosen),
            "samples_per_second": statistics.fmean(run.samples_per_second for run, _ in chosen),
            "scores": _over_metrics(list(scores[method].values())),
        }
        for method, chosen in columns.items()
    }
    kept = ("num_images", "num_texts", "chance")
    first = runs[0].by_epoch[0]
    return {
        "sets": {dataset: {key: result[key] for key in kept} for dataset, result in first.items()},
        "methods": methods,
        "differences": _differences(scores),
        "runs": [_described(run) for run in runs],
    }


def _over_metrics(scores: Sequence[Scores]) -> dict[str, dict[str, Any]]:
    return {
        dataset: {metric: spread([one[dataset][metric] for one in scores]) for metric in scores[0][dataset]}
        for dataset in scores[0]
    }


def _differences(scores: Mapping[str, Mapping[int, Scores]]) -> dict[str, Any]:
    """Of every other method, seed by seed; the seeds that both sides have."""
    result = {}
    peer = scores.get(PEER_BEST, {})
    for method, by_seed in scores.items():
        seeds = sorted(by_seed.keys() & peer.keys())
        if method in (PEER_LAST, PEER_BEST) or not seeds:
            continue
        paired: list[Scores] = [
            {
                dataset: {metric: value - peer[seed][dataset][metric] for metric, value in metrics.items()}
                for dataset, metrics in by_seed[seed].items()
            }
            for seed in seeds
        ]
        result[method] = {"from": PEER_BEST, "seeds": seeds, "scores": _over_metrics(paired)}
    return result


def _described(run: Run) -> dict[str, Any]:
    return {
        "method": run.method,
        "seed": run.seed,
        "epochs": run.epochs,
        "samples": run.samples,
        "seconds": run.seconds,
        "samples_per_second": run.samples_per_second,
        **({"best_epoch": run.best_epoch} if run.method == PEER else {}),
        "by_epoch": [metrics(results) for results in run.by_epoch],
    }


def table(results: Mapping[str, Any]) -> str:
    """The results of `summarise` as two Markdown tables, in per cent."""
    names = [f"{SETS[dataset]}, {METRICS[metric]}" for dataset, metric in COLUMNS]
    lines = [
        _row(["R@1, %", *names, "epochs", "seconds", "samples/s"]),
        _row(["---", *["---:"] * (len(names) + 3)]),
        _row(
            [
                "chance",
                *(f"{100 * results['sets'][dataset]['chance'][metric]:.1f}" for dataset, metric in COLUMNS),
                *[""] * 3,
            ]
        ),
    ]
    for method, figures in results["methods"].items():
        cells = [_mean_and_std(figures["scores"][dataset][metric]) for dataset, metric in COLUMNS]
        cost = [f"{figures['epochs']:.1f}", f"{figures['seconds']:.0f}", f"{figures['samples_per_second']:.0f}"]
        lines.append(_row([f"{method} ({_seeds(figures['seeds'])})", *cells, *cost]))
    if results["differences"]:
        lines += ["", _row(["difference from open_clip's best epoch, points", *names])]
        lines.append(_row(["---", *["---:"] * len(names)]))
    for method, figures in results["differences"].items():
        cells = [_difference(figures["scores"][dataset][metric]) for dataset, metric in COLUMNS]
        lines.append(_row([f"{method} ({_seeds(figures['seeds'])})", *cells]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _seeds(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def _mean_and_std(figures: Mapping[str, Any]) -> str:
    std = "" if figures["std"] is None else f" ± {100 * figures['std']:.1f}"
    return f"{100 * figures['mean']:.1f}{std}"


def _difference(figures: Mapping[str, Any]) -> str:
    bounds = "" if figures["low"] is None else f" [{100 * figures['low']:+.1f}, {100 * figures['high']:+.1f}]"
    return f"{100 * figures['mean']:+.1f}{bounds}"
