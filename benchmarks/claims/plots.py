"""The plot of a claim: above, each figure by arm, a line a seed; below, the findings with all pairs and intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLUMNS = 3
COLOURS = {"shown": "#1b7837", "not shown": "#666666", "contradicted": "#b2182b"}


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Write ``path`` (PNG). A place a figure: those of the findings, in their order, ``COLUMNS`` in a row."""
    figures = list(dict.fromkeys(finding["figure"] for finding in record["findings"]))
    arms = list(record["spreads"])
    blocks = [figures[start : start + COLUMNS] for start in range(0, len(figures), COLUMNS)]
    findings = {figure: [f for f in record["findings"] if f["figure"] == figure] for figure in figures}
    deepest = [max(len(findings[figure]) for figure in block) for block in blocks]
    heights = [inches for depth in deepest for inches in (3.0, 0.6 + 0.75 * depth)]
    width = len(blocks[0])
    grid, axes = plt.subplots(
        len(heights),
        width,
        figsize=(max(5.0, 4.2 * width), 0.5 + 1.1 * sum(heights)),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for row, (block, depth) in enumerate(zip(blocks, deepest, strict=True)):
        for column in range(width):
            above, below = axes[2 * row, column], axes[2 * row + 1, column]
            if column >= len(block):
                above.axis("off")
                below.axis("off")
                continue
            draw = _curves if block[column].startswith("train/") else _arms
            draw(above, record, block[column], arms)
            _findings(below, findings[block[column]], depth)
    grid.suptitle(f"{record['name']}: {record['title']} ({record['verdict']})", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(grid)


def _arms(axes: Axes, record: Mapping[str, Any], figure: str, arms: list[str]) -> None:
    """A thin line a seed over the arms; the mean of each arm in black."""
    by_seed: dict[int, list[float]] = {}
    for run in record["runs"]:
        line = by_seed.setdefault(run["seed"], [math.nan] * len(arms))
        line[arms.index(run["arm"])] = run["figures"].get(figure, math.nan)
    for line in by_seed.values():
        axes.plot(range(len(arms)), line, color="#4393c3", marker="o", markersize=4, linewidth=0.8, alpha=0.6)
    means = [record["spreads"][arm].get(figure, {}).get("mean") for arm in arms]
    if any(mean is not None for mean in means):
        places = [place for place, mean in enumerate(means) if mean is not None]
        axes.plot(places, [means[p] for p in places], color="black", marker="_", markersize=18, linestyle="none")
        axes.set_xticks(range(len(arms)), arms, rotation=30, ha="right", fontsize=8)
        axes.margins(x=0.15)
    else:
        axes.axis("off")  # a figure of pairs of runs alone
    axes.set_title(figure, fontsize=9)


def _curves(axes: Axes, record: Mapping[str, Any], figure: str, arms: list[str]) -> None:
    """The losses over the steps, a line a run; arms lie on each other where they agree."""
    for run in record["runs"]:
        losses = {int(step): loss for step, loss in run["losses"].items()}
        label = run["arm"] if run["seed"] == record["runs"][0]["seed"] else None
        place = arms.index(run["arm"])
        style = ("-", "--", ":", "-.")[place % 4]
        axes.plot(list(losses), list(losses.values()), style, color=f"C{place}", linewidth=1.2, label=label)
    axes.legend(fontsize=8)
    axes.set_xlabel("step", fontsize=8)
    axes.set_title(figure, fontsize=9)


def _findings(axes: Axes, findings: list[Mapping[str, Any]], deepest: int) -> None:
    """A row a finding: a point a seed, the mean with its interval, zero, and the margin where there is one."""
    for place, finding in enumerate(findings):
        colour = COLOURS[finding["verdict"]]
        values = list(finding["values"].values())
        axes.plot(values, [place] * len(values), "o", color="#4393c3", markersize=4, alpha=0.6)
        if finding["low"] is not None:
            axes.plot([finding["low"], finding["high"]], [place + 0.18] * 2, color=colour, linewidth=2.5)
        if finding["mean"] is not None:
            axes.plot([finding["mean"]], [place + 0.18], marker="D", color=colour, markersize=6)
        for edge in _edges(finding):
            axes.plot([edge, edge], [place - 0.2, place + 0.4], color="#1b7837", linewidth=1, linestyle=":")
        label = f"{finding['name']}\nexpected {finding['expected']}: {finding['verdict']}"
        place_of_text, ground = axes.get_yaxis_transform(), {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.text(0.01, place - 0.2, label, transform=place_of_text, fontsize=7, va="bottom", color=colour, bbox=ground)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_ylim(deepest - 0.4, -0.8)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=8)
    axes.margins(x=0.08)


def _edges(finding: Mapping[str, Any]) -> list[float]:
    """The ends of what the expectation allows."""
    margin = finding["margin"]
    expected = finding["expected"].split(" (")[0]
    if expected == "same":
        return [-margin, margin]
    if expected == "not lower":
        return [-margin]
    return [margin] if margin else []
