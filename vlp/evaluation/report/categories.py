"""Scores by category as bars: the lowest first, what is more than a screen folded away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlp.evaluation.report.scores import Row, Score, side_by_side

MAX_BARS = 25


@dataclass(frozen=True)
class Bars:
    """One table of categories; ``folded`` are those with higher scores (or a single picture), where there are many."""

    title: str
    shown: list[Row]
    folded: list[Row]


def bars(contents: Sequence[dict[str, Any] | None]) -> list[Bars]:
    """The tables of one set, from the result JSON of each run (None where a run has none).

    A table of one category says no more than the set's own figures, and is left out.
    """
    tables: dict[str, dict[str, list[dict[str, Any] | None]]] = {}
    for place, content in enumerate(contents):
        for category in (content or {}).get("categories", []):
            rows = tables.setdefault(category["table"], {})
            rows.setdefault(category["name"], [None] * len(contents))[place] = category
    found = []
    for title, rows in tables.items():
        shown = sorted((_row(name, categories) for name, categories in rows.items()), key=_rank)
        if len(shown) > 1:
            found.append(Bars(title.replace("_", " "), shown[:MAX_BARS], shown[MAX_BARS:]))
    return found


def _row(name: str, categories: Sequence[dict[str, Any] | None]) -> Row:
    found = [category or {} for category in categories]
    known = next(category for category in found if category)
    scores = side_by_side([(category.get("score"), category.get("interval")) for category in found])
    return Row(name.replace("_", " "), name, scores, known.get("chance"), known["number"])


def _rank(row: Row) -> tuple[bool, float, int]:
    """By the first run that has a score, those of a single picture last; of equal ones the larger category first."""
    first = next((score for score in row.scores if score), Score(1.0))
    return first.interval is None, first.value, -(row.number or 0)
