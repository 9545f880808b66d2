"""95 % intervals of a share, and of a mean of the shares of categories, by the bootstrap.

Pictures are drawn with replacement, not questions: several questions about one picture are not independent, and drawn
one by one they would feign a narrower interval (the cluster bootstrap, Field & Welsh 2007). Limits are the 2.5th and
97.5th percentile of 1,000 draws from a fixed seed. Where every answer is right (or every one wrong) draws show no
spread: then the far limit is the exact one of Clopper and Pearson (1934) for as many independent answers as there are
pictures. One picture, or none, gives NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

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
        return _without_spread(number_N[0], num_pictures)

    # What one picture has in one category is drawn as a whole: its sum and its number, category after category.
    cells, cell_N = np.unique(category_N * num_pictures + picture_N, return_inverse=True)
    sum_C, count_C = np.bincount(cell_N, weights=number_N), np.bincount(cell_N).astype(float)
    picture_C, first_C = cells % num_pictures, np.unique(cells // num_pictures, return_index=True)[1]

    def means(weight_RN: np.ndarray) -> np.ndarray:
        weight_RC = weight_RN[:, picture_C]
        sum_RK = np.add.reduceat(weight_RC * sum_C, first_C, axis=1)
        count_RK = np.add.reduceat(weight_RC * count_C, first_C, axis=1)
        share_RK = np.divide(sum_RK, count_RK, out=np.zeros_like(sum_RK), where=count_RK > 0)
        return share_RK.sum(axis=1) / (count_RK > 0).sum(axis=1)

    return of_statistic(means, num_pictures)


def of_statistic(
    statistic: Callable[[np.ndarray], np.ndarray], num_pictures: int, resamples: int = RESAMPLES
) -> Interval:
    """The interval of a number that ``statistic`` gives for each of R draws.

    Args:
        statistic: R x ``num_pictures`` whole numbers, how often each picture was drawn -> R numbers.
    """
    if num_pictures < 2:
        return math.nan, math.nan
    values = []
    random = np.random.default_rng(0)
    rows = max(1, CHUNK // num_pictures)
    for start in range(0, resamples, rows):
        values.append(statistic(_draws(random, min(rows, resamples - start), num_pictures)))
    low, high = np.quantile(np.concatenate(values), [TAIL, 1 - TAIL])
    return float(low), float(high)


def of_means(value_NK: np.ndarray, picture_N: np.ndarray, category_N: np.ndarray | None = None) -> list[Interval]:
    """The intervals of K means of answers to the same N questions, from the same draws.

    Args:
        value_NK: 0 to 1 each.
        picture_N: for each question the number of its picture, from 0 on.
        category_N: the number of its category, from 0 on: then means are those over categories of their means.
    """
    num_pictures, num_values = int(picture_N.max(initial=-1)) + 1, value_NK.shape[1]
    if num_pictures < 2:
        return [(math.nan, math.nan)] * num_values
    category_N = np.zeros_like(picture_N) if category_N is None else category_N
    num_categories = int(category_N.max()) + 1
    cell_N, num_cells = picture_N * num_categories + category_N, num_pictures * num_categories
    count_PC = np.bincount(cell_N, minlength=num_cells).reshape(num_pictures, -1).astype(float)
    sum_KPC = [np.bincount(cell_N, value_NK[:, k], num_cells).reshape(num_pictures, -1) for k in range(num_values)]
    sum_PKC = np.concatenate(sum_KPC, axis=1)
    means = []
    random = np.random.default_rng(0)
    rows = max(1, CHUNK // num_pictures)
    for start in range(0, RESAMPLES, rows):
        weight_RP = _draws(random, min(rows, RESAMPLES - start), num_pictures).astype(float)
        count_R1C = (weight_RP @ count_PC)[:, None]
        sum_RKC = (weight_RP @ sum_PKC).reshape(len(weight_RP), num_values, num_categories)
        share_RKC = np.divide(sum_RKC, count_R1C, out=np.zeros_like(sum_RKC), where=count_R1C > 0)
        means.append(share_RKC.sum(axis=2) / (count_R1C > 0).sum(axis=2))
    low_K, high_K = np.quantile(np.concatenate(means), [TAIL, 1 - TAIL], axis=0)
    return [
        _without_spread(value_NK[0, k], num_pictures)
        if value_NK[0, k] in (0, 1) and np.all(value_NK[:, k] == value_NK[0, k])
        else (float(low_K[k]), float(high_K[k]))
        for k in range(num_values)
    ]


def _without_spread(value: float, num_pictures: int) -> Interval:
    """Where all answers are wrong (0), or all right (1)."""
    bound = 1 - TAIL ** (1 / num_pictures)
    return (0.0, bound) if value == 0 else (1 - bound, 1.0)


def _draws(random: np.random.Generator, rows: int, num_pictures: int) -> np.ndarray:
    """How often each picture is drawn: ``rows`` x ``num_pictures``, each row adds up to ``num_pictures``."""
    drawn = random.integers(num_pictures, size=(rows, num_pictures))
    drawn += np.arange(rows)[:, None] * num_pictures
    return np.bincount(drawn.ravel(), minlength=rows * num_pictures).reshape(rows, num_pictures)


def _numbered(names: Sequence[Hashable]) -> np.ndarray:
    number_of: dict[Hashable, int] = {}
    return np.array([number_of.setdefault(name, len(number_of)) for name in names])
