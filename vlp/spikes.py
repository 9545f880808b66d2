"""Losses that stand out from those before them."""

from __future__ import annotations

import math
from collections import deque


class Spikes:
    """Tells losses that stand far above the last `WINDOW`; the first of each excursion only.

    Far is `FACTOR` spreads above the median and at least a tenth of it. The spread is that of a normal distribution of
    the same median absolute deviation, or of the same 95th percentile where that is larger, as losses near zero are
    skewed upwards.

    Args:
        warmup: steps that are not judged.
    """

    WINDOW, LEAST, FACTOR = 100, 50, 8.0

    def __init__(self, warmup: int) -> None:
        self._warmup = warmup
        self._last: deque[float] = deque(maxlen=self.WINDOW)
        self._high = False

    def usual(self, step: int, loss: float) -> float | None:
        """The median of the losses before, if ``loss`` is a new spike above it. Every finite loss is told in order."""
        median = limit = math.inf
        if step > self._warmup and len(self._last) >= self.LEAST:
            ordered = sorted(self._last)
            median = ordered[len(ordered) // 2]
            deviation = sorted(abs(value - median) for value in ordered)[len(ordered) // 2]
            spread = max(1.4826 * deviation, (ordered[int(0.95 * len(ordered))] - median) / 1.645)
            limit = median + max(self.FACTOR * spread, 0.1 * abs(median))
        was_high, self._high = self._high, loss > limit
        self._last.append(loss)
        return median if self._high and not was_high else None
