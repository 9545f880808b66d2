"""Retrieval where a query has many right answers, and it counts how many of them stand first: pure functions.

As in `vlp.evaluation.metrics`, scores are fp64 rounded to fp32, and what is wrong stands before what is right where
they tie; a score that is NaN counts against the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_ELEMENTS = 1 << 24  # scores at once: 128 MiB of fp64


@dataclass(frozen=True)
class RightRanks:
    """Where the right answers of N queries stand.

    Attributes:
        rank_NK: ranks of the right answers that are known, ascending from 1; 0 where a query has fewer than K. Beyond
            ``depth`` they are no more than that, beyond it.
        number_N: how many right answers each query has, R.
    """

    rank_NK: Tensor
    number_N: Tensor
    depth: int

    def recall(self, k: int) -> Tensor:
        """For each query 1 if a right answer is among the first ``k``, else 0: N fp64."""
        assert k <= self.depth, "ranks are not known that far"
        best_N = self.rank_NK[:, 0]
        return ((best_N > 0) & (best_N <= k)).double()

    def r_precision(self) -> Tensor:
        """For each query the share of right answers among the first R: N fp64."""
        return self._first().sum(dim=1).double() / self.number_N

    def map_at_r(self) -> Tensor:
        """For each query the mean over r = 1 .. R of (precision of the first r if the r-th is right, else 0): N fp64.

        Musgrave et al., arXiv:2003.08505, section 4.1.
        """
        nth_K = torch.arange(1, self.rank_NK.shape[1] + 1)
        precision_NK = nth_K / self.rank_NK.clamp(min=1).double()
        return (precision_NK * self._first()).sum(dim=1) / self.number_N

    def _first(self) -> Tensor:
        assert self.number_N.max() <= self.depth, "ranks are not known that far"
        return (self.rank_NK > 0) & (self.rank_NK <= self.number_N[:, None])


def right_ranks(
    query_ND: Tensor, candidate_MD: Tensor, right: Sequence[Sequence[int]], number: Sequence[int], depth: int
) -> RightRanks:
    """Ranks of the right answers of each query among all candidates, exact up to ``depth``.

    Args:
        query_ND, candidate_MD: L2-normalised features.
        right: for each query the rows of its right answers among the candidates.
        number: for each query how many right answers it has, those that are no candidates included.
    """
    width = max(1, max(map(len, right)))
    row_NK = torch.tensor([[*rows, *[-1] * (width - len(rows))] for rows in right], device=query_ND.device)
    nth_K = torch.arange(1, width + 1, device=query_ND.device)
    ranks = []
    tile = max(1, TILE_ELEMENTS // len(candidate_MD))
    candidate_DM = candidate_MD.double().T
    for start in range(0, len(query_ND), tile):
        row_TK = row_NK[start : start + tile]
        known_TK = row_TK >= 0
        score_TM = (query_ND[start : start + tile].double() @ candidate_DM).float()
        right_TK = score_TM.gather(1, row_TK.clamp(min=0))
        right_TK = right_TK.masked_fill(~known_TK | right_TK.isnan(), -math.inf).sort(dim=1, descending=True).values
        query_P, place_P = known_TK.nonzero(as_tuple=True)
        score_TM[query_P, row_TK[query_P, place_P]] = -math.inf  # right answers do not compete with one another
        wrong_TW = score_TM.topk(min(depth, len(candidate_MD)), dim=1).values  # a NaN is the largest
        # Counted as "not worse", so that NaN counts against the model.
        ahead_TK = (~(wrong_TW[:, :, None] < right_TK[:, None, :])).sum(dim=1)
        ranks.append((ahead_TK + nth_K).masked_fill(nth_K > known_TK.sum(dim=1, keepdim=True), 0).cpu())
    return RightRanks(torch.cat(ranks), torch.tensor(number), depth)


def chance_of_r_precision(right: Sequence[Sequence[int]], num_candidates: int) -> float:
    """Mean share of right answers among the first R in a random order: each of those known is there by R/M."""
    return sum(len(rows) for rows in right) / len(right) / num_candidates


def chance_of_map_at_r(right: Sequence[Sequence[int]], number: Sequence[int], num_candidates: int) -> float:
    """Mean of mAP@R in a random order, exactly.

    With K right answers among M candidates the r-th is right by K/M, and each one before it then by (K - 1)/(M - 1).
    """
    total = 0.0
    for rows, upto in zip(right, number, strict=True):
        before = (len(rows) - 1) / max(1, num_candidates - 1)
        total += len(rows) / num_candidates * sum((1 + (r - 1) * before) / r for r in range(1, upto + 1)) / upto
    return total / len(right)
