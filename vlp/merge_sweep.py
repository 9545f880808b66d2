"""The way from a base to what it was tuned to: what is gained and what is forgotten on it, without a model written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from vlp import distributed
from vlp.data.write import new_directory
from vlp.evaluation import run as evaluation
from vlp.evaluation.results import Result
from vlp.merge import Merging, fill, fuse, open_models, state_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_RECALLS = ("text_retrieval_recall@1", "image_retrieval_recall@1")


def sweep(
    out: str | Path, references: Sequence[str], base: str | None, mergings: Sequence[Merging], sets: Sequence[str]
) -> str:
    """Evaluate the merged model of each of ``mergings`` on ``sets``; the table of it.

    ``out`` gets ``sweep.json`` (with all results) and, for two sets or more, ``sweep.svg``: the first set, which is
    what was tuned for, over each other one.

    Raises:
        UserError: models that do not merge, sets that are none, or a directory that is not empty.
    """
    for merging in mergings:
        merging.check(len(references), base is not None)
    tasks = evaluation.open_tasks(evaluation.EvaluateOptions(sets=list(sets)))
    models = open_models([*([base] if base is not None else []), *references])
    final = new_directory(out)
    states = [{name: value.clone() for name, value in state_of(model).items()} for model in models]
    start = states[0] if base is not None else None
    model = models[0].to(distributed.device())
    for task in tasks:
        task.check(model)
    rows: list[dict[str, Any]] = []
    for merging in mergings:
        fill(model, fuse(states[len(states) - len(references) :], start, merging).values)
        results = evaluation.run_tasks(model, tasks, 256, f"alpha {merging.alpha:g}", str(final))
        rows.append(
            {
                "alpha": merging.alpha,
                "scores": {result.dataset: headline(result) for result in results},
                "results": [result.to_json() for result in results],
            }
        )
    _write(final, rows, {"models": list(references), "base": base, "method": mergings[0].method})
    return _table(rows)


def headline(result: Result) -> float:
    """The one figure of a set: of retrieval the mean of both R@1, else its first metric."""
    metrics = result.scores.metrics
    if all(name in metrics for name in _RECALLS):
        return sum(metrics[name] for name in _RECALLS) / 2
    return next(iter(metrics.values()))


def _write(final: Path, rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> None:
    (final / "sweep.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    if len(rows[0]["scores"]) > 1:
        plot(rows, final / "sweep.svg")


def _table(rows: Sequence[dict[str, Any]]) -> str:
    names = list(rows[0]["scores"])
    lines = ["| alpha | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row['alpha']:g} | " + " | ".join(f"{100 * row['scores'][name]:.1f}" for name in names) + " |")
    return "\n".join([*lines, "in per cent: of retrieval the mean of both R@1, else the first metric of the set"])


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The first set over each of the others, a line for each, with alpha at its points."""
    gained, *known = rows[0]["scores"]
    figure, axes = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
    for name in known:
        points = [(100 * row["scores"][name], 100 * row["scores"][gained]) for row in rows]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1.2, label=name)
        for row, point in zip(rows, points, strict=True):
            axes.annotate(f"{row['alpha']:g}", point, textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set_xlabel("known before, %" if len(known) > 1 else f"{known[0]} (known before), %")
    axes.set_ylabel(f"{gained} (gained), %")
    axes.set_title("by the share alpha of the way from base to tuned", fontsize=10)
    axes.grid(alpha=0.3)
    if len(known) > 1:
        axes.legend(fontsize=8)
    with plt.rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
