"""A score with its interval, beside the same score of other runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlp.evaluation.report.values import format_value

Against = Literal["", "higher", "lower"]


@dataclass(frozen=True)
class Score:
    """A share from 0 to 1; ``against`` is set where its interval and that of the first run do not overlap.

    ``best`` marks one that is clearly above all beside it.
    """

    value: float
    interval: tuple[float, float] | None = None
    against: Against = ""
    best: bool = False

    def range(self) -> str:
        """``41.0–52.3``, in per cent; empty without an interval."""
        return "" if self.interval is None else "–".join(f"{100 * limit:.1f}" for limit in self.interval)

    def text(self) -> str:
        return format_value(self.value, "percent")


@dataclass(frozen=True)
class Row:
    """One metric, or one category of ``number`` questions, with a score for each run (None where it has none)."""

    label: str
    name: str
    scores: list[Score | None]
    chance: float | None
    number: int | None = None


def side_by_side(scores: Sequence[tuple[Any, Any]]) -> list[Score | None]:
    """The scores of the runs from what their JSON has: (value, interval) each, None where it has nothing."""
    found: list[Score | None] = []
    for value, interval in scores:
        if not is_figure(value):
            found.append(None)
            continue
        limits = _interval(interval)
        first = found[0].interval if found and found[0] else None
        found.append(Score(value, limits, _against(limits, first)))
    return found


def is_figure(value: Any) -> bool:
    """Whether a metric is defined: CLIP_benchmark writes NaN where it is not, we write null."""
    return isinstance(value, int | float) and math.isfinite(value)


def _against(own: tuple[float, float] | None, first: tuple[float, float] | None) -> Against:
    if own is None or first is None:
        return ""
    return "higher" if own[0] > first[1] else "lower" if own[1] < first[0] else ""


def _interval(limits: Any) -> tuple[float, float] | None:
    if isinstance(limits, list | tuple) and len(limits) == 2 and all(is_figure(limit) for limit in limits):
        return limits[0], limits[1]
    return None
