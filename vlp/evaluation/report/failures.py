"""Which answers a page shows: the worst failures of the categories with the lowest scores, and a few successes."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

MAX_GROUPS = 8
NUM_FAILURES = 24  # of a set, divided among its categories
FAILURES_OF_GROUP = (4, 8)  # at least and at most
NUM_SUCCESSES = 2

Shown = TypeVar("Shown")


@dataclass(frozen=True)
class Answered:
    """One question: right if ``margin`` is above 0; ``chance`` is the share that random answers get right.

    Of questions about the same ``picture`` a group shows one.
    """

    category: str
    margin: float
    chance: float
    picture: Hashable

    @property
    def is_right(self) -> bool:
        return self.margin > 0  # not so for NaN


@dataclass(frozen=True)
class Group(Generic[Shown]):
    """A category: how many of its questions are wrong, and how many would be by chance."""

    name: str
    number: int
    num_failures: int
    by_chance: float
    failures: list[Shown]
    successes: list[Shown]


@dataclass(frozen=True)
class Gallery(Generic[Shown]):
    """The categories shown, the lowest scores first, and what the others are in number."""

    groups: list[Group[Shown]]
    num_other_groups: int
    num_other_failures: int


def worst_first(answers: Sequence[Answered], show: Callable[[int], Shown]) -> Gallery[Shown]:
    """The page's share of ``answers``; ``show`` is asked for those rows only."""
    rows_of: dict[str, list[int]] = {}
    for row, answer in enumerate(answers):
        rows_of.setdefault(answer.category, []).append(row)
    num_failures_of = {name: sum(not answers[row].is_right for row in rows) for name, rows in rows_of.items()}

    def rank(name: str) -> tuple[bool, float, int]:
        """The score; but a single picture says little, and of equal scores that of the largest category says most."""
        rows = rows_of[name]
        return len({answers[row].picture for row in rows}) == 1, -num_failures_of[name] / len(rows), -len(rows)

    names = sorted(rows_of, key=rank)
    shown, others = names[:MAX_GROUPS], names[MAX_GROUPS:]
    fewest, most = FAILURES_OF_GROUP
    number = min(most, max(fewest, NUM_FAILURES // max(1, len(shown))))

    def group(name: str) -> Group[Shown]:
        rows = rows_of[name]
        failed = sorted((row for row in rows if not answers[row].is_right), key=lambda row: _badness(answers[row]))
        right = sorted((row for row in rows if answers[row].is_right), key=lambda row: answers[row].margin)
        return Group(
            name=name.replace("_", " "),
            number=len(rows),
            num_failures=len(failed),
            by_chance=sum(1 - answers[row].chance for row in rows),
            failures=[show(row) for row in _one_a_picture(failed, answers, number)],
            successes=[show(row) for row in spread(right, NUM_SUCCESSES)],
        )

    return Gallery([group(name) for name in shown], len(others), sum(num_failures_of[name] for name in others))


def spread(rows: Sequence[int], number: int) -> list[int]:
    """``number`` of ``rows``, evenly spaced, so that successes are not all of one kind."""
    if len(rows) <= number:
        return list(rows)
    return [rows[(2 * i + 1) * len(rows) // (2 * number)] for i in range(number)]


def score_texts(*scores: float) -> list[str]:
    """Scores with as many digits as tell different ones apart, three at least."""
    at_most = 8
    for digits in range(3, at_most + 1):
        texts = [f"{score:.{digits}f}" for score in scores]
        if len(set(texts)) == len({f"{score:.{at_most}f}" for score in scores}):
            break
    return texts


def _badness(answer: Answered) -> float:
    return -math.inf if math.isnan(answer.margin) else answer.margin


def _one_a_picture(rows: Sequence[int], answers: Sequence[Answered], number: int) -> list[int]:
    chosen: dict[Hashable, int] = {}
    for row in rows:
        chosen.setdefault(answers[row].picture, row)
    return list(chosen.values())[:number]
