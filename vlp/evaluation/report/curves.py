"""Which figures of ``metrics.jsonl`` share a chart."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from vlp.evaluation.report.figures import Chart, Series, Style
from vlp.evaluation.report.gather import SetResult
from vlp.evaluation.report.values import Points, smoothed

SMOOTHED_FROM = 30
RECALL_STYLES: dict[str, Style] = {"1": "solid", "5": "dashed"}
SINGLE = (
    ("train/lr", "Learning rate"),
    ("train/logit_scale", "Logit scale"),
    ("train/grad_norm", "Gradient norm"),
    ("train/samples_per_second", "Samples a second"),
)
TIMES = (("train/batch_time", "whole step"), ("train/data_time", "waiting for data"))
# Figures of the embeddings that share a range share a chart: its title, the name and the colour of the line.
GEOMETRY = {
    "modality_gap": ("Pictures against texts", "modality gap", 0),
    "alignment": ("Pictures against texts", "alignment", 1),
    "linear_separability": ("Pictures against texts", "linear separability", 2),
    "penalty_entropy": ("Pictures against texts", "penalty entropy", 3),
    "image_uniformity": ("Uniformity", "pictures", 0),
    "text_uniformity": ("Uniformity", "texts", 1),
    "image_effective_rank": ("Effective rank", "pictures", 0),
    "text_effective_rank": ("Effective rank", "texts", 1),
    "image_knn_accuracy": ("Image tower", "10 nearest", 0),
    "image_probe_accuracy": ("Image tower", "linear probe", 1),
    "tolerance": ("Image tower", "tolerance", 2),
}
TRUE_CAPTIONS = {"caption_loss": ("with its picture", 0), "caption_loss_shuffled": ("with another's picture", 1)}
SLOTS = {"slot_acc": "mean of slots", "slot_acc_all": "captions without a fault", "parses": "sentences"}
COLOURS = 6  # of the page's style sheet
STYLES: tuple[Style, ...] = ("solid", "dashed", "dotted")
OF_THE_MACHINE = ("samples_per_second_per_gpu", "save_time", "tflops_per_gpu", "mfu", "peak_memory_gib", "rank_drift")
OF_THE_STEP = ("skipped_samples", "skipped_updates", "patch_dropout", "image_size", "text_length")
NOT_LOSSES = {name for name, _ in SINGLE + TIMES} | {f"train/{name}" for name in OF_THE_MACHINE + OF_THE_STEP}


def charts(rows: Sequence[dict[str, float]], results: Sequence[SetResult]) -> list[Chart]:
    """Loss, validation, then what the optimiser and the machine did; figures that were not logged have no chart."""
    columns = _columns(rows)
    found = [_loss(columns), *_validation(columns, results)]
    found += [Chart(title, [Series(title, columns[name])]) for name, title in SINGLE if name in columns]
    times = [Series(label, columns[name], c) for c, (name, label) in enumerate(TIMES) if name in columns]
    if times:
        found.append(Chart("Seconds a step", times))
    last_step = max((row["step"] for row in rows), default=0)
    drawn = [chart for chart in found if any(series.points for series in chart.series)]
    return [replace(chart, x_range=(0, last_step)) for chart in drawn]


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, Points]:
    columns: dict[str, Points] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "samples") and isinstance(value, int | float) and math.isfinite(value):
                columns.setdefault(name, []).append((row["step"], value))
    return columns


def _loss(columns: dict[str, Points]) -> Chart:
    """The loss, and its parts where they are more than the loss under another name."""
    total = columns.get("train/loss", [])
    parts = {
        name.removeprefix("train/"): points
        for name, points in columns.items()
        if name.startswith("train/") and name not in NOT_LOSSES and points != total
    }
    series = [Series(name, smoothed(points), i + 1) for i, (name, points) in enumerate(parts.items())]
    if len(total) < SMOOTHED_FROM:
        return Chart("Loss", [Series("loss", total), *series])
    lines = [Series("loss (every row)", total, 0, "faint"), Series("loss (moving average)", smoothed(total))]
    return Chart("Loss", [*lines, *series])


def _validation(columns: dict[str, Points], results: Sequence[SetResult]) -> list[Chart]:
    recalls: dict[str, list[Series]] = {}
    accuracies: dict[str, dict[str, Points]] = {}
    twins: dict[str, list[Series]] = {}
    top1: list[Series] = []
    shapes: dict[str, list[Series]] = {}
    captions: dict[str, list[Series]] = {}
    for name, points in columns.items():
        if match := re.fullmatch(r"val/(.+)/(image_to_text|text_to_image)_R@(\d+)", name):
            direction = match[2].replace("_to_", " → ")
            colour = int(match[2] == "text_to_image")
            series = Series(f"{direction} R@{match[3]}", points, colour, RECALL_STYLES.get(match[3], "dotted"))
            recalls.setdefault(match[1], []).append(series)
        elif match := re.fullmatch(r"val/(.+)-zeroshot-val-top1", name):
            top1.append(Series(match[1], points, len(top1)))
        elif match := re.fullmatch(r"val/(.+)/(text|image|group)_score", name):
            lines = twins.setdefault(match[1], [])
            lines.append(Series(f"{match[2]} score", points, len(lines)))
        elif (match := re.fullmatch(r"val/(.+)/(.+)", name)) and match[2] in GEOMETRY:
            title, label, colour = GEOMETRY[match[2]]
            shapes.setdefault(f"{title}: {match[1]}", []).append(Series(label, points, colour))
        elif (match := re.fullmatch(r"val/(.+)/(.+)", name)) and match[2] in TRUE_CAPTIONS:
            label, colour = TRUE_CAPTIONS[match[2]]
            shapes.setdefault(f"Loss of true captions: {match[1]}", []).append(Series(label, points, colour))
        elif match := re.fullmatch(r"val/(.+)/(slot_acc.*|parses)", name):
            lines = captions.setdefault(match[1], [])
            lines.append(_category(SLOTS.get(match[2], match[2].removeprefix("slot_acc_")), points, len(lines)))
        elif match := re.fullmatch(r"val/(.+)/CIDEr", name):
            shapes.setdefault(f"CIDEr: {match[1]}", []).append(Series("CIDEr", points))
        elif match := re.fullmatch(r"val/(.+)/(.+)_accuracy", name):
            accuracies.setdefault(match[1], {})[match[2]] = points
    found = [Chart(f"Retrieval: {name}", lines, "percent") for name, lines in recalls.items()]
    chance = {result.content["dataset"]: result.content["chance"] for result in results}
    if top1:
        levels = {chance.get(series.name, {}).get("acc1") for series in top1}
        shared = _levels({"chance": levels.pop()}) if len(levels) == 1 else []
        found.append(Chart("Zero-shot top-1 accuracy", top1, "percent", levels=shared))
    for name, of_category in accuracies.items():
        names = _shown(of_category)
        lines = [_category(category, of_category[category], place) for place, category in enumerate(names)]
        levels_of_set = _shared_chance(chance.get(name, {}), names)
        found.append(Chart(f"Right choices: {name}", lines, "percent", levels=levels_of_set))
    for name, lines in twins.items():
        known = chance.get(name, {})
        levels_of_set = _levels({"chance, text and image": known.get("text_acc"), "chance, group": known.get("acc")})
        found.append(Chart(f"Twins: {name}", lines, "percent", levels=levels_of_set))
    found += [Chart(f"Right in captions: {name}", lines, "percent") for name, lines in captions.items()]
    return found + [Chart(title, lines) for title, lines in shapes.items()]


def _shown(columns: dict[str, Points]) -> list[str]:
    """The categories; their means where no category is logged."""

    def is_mean(name: str) -> bool:
        return name == "micro" or name.startswith("macro") or any(other.startswith(f"{name}_") for other in columns)

    return [name for name in columns if not is_mean(name)] or list(columns)


def _category(name: str, points: Points, place: int) -> Series:
    return Series(name.replace("_", " "), points, place % COLOURS, STYLES[place // COLOURS % len(STYLES)])


def _shared_chance(chance: dict[str, float | None], names: Sequence[str]) -> list[tuple[str, float]]:
    """Chance where it is the same for all lines; it is not where some choose among more than others."""
    suffixes = ["" if name == "micro" else f"_{name}" for name in names]
    found = {level for suffix in suffixes for way in ("text_acc", "image_acc") if (level := chance.get(way + suffix))}
    return _levels({"chance": found.pop()}) if len(found) == 1 else []


def _levels(known: dict[str, float | None]) -> list[tuple[str, float]]:
    return [(name, level) for name, level in known.items() if level is not None]
