"""95 % intervals of a share, and of a mean of the shares of categories, by the bootstrap.

Pictures are drawn with replacement, not questions: several questions about one picture are not independent, and drawn
one by one they would feign a narrower interval (the cluster bootstrap, Field & Welsh 2007). Limits are the 2.5th and
97.5th percentile of 1,000 draws from a fixed seed. Where every answer is right (or every one wrong) draws show no
spread: then the far limit is the exact one of Clopper and Pearson (1934) for as many independent answers as there are
pictures. One picture, or none, gives NaN.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

Interval = tuple[float, float]

RESAMPLES = 1_000
TAIL = 0.025
CHUNK = 1 << 20  # weights of pictures drawn at once: 8 MiB


def of_mean(values: Sequence[float], pictures: Sequence[Hashable]) -> Interval:
    """The interval of the mean of ``values``.

    Args:
        values: 0 to 1 each (True and False, too).
        pictures: for each value what it was asked about; equal ones are drawn together.
    """
    return of_category_mean(values, [0] * len(values), pictures)


def of_category_mean(values: Sequence[float], categories: Sequence[Hashable], pictures: Sequence[Hashable]) -> Interval:
    """The interval of the mean over categories of the mean of their ``values``.

    A draw that leaves a category without a picture averages over the others.
    """
    number_N, category_N, picture_N = np.asarray(values, dtype=float), _numbered(categories), _numbered(pictures)
    num_pictures = int(picture_N.max(initial=-1)) + 1
    if num_pictures < 2:
        return math.nan, math.nan
    if np.all(number_N == number_N[0]) and number_N[0] in (0, 1):
        bound = 1 - TAIL ** (1 / num_pictures)
        return (0.0, bound) if number_N[0] == 0 else (1 - bound, 1.0)

    # What one picture has in one category is drawn as a whole: its sum and its number, category after category.
    cells, cell_N = np.unique(category_N * num_pictures + picture_N, return_inverse=True)
    sum_C, count_C = np.bincount(cell_N, weights=number_N), np.bincount(cell_N).astype(float)
    picture_C, first_C = cells % num_pictures, np.unique(cells // num_pictures, return_index=True)[1]
    means = []
    random = np.random.default_rng(0)
    rows = max(1, CHUNK // num_pictures)
    for start in range(0, RESAMPLES, rows):
        weight_RC = _draws(random, min(rows, RESAMPLES - start), num_pictures)[:, picture_C]
        sum_RK = np.add.reduceat(weight_RC * sum_C, first_C, axis=1)
        count_RK = np.add.reduceat(weight_RC * count_C, first_C, axis=1)
        share_RK = np.divide(sum_RK, count_RK, out=np.zeros_like(sum_RK), where=count_RK > 0)
        means.append(share_RK.sum(axis=1) / (count_RK > 0).sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [TAIL, 1 - TAIL])
    return float(low), float(high)


def _draws(random: np.random.Generator, rows: int, num_pictures: int) -> np.ndarray:
    """How often each picture is drawn: ``rows`` x ``num_pictures``, each row adds up to ``num_pictures``."""
    drawn = random.integers(num_pictures, size=(rows, num_pictures))
    drawn += np.arange(rows)[:, None] * num_pictures
    return np.bincount(drawn.ravel(), minlength=rows * num_pictures).reshape(rows, num_pictures)


def _numbered(names: Sequence[Hashable]) -> np.ndarray:
    number_of: dict[Hashable, int] = {}
    return np.array([number_of.setdefault(name, len(number_of)) for name in names])
