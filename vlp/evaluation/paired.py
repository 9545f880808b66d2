"""Whether one model is better than another on a set: the 95 % interval of the difference on the same questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlp.evaluation import answers, intervals


@dataclass(frozen=True)
class Difference:
    """``value`` is the score of the first model less that of the second; ``interval`` by the bootstrap over pictures.

    ``only_first`` and ``only_second`` count the questions that one of them alone gets right.
    """

    value: float
    interval: intervals.Interval
    only_first: int
    only_second: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval[0] > 0 or self.interval[1] < 0


def difference(metric: str, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> Difference | None:
    """Of two models' `answers`; None where they were not kept, or are not of the same questions."""
    one, other = answers.right(metric, first), answers.right(metric, second)
    if one is None or other is None or any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return None
    if not all(np.array_equal(a, b) for a, b in zip(one[1:], other[1:], strict=True)):
        return None
    differs_N, picture_N, category_N = one[0] - other[0], one[1], one[2]
    names = np.unique(category_N)
    value = float(np.mean([differs_N[category_N == name].mean() for name in names]))
    if not differs_N.any():
        interval = (0.0, 0.0)
    else:
        interval = intervals.of_category_mean(differs_N.tolist(), category_N.tolist(), picture_N.tolist())
    return Difference(value, interval, int((differs_N > 0).sum()), int((differs_N < 0).sum()))
