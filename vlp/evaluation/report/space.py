"""The common space: matching against other similarities, its shape in figures, and its plane of largest variance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from markupsafe import Markup
from torch import Tensor

from vlp.evaluation import geometry
from vlp.evaluation.report.figures import Chart, Series, scatter
from vlp.evaluation.report.gather import EvaluatedSet
from vlp.evaluation.report.values import format_value
from vlp.evaluation.tasks import retrieval

BINS = 60
TILE = 1024
MAX_DOTS = 300


@dataclass(frozen=True)
class Figure:
    """One number and what it means."""

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class SpaceView:
    """One retrieval set's similarities, figures and plane of largest variance."""

    name: str
    histogram: Markup
    legend: list[tuple[Series, str]]
    scatter: Markup
    mean_matching: float
    mean_other: float
    figures: list[Figure]
    num_dots: tuple[int, int]
    variance_shown: float


def view(shown: EvaluatedSet) -> SpaceView:
    """Similarities and shape of the space of a retrieval set."""
    task = shown.task
    assert isinstance(task, retrieval.Task)
    image_ND, text_ND = shown.embeddings.image_ND, shown.embeddings.text_ND
    image_of_text = torch.tensor(task.image_of_text)
    chart = _histogram(*similarity_counts(image_ND, text_ND, image_of_text))
    means = mean_similarities(image_ND, text_ND, image_of_text)
    images, texts = _spaced(len(image_ND)), _spaced(len(text_ND))
    (image_N2, text_N2), variance = plane(image_ND[images], text_ND[texts])
    caption_of = dict(zip(reversed(task.image_of_text), reversed(task.texts), strict=True))
    dots = [Series("pictures", _points(image_N2), 0), Series("texts", _points(text_N2), 1)]
    labels = [[caption_of[i] for i in images], [task.texts[i] for i in texts]]
    return SpaceView(
        task.name,
        chart.svg(),
        chart.legend,
        scatter(f"Pictures and texts of {task.name} in the plane of their largest variance", dots, labels),
        *means,
        figures(shown),
        (len(images), len(texts)),
        variance,
    )


def figures(shown: EvaluatedSet) -> list[Figure]:
    """The geometry of any set, each figure with its meaning; a dash where it is not defined."""
    return [
        Figure(
            name.replace("_", " "),
            "–" if math.isnan(value) else format_value(value, "number"),
            geometry.FIGURES[name].meaning,
        )
        for name, value in shown.scores.geometry.items()
    ]


def similarity_counts(
    image_ND: Tensor, text_ND: Tensor, image_of_text: Tensor
) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Histograms of all matching and of all other similarities, and the range that their `BINS` bins divide."""
    tiles = [image_ND[start : start + TILE] for start in range(0, len(image_ND), TILE)]
    extremes = [(tile @ text_ND.T).aminmax() for tile in tiles]
    low, high = min(float(e.min) for e in extremes), max(float(e.max) for e in extremes)
    low, high = low - 1e-6, high + 1e-6  # the products below may differ from these in the last bit
    matching = torch.histc((image_ND[image_of_text] * text_ND).sum(dim=1).clamp(low, high), BINS, low, high)
    everything = torch.zeros(BINS, dtype=torch.double)
    for tile in tiles:
        everything += torch.histc((tile @ text_ND.T).clamp(low, high), BINS, low, high).double()
    return matching.double(), (everything - matching).clamp(min=0), (low, high)


def mean_similarities(image_ND: Tensor, text_ND: Tensor, image_of_text: Tensor) -> tuple[float, float]:
    """Mean cosine of matching and of other pictures and texts."""
    matching = (image_ND[image_of_text].double() * text_ND.double()).sum()
    everything = image_ND.double().sum(dim=0) @ text_ND.double().sum(dim=0)
    num_other = len(image_ND) * len(text_ND) - len(text_ND)
    return float(matching / len(text_ND)), float((everything - matching) / max(1, num_other))


def plane(image_ND: Tensor, text_ND: Tensor) -> tuple[tuple[Tensor, Tensor], float]:
    """Both sets in the plane of their largest common variance (N2 each), and the share of the variance it shows."""
    together = torch.cat([image_ND, text_ND]).double()
    together = together - together.mean(dim=0)
    _, sizes, directions = torch.linalg.svd(together, full_matrices=False)
    # The sign of a direction is arbitrary: the same embeddings must give the same picture.
    first = directions[:2]
    flat = together @ (first * first.gather(1, first.abs().argmax(dim=1, keepdim=True)).sign()).T
    share = float((sizes[:2] ** 2).sum() / (sizes**2).sum().clamp(min=1e-12))
    return (flat[: len(image_ND)], flat[len(image_ND) :]), share


def _histogram(matching_N: Tensor, other_N: Tensor, bounds: tuple[float, float]) -> Chart:
    """Each curve in shares of its own total, or the few matching ones could not be seen."""
    low, high = bounds
    centres = [low + (place + 0.5) * (high - low) / BINS for place in range(BINS)]
    series = []
    for colour, (name, counts) in enumerate([("matching", matching_N), ("other", other_N)]):
        total = counts.sum()
        points = list(zip(centres, (counts / total.clamp(min=1)).tolist(), strict=True))
        series.append(Series(f"{name} ({int(total):,})", points, colour, "area"))
    return Chart("Similarity of pictures and texts", series, "percent", x_label="cosine similarity")


def _spaced(number: int) -> list[int]:
    step = max(1, -(-number // MAX_DOTS))
    return list(range(0, number, step))


def _points(flat_N2: Tensor) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in flat_N2]
