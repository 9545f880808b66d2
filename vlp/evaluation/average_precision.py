"""Mean average precision, where a picture may show several classes: pure functions.

Of a class: ``AP = sum_n (R_n - R_n-1) P_n`` over the thresholds n of its scores, with precision P and recall R, as
scikit-learn's ``average_precision_score`` (nothing is interpolated). Pictures of equal scores are above or below a
threshold together, so that their order does not count. A class that no picture shows has none, and is left out.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from vlp.evaluation import intervals

MAX_NUMBERS = 4e8  # that the draws of an interval look at: seconds
MIN_RESAMPLES = 200


def average_precisions(score_NC: Tensor, shown_NC: Tensor) -> list[float]:
    """Of each class, in [0, 1]; NaN for one that no picture shows.

    Args:
        shown_NC: boolean, whether picture n shows class c.
    """
    once_1N = np.ones((1, len(score_NC)))
    return [float(values[0]) for values in _of_classes(score_NC, shown_NC, once_1N)]


def mean_interval(score_NC: Tensor, shown_NC: Tensor) -> intervals.Interval:
    """That of the mean over the classes, by draws of pictures; a draw without a class averages over the others.

    Average precision of few pictures is too high, of a draw, which holds fewer different ones, still more so. How much
    a draw is above the set is therefore taken for how much the set is above the truth: limits are mirrored at the mean
    (the basic bootstrap), and the mean itself is always within. NaN where no draw differs.
    """
    resamples = int(min(intervals.RESAMPLES, max(MIN_RESAMPLES, MAX_NUMBERS // score_NC.numel())))
    mean = mean_of(average_precisions(score_NC, shown_NC))

    def of_draws(weight_RN: np.ndarray) -> np.ndarray:
        of_class_CR = _of_classes(score_NC, shown_NC, weight_RN)
        number_R = (~np.isnan(of_class_CR)).sum(axis=0)
        return np.where(number_R > 0, np.nansum(of_class_CR, axis=0) / np.maximum(number_R, 1), mean)

    low, high = intervals.of_statistic(of_draws, len(score_NC), resamples)
    if not low < high:
        return math.nan, math.nan
    return max(0.0, min(mean, 2 * mean - high)), min(1.0, max(mean, 2 * mean - low))


def mean_of(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _of_classes(score_NC: Tensor, shown_NC: Tensor, weight_RN: np.ndarray) -> np.ndarray:
    """C x R: that of each class where pictures count as often as ``weight_RN`` says."""
    found = np.full((score_NC.shape[1], len(weight_RN)), np.nan)
    weight_RN = weight_RN.astype(np.float32)  # whole numbers and their sums, exactly
    for column in range(score_NC.shape[1]):
        shown_N = shown_NC[:, column].numpy(force=True)
        if not shown_N.any():
            continue
        score_N = score_NC[:, column].numpy(force=True)
        order_N = np.argsort(-score_N, kind="stable")
        # Recall grows at thresholds of pictures that show the class: only these T are looked at.
        right_P = np.flatnonzero(shown_N[order_N])
        threshold_P = np.searchsorted(-score_N[order_N], -score_N[order_N][right_P], side="right")
        end_T, first_T = np.unique(threshold_P, return_index=True)
        drawn_RN = weight_RN[:, order_N[: end_T[-1]]]
        above_RT = np.add.reduceat(drawn_RN, [0, *end_T[:-1]], axis=1).cumsum(axis=1)
        gained_RT = np.add.reduceat(drawn_RN[:, right_P], first_T, axis=1).astype(float)
        right_RT = gained_RT.cumsum(axis=1)
        precision_RT = np.divide(right_RT, above_RT, out=np.zeros_like(right_RT), where=above_RT > 0)
        sum_R, total_R = (gained_RT * precision_RT).sum(axis=1), right_RT[:, -1]
        np.divide(sum_R, total_R, out=found[column], where=total_R > 0)
    return found
