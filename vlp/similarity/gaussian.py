"""The mean of exp(-t ||x_i - y_j||^2) over pairs that do not match, in memory that does not grow with N x B."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlp import similarity
from vlp.similarity import tiles
from vlp.similarity.softmax import log_sum_exps

MOST_T = 20.0  # the mean of exp(2 t x.y), between exp(-40) and exp(40), is still far from the ends of fp32


def log_mean_gaussian(rows_ND: Tensor, columns_BD: Tensor, t: float, first_row: int) -> Tensor:
    """log mean_{i != j} exp(-t ||x_i - y_j||^2) over all rows of all processes: a scalar, the same on each.

    On the unit sphere the squared distance is 2 - 2 x.y, so one pass of `log_sum_exps` at the scale 2 t gives the sum
    of each row. The gradient is that of the sum of all processes' losses.

    Args:
        rows_ND: L2-normalised features of this process's rows.
        columns_BD: those of the global batch; row i does not meet column ``first_row + i``.
        t: from above 0 to `MOST_T`.

    Raises:
        ValueError: there is one column, so no pair.
    """
    if len(columns_BD) < 2:
        raise ValueError("uniformity needs pairs: a global batch of one row has none, use at least two")
    scale = torch.tensor(2 * t, dtype=tiles.precision(rows_ND), device=rows_ND.device)
    over_columns_N, _ = log_sum_exps(rows_ND, columns_BD, scale, first_row, without_matches=True)
    return similarity.global_mean((over_columns_N - math.log(len(columns_BD) - 1)).exp()).log() - 2 * t
