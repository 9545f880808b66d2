"""Figures as people read them, and series short enough to draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MAX_POINTS = 400  # a chart of more is larger than it is wide

Unit = Literal["number", "percent"]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Tile:
    """One key number."""

    value: str
    label: str
    note: str = ""


def thin(points: Points) -> Points:
    """At most `MAX_POINTS` points: means of equal runs of them; the last stays as it is."""
    if len(points) <= MAX_POINTS:
        return points
    run = math.ceil(len(points) / (MAX_POINTS - 1))
    chunks = [points[start : start + run] for start in range(0, len(points), run)]
    means = [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]
    return [*means[:-1], points[-1]]


def smoothed(points: Points, decay: float = 0.9) -> Points:
    """Exponential moving average, corrected for its start."""
    average, weight, result = 0.0, 0.0, []
    for x, y in points:
        average, weight = decay * average + (1 - decay) * y, decay * weight + (1 - decay)
        result.append((x, average / weight))
    return result


def format_value(value: float, unit: Unit, tick: bool = False) -> str:
    """A figure as people write it: ``91.2 %``, ``12,800``, ``0.0012``; axis labels go without needless digits."""
    if unit == "percent":
        if tick:
            return f"{100 * value:.3g} %"
        # Chance among thousands is far below a tenth of a per cent, and still not zero; what BLEU adds to a zero is.
        return f"{100 * value:.2g} %" if 1e-6 < value < 0.0095 else f"{100 * value:.1f} %"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 0.001:
        return f"{value:.0e}".replace("e-0", "e-") if tick else f"{value:.2e}".replace("e-0", "e-")
    return f"{value:.4g}" if tick else f"{value:.3g}"
