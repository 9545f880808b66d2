"""Mean average precision, where a picture may show several classes: pure functions.

Of a class: ``AP = sum_n (R_n - R_n-1) P_n`` over the thresholds n of its scores, with precision P and recall R, as
scikit-learn's ``average_precision_score`` (nothing is interpolated). Pictures of equal scores are above or below a
threshold together, so that their order does not count. A class that no picture shows has none, and is left out.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vlp.evaluation import intervals

MAX_NUMBERS = 4e8  # that draws of an interval look at: seconds
MIN_RESAMPLES = 200


def average_precisions(score_NC: Tensor, shown_NC: Tensor) -> list[float]:
    """Of each class, in [0, 1]; NaN for one that no picture shows.

    Args:
        shown_NC: boolean, whether picture n shows class c.
    """
    once_1N = np.ones((1, len(score_NC)))
    return [float(values[0]) for values in _of_classes(score_NC, shown_NC, once_1N)]


def mean_interval(score_NC: Tensor, shown_NC: Tensor) -> intervals.Interval:
    """That of the mean over the classes, by draws of pictures; a draw without a class averages over the others."""
    resamples = int(min(intervals.RESAMPLES, max(MIN_RESAMPLES, MAX_NUMBERS // score_NC.numel())))
    return intervals.of_statistic(
        lambda weight_RN: np.nanmean(_of_classes(score_NC, shown_NC, weight_RN), axis=0), len(score_NC), resamples
    )


def mean_of(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _of_classes(score_NC: Tensor, shown_NC: Tensor, weight_RN: np.ndarray) -> np.ndarray:
    """C x R: that of each class where pictures count as often as ``weight_RN`` says."""
    found = np.empty((score_NC.shape[1], len(weight_RN)))
    for column, (score_N, shown_N) in enumerate(zip(score_NC.T.cpu(), shown_NC.T.cpu(), strict=True)):
        order_N = score_N.argsort(descending=True, stable=True)
        sorted_N = score_N[order_N]
        ends = torch.cat(
            [(sorted_N[1:] != sorted_N[:-1]).nonzero().flatten(), torch.tensor([len(order_N) - 1])]
        ).numpy()
        drawn_RN = weight_RN[:, order_N.numpy()]
        above_RT = drawn_RN.cumsum(axis=1)[:, ends]
        right_RT = (drawn_RN * shown_N[order_N].numpy()).cumsum(axis=1)[:, ends]
        precision_RT = np.divide(right_RT, above_RT, out=np.zeros(above_RT.shape), where=above_RT > 0)
        gained_RT = np.diff(right_RT, axis=1, prepend=0)
        total_R = right_RT[:, -1]
        sum_R = (gained_RT * precision_RT).sum(axis=1)
        found[column] = np.divide(sum_R, total_R, out=np.full(len(total_R), np.nan), where=total_R > 0)
    return found
