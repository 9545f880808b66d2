"""Model against model: what one gets right and the other wrong, and what all of them get wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from vlp.evaluation.paired import Difference
from vlp.evaluation.report.questions import Card, Questions

SHOWN = 6  # cards of a side
MOST_PAIRED = 3  # models of which all pairs are shown; of more, the first against each other one


@dataclass(frozen=True)
class Side:
    """What ``winner`` gets right and ``loser`` wrong: all of it in number, the clearest as cards."""

    winner: int
    loser: int
    number: int
    cards: list[Card]


@dataclass(frozen=True)
class Pair:
    """Two models on the questions of one kind."""

    title: str
    first: int
    second: int
    both_right: int
    both_wrong: int
    difference: Difference | None
    sides: list[Side]


@dataclass(frozen=True)
class Failures:
    """What no model gets right."""

    title: str
    number: int
    total: int
    cards: list[Card]


def pairs_of(models: int) -> list[tuple[int, int]]:
    if models <= MOST_PAIRED:
        return list(combinations(range(models), 2))
    return [(0, other) for other in range(1, models)]


def versus(asked: Questions, difference: Callable[[str, int, int], Difference | None]) -> list[Pair]:
    """The pairs of models that were asked these questions; ``difference`` is that of a metric."""
    found = []
    for first, second in pairs_of(len(asked.wrongness_N)):
        one, other = asked.wrongness_N[first], asked.wrongness_N[second]
        if one is None or other is None:
            continue
        sides = [_side(asked, first, second, one, other), _side(asked, second, first, other, one)]
        right = int(((one <= 0) & (other <= 0)).sum()), int(((one > 0) & (other > 0)).sum())
        found.append(Pair(asked.title, first, second, *right, difference(asked.metric, first, second), sides))
    return found


def failures(asked: Questions) -> Failures | None:
    """None where no model was asked, or all is right."""
    known = [values for values in asked.wrongness_N if values is not None]
    if not known:
        return None
    least_N = np.min(known, axis=0)
    rows = np.flatnonzero(_wrong(least_N))
    if not len(rows):
        return None
    return Failures(asked.title, len(rows), len(least_N), _cards(asked, rows, least_N))


def _side(asked: Questions, winner: int, loser: int, won: np.ndarray, lost: np.ndarray) -> Side:
    rows = np.flatnonzero(~_wrong(won) & _wrong(lost))
    return Side(winner, loser, len(rows), _cards(asked, rows, lost))


def _wrong(wrongness_N: np.ndarray) -> np.ndarray:
    return wrongness_N > 0


def _cards(asked: Questions, rows: np.ndarray, wrongness_N: np.ndarray) -> list[Card]:
    """The clearest of those that are not alike."""
    chosen: dict[int, int] = {}
    for row in rows[np.argsort(-wrongness_N[rows], kind="stable")].tolist():
        chosen.setdefault(int(asked.like_N[row]), row)
        if len(chosen) == SHOWN:
            break
    return [asked.show(row) for row in chosen.values()]
