"""Figures of a part of a data set that add up to those of the whole, whatever its size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_DIGITS = 4  # what a value is counted under: 9,000 counts for each factor of ten, exact below 10,000
_STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)  # edges of logarithmic bins within a factor of ten
_MAX_BINS = 24


@dataclass
class Spread:
    """How a quantity is spread: every value is counted, to four digits; nothing is sampled."""

    counts: Counter[float] = field(default_factory=Counter)
    total: float = 0
    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float) -> None:
        self.counts[value if float(value).is_integer() and value < 10**_DIGITS else float(f"{value:.{_DIGITS}g}")] += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)

    def __iadd__(self, other: Spread) -> Spread:
        self.counts.update(other.counts)
        self.total += other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        return self

    def to_json(self) -> dict[str, Any] | None:
        """Mean, extremes, quantiles and a histogram of [low, high, count] bins, low inclusive; None without values.

        The quantile q is the smallest value that a share q of all values does not exceed.
        """
        if not self.counts:
            return None
        number = self.counts.total()
        return {
            "number": number,
            "mean": self.total / number,
            "min": _plain(self.low),
            "max": _plain(self.high),
            "quantiles": {f"{100 * q:g} %": _plain(value) for q, value in self._quantiles().items()},
            "histogram": self._histogram(),
        }

    def _quantiles(self) -> dict[float, float]:
        values = sorted(self.counts)
        ends = np.cumsum([self.counts[value] for value in values])
        # One part in a billion less: 0.95 x 20 is above 19 in floating point.
        places = np.searchsorted(ends, [q * ends[-1] * (1 - 1e-9) for q in QUANTILES])
        return {q: values[place] for q, place in zip(QUANTILES, places.tolist(), strict=True)}

    def _histogram(self) -> list[tuple[float, float, int]]:
        edges = self._edges()
        values = np.array(list(self.counts), dtype=float)
        weights = np.array(list(self.counts.values()))
        places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        heights = np.bincount(places, weights, minlength=len(edges) - 1).astype(int).tolist()
        return [(_plain(a), _plain(b), height) for a, b, height in zip(edges, edges[1:], heights, strict=False)]

    def _edges(self) -> list[float]:
        """Logarithmic over more than a factor of twenty, else evenly spaced with a round step."""
        quantiles = self._quantiles()
        low, high = min(self.counts), max(self.counts)
        if low > 0 and quantiles[0.99] > 20 * quantiles[0.01]:
            exponents = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 2)
            edges = [float(f"{step * 10.0**exponent:.3g}") for exponent in exponents for step in _STEPS]
            first = max(i for i, edge in enumerate(edges) if edge <= low)
            return edges[first : 2 + max(i for i, edge in enumerate(edges) if edge <= high)]
        whole = all(value.is_integer() for value in map(float, self.counts))
        step = _round_step((quantiles[0.99] - low) / _MAX_BINS, whole)
        first_edge = math.floor(low / step) * step
        number = min(_MAX_BINS + 2, math.floor((high - first_edge) / step) + 1)
        edges = [float(f"{first_edge + i * step:.6g}") for i in range(number + 1)]
        if high > edges[-1]:  # a few far above the rest share the last bin
            edges[-1] = high
        return edges


def _plain(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _round_step(least: float, whole: bool) -> float:
    if whole and least <= 1:
        return 1.0
    if least <= 0:
        return 0.1
    exponent = math.floor(math.log10(least))
    return next(s * 10.0**exponent for s in (1.0, 2.0, 5.0, 10.0) if s * 10.0**exponent >= least * (1 - 1e-9))


@dataclass
class Digests:
    """64 bits of each item and the row of the sample it belongs to, both in the order of the samples."""

    rows: np.ndarray
    values: np.ndarray

    @staticmethod
    def of(items: Iterable[tuple[int, int]]) -> Digests:
        pairs = list(items)
        rows = np.array([row for row, _ in pairs], dtype=np.int32)
        return Digests(rows, np.array([value for _, value in pairs], dtype=np.uint64))


@dataclass
class Figures:
    """Sums over samples: spreads by name, and tables of counts by name."""

    num_samples: int = 0
    num_bytes: int = 0
    spreads: dict[str, Spread] = field(default_factory=dict)
    counts: dict[str, Counter[Any]] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.spreads.setdefault(name, Spread()).add(value)

    def count(self, name: str, value: Any) -> None:
        self.counts.setdefault(name, Counter())[value] += 1

    def table(self, name: str) -> Counter[Any]:
        return self.counts.get(name, Counter())

    def spread(self, name: str) -> dict[str, Any] | None:
        return self.spreads[name].to_json() if name in self.spreads else None

    def __iadd__(self, other: Figures) -> Figures:
        self.num_samples += other.num_samples
        self.num_bytes += other.num_bytes
        for name, spread in other.spreads.items():
            mine = self.spreads.setdefault(name, Spread())
            mine += spread
        for name, table in other.counts.items():
            self.counts.setdefault(name, Counter()).update(table)
        self.examples = {**other.examples, **self.examples}
        return self


@dataclass
class Repeats:
    """Which of many digests occur more than once; ``groups`` are the largest: how often, and where first."""

    number: int
    distinct: int
    in_groups: int
    groups: list[tuple[int, int]]  # (how often, position of the first)


def repeats(values: np.ndarray, num_groups: int) -> Repeats:
    """Count equal digests exactly: sorts, in some 60 bytes a digest beside the digests."""
    _, first, times = np.unique(values, return_index=True, return_counts=True)
    several = np.flatnonzero(times > 1)
    largest = several[np.lexsort((first[several], -times[several]))][:num_groups]
    groups = [(int(times[i]), int(first[i])) for i in largest]
    return Repeats(len(values), len(times), int(times[several].sum()), groups)


def ordered(table: Mapping[Any, int]) -> dict[str, int]:
    """The most frequent first, equals by name, so that the same data give the same file."""
    return {str(name): table[name] for name in sorted(table, key=lambda name: (-table[name], str(name)))}
