"""Counting the candidates that do at least as well as a query's best positive, without the matrix of scores.

A score is the fp64 product of two rows, rounded to fp32. Nearly all pairs can be told from a product in fp32, which
takes a quarter of the time: whatever the order in which its D products are added, it is off by no more than
n u / (1 - n u) times the lengths of the two rows, with n = D and u = 2**-24 (Higham, Accuracy and Stability of
Numerical Algorithms, 2002, section 3.1, with Cauchy-Schwarz). A few more roundings add to n, `SAFETY` doubles it. A
pair that is further than this band from the best positive is counted at once, the others are decided by their scores in
fp64. TF32 and bf16 would break the bound, so they are off meanwhile. What is not finite falls into the band.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import linear  # torch's own: under ZeRO 3 DeepSpeed puts another into the module

from vlp.evaluation.team import ALONE, Team

UNIT = 2.0**-24  # relative error of one rounding to fp32
SMALLEST = 2.0**-126  # what is less may become 0
SAFETY = 2.0
ROUNDINGS = 8  # of scores, thresholds and the features' lengths, on top of the D of a product
PAIR_ELEMENTS = 1 << 18  # numbers gathered at once to decide pairs: 2 MiB of fp64
DENSE = 64  # as many pairs of a block as one in so many are decided faster by the product of the whole block


def pair_scores(left_ND: Tensor, right_ND: Tensor) -> Tensor:
    """Dot product of each row of ``left_ND`` with the same row of ``right_ND``: N fp32 scores."""
    return left_ND.to(torch.float64, copy=True).mul_(right_ND.double()).sum(dim=1).float()


def gathered_scores(left_ND: Tensor, right_MD: Tensor, left_P: Tensor | None, right_P: Tensor) -> Tensor:
    """`pair_scores` of the rows ``left_P`` (all) of one and ``right_P`` of the other: P fp32 scores, some at a time."""
    rows = max(1, PAIR_ELEMENTS // max(1, left_ND.shape[1]))
    lefts = left_ND.split(rows) if left_P is None else (left_ND[part] for part in left_P.split(rows))
    rights = (right_MD[part] for part in right_P.split(rows))
    return torch.cat([pair_scores(left, right) for left, right in zip(lefts, rights, strict=True)])


def error_band(left_ND: Tensor, right_MD: Tensor) -> float:
    """How far the fp32 product of any row with any other may be from its score; infinite where one is not finite."""
    dimensions = left_ND.shape[1]
    relative = SAFETY * (dimensions + ROUNDINGS) * UNIT
    assert relative < 0.5, "no bound for so many dimensions"
    left, right = _longest(left_ND), _longest(right_MD)
    band = relative / (1 - relative) * left * right + 2 * dimensions * SMALLEST * (1 + left + right)
    return band if math.isfinite(band) else math.inf


def _longest(features_ND: Tensor) -> float:
    """In blocks, as a copy in fp64 of all rows would not be small."""
    rows = max(1, PAIR_ELEMENTS // max(1, features_ND.shape[1]))
    longest = [block.double().norm(dim=1).max() for block in features_ND.split(rows)]
    return float(torch.stack(longest).max())


@dataclass
class Side:
    """The pictures, or the texts: each asks, and is a candidate of the other side.

    Attributes:
        features_ND: fp32.
        image_N: for a picture its own row, for a text that of its picture; where the two agree the pair is right.
        best_N: the score of the best positive.
        not_worse_N: how many wrong candidates have a score that is not less; NaN is not less.
        equal_N: how many have the same score.
    """

    features_ND: Tensor
    image_N: Tensor
    best_N: Tensor
    not_worse_N: Tensor = field(init=False)
    equal_N: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.not_worse_N = torch.zeros_like(self.best_N, dtype=torch.long)
        self.equal_N = torch.zeros_like(self.not_worse_N)


def count_better(images: Side, texts: Side, tile: int, team: Team = ALONE) -> None:
    """Count for all pictures and all texts in one sweep over tiles, of which each process of ``team`` takes a share."""
    band = error_band(images.features_ND, texts.features_ND)
    tops, lefts = (range(0, len(side.features_ND), tile) for side in (images, texts))
    with _products_in_fp32(images.features_ND.device):
        for number in range(team.rank, len(tops) * len(lefts), team.world):
            top, left = tops[number // len(lefts)], lefts[number % len(lefts)]
            rows, columns = slice(top, top + tile), slice(left, left + tile)
            score_IT = _products(images.features_ND[rows], texts.features_ND[columns])
            image_T = texts.image_N[columns] - top
            own_T = ((image_T >= 0) & (image_T < len(score_IT))).nonzero().squeeze(1)
            score_IT[image_T[own_T], own_T] = -math.inf  # far from the band, so that they are not looked at again
            _count(images, texts, rows, columns, score_IT, band)
            _count(texts, images, columns, rows, score_IT.T, band)
    for side in (images, texts):
        team.sum(side.not_worse_N)
        team.sum(side.equal_N)


def _count(asking: Side, asked: Side, queries: slice, candidates: slice, score_QC: Tensor, band: float) -> None:
    """Count one direction of a tile: by the fp32 scores where they are sure, by those of fp64 elsewhere."""
    best_Q1 = asking.best_N[queries, None]
    low_Q1, high_Q1 = best_Q1 - band, best_Q1 + band
    flag_QC = torch.empty_like(score_QC)  # comparisons written as 0.0 and 1.0 are added up several times as fast
    below_Q = torch.lt(score_QC, low_Q1, out=flag_QC).sum(dim=1)
    above_Q = torch.gt(score_QC, high_Q1, out=flag_QC).sum(dim=1)
    not_worse_N, equal_N = asking.not_worse_N[queries], asking.equal_N[queries]  # views
    not_worse_N += above_Q.long()

    unsure_B = (below_Q + above_Q < score_QC.shape[1]).nonzero().squeeze(1)
    if not len(unsure_B):
        return
    score_BC, best_B1 = score_QC[unsure_B], best_Q1[unsure_B]
    unsure_BC = ~(score_BC < low_Q1[unsure_B]) & ~(score_BC > high_Q1[unsure_B])
    unsure_BC &= asking.image_N[queries][unsure_B, None] != asked.image_N[candidates]
    query_BD, candidate_CD = asking.features_ND[queries][unsure_B], asked.features_ND[candidates]
    if int(unsure_BC.sum()) * DENSE > unsure_BC.numel():
        exact_BC = (query_BD.double() @ candidate_CD.double().T).float()
        not_worse_N[unsure_B] += (unsure_BC & ~(exact_BC < best_B1)).sum(dim=1)
        equal_N[unsure_B] += (unsure_BC & (exact_BC == best_B1)).sum(dim=1)
        return
    row_P, candidate_P = unsure_BC.nonzero(as_tuple=True)
    exact_P, best_P = gathered_scores(query_BD, candidate_CD, row_P, candidate_P), best_B1[row_P, 0]
    not_worse_N.index_add_(0, unsure_B[row_P], (~(exact_P < best_P)).long())
    equal_N.index_add_(0, unsure_B[row_P], (exact_P == best_P).long())


def _products(left_ND: Tensor, right_MD: Tensor) -> Tensor:
    """All products of rows, in fp32."""
    if left_ND.device.type == "cpu" and torch.backends.mkldnn.is_available():
        # oneDNN, which torch asks for layers only: no slower than MKL anywhere, and twice as fast on AMD's processors.
        return linear(left_ND.to_mkldnn(), right_MD.to_mkldnn()).to_dense()
    return left_ND @ right_MD.T


@contextmanager
def _products_in_fp32(device: torch.device) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
