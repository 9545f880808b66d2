"""Ranks, recalls and their chance levels from normalised features: pure functions.

A query is right at K when fewer than K wrong candidates do at least as well as its best positive. Equality
counts against the model, so a collapsed one scores 0 and not 100 %; scores that are NaN count against it too.

Scores are computed in fp64 and rounded to fp32. A matrix product in fp32 gives equal pairs scores that differ
in the last bit, depending on where in the matrix they stand; rounded from fp64 they are equal, so that ties
are seen as ties, and ranks do not depend on tiles, threads, processes or device (`vlp.evaluation.counting`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.evaluation.counting import Side, count_better, gathered_scores
from vlp.evaluation.counting import pair_scores as pair_scores  # one of the metrics, too
from vlp.evaluation.team import ALONE, Team

# Features in fp32 of one and the same input differ by some 1e-7 between batches of other shapes, as kernels add in
# another order. Where a question has a single wrong answer, a collapsed model would be right of half of them.
ROUNDING = 1e-6  # in cosine; what models tell apart is thousands of times as far

TILE = 2048  # 2048 x 2048 fp64 scores: 32 MiB, whatever the size of the set
CPU_TILE = 1024  # 1024 x 1024 fp32 scores: 4 MiB, which caches hold


@dataclass(frozen=True)
class Ranks:
    """Of each query: the rank of its best positive (from 1), and whether a wrong candidate ties with it."""

    rank_N: Tensor
    tied_N: Tensor

    def recall(self, k: int) -> float:
        """Share of queries with a positive among the first ``k`` candidates."""
        return _mean(self.rank_N <= k)

    def mean(self) -> float:
        return _mean(self.rank_N)

    def median(self) -> float:
        """As open_clip prints it: the median, rounded down when it falls between two ranks."""
        return math.floor(float(self.rank_N.double().quantile(0.5)))


@dataclass(frozen=True)
class RetrievalRanks:
    image_to_text: Ranks
    text_to_image: Ranks

    def tie_rate(self) -> float:
        """Share of all queries of both directions whose best positive ties with a wrong candidate."""
        return _mean(torch.cat([self.image_to_text.tied_N, self.text_to_image.tied_N]))


def margins(true_N: Tensor, wrong_N: Tensor) -> Tensor:
    """How far each true score is above the wrong one: 0 where the two are `ROUNDING` apart or less, NaN stays NaN."""
    margin_N = true_N - wrong_N
    return margin_N.masked_fill(margin_N.abs() <= ROUNDING, 0)


def retrieval_ranks(
    image_ND: Tensor, text_ND: Tensor, image_of_text: Tensor, tile: int | None = None, team: Team = ALONE
) -> RetrievalRanks:
    """Ranks of the best positive in both directions, from one sweep over tiles of the score matrix.

    Memory beside the features is a few numbers a query and a tile, so a million pictures by a million texts are only a
    matter of time. `vlp.evaluation.counting` says why the scores that the sweep takes in fp32 change no rank.

    Args:
        image_ND, text_ND: features of the pictures and of all their captions, L2-normalised where scores are cosines.
        image_of_text: for each caption the row of its picture; every picture must have a caption.
        tile: pictures, and texts, of which scores are held at once.
        team: processes that all have these features, and share the work.
    """
    image_ND, text_ND = image_ND.float(), text_ND.float()
    image_of_text = image_of_text.to(image_ND.device)
    image_N = torch.arange(len(image_ND), device=image_ND.device)
    best_of_text = gathered_scores(text_ND, image_ND, None, image_of_text)
    best_of_image = best_of_text.new_full((len(image_ND),), -math.inf)
    best_of_image.scatter_reduce_(0, image_of_text, best_of_text, "amax")
    assert bool((image_of_text.bincount(minlength=len(image_ND)) > 0).all()), "a picture without a caption has no rank"
    images, texts = Side(image_ND, image_N, best_of_image), Side(text_ND, image_of_text, best_of_text)
    count_better(images, texts, tile or (CPU_TILE if image_ND.device.type == "cpu" else TILE), team)
    return RetrievalRanks(*(Ranks(side.not_worse_N.cpu() + 1, side.equal_N.cpu() > 0) for side in (images, texts)))


def label_ranks(image_ND: Tensor, class_CD: Tensor, label_N: Tensor, tile: int = TILE) -> Ranks:
    """Rank of the true class of each picture among the classes."""
    label_N = label_N.to(image_ND.device)
    class_DC = class_CD.double().T
    ranks = []
    for start in range(0, len(image_ND), tile):
        label = label_N[start : start + tile, None]
        scores = (image_ND[start : start + tile].double() @ class_DC).float()
        best, wrong = scores.gather(1, label), scores.scatter(1, label, -math.inf)
        # Counted as "not worse" rather than as "better or equal", so that NaN counts against the model.
        not_worse_N = scores.shape[1] - (wrong < best).sum(dim=1)
        ranks.append(Ranks(not_worse_N.cpu() + 1, (wrong == best).any(dim=1).cpu()))
    return Ranks(torch.cat([r.rank_N for r in ranks]), torch.cat([r.tied_N for r in ranks]))


def mean_per_class(right_N: Tensor, label_N: Tensor, num_classes: int) -> tuple[float, list[float]]:
    """Mean over the classes present of the share of right pictures, and the shares (NaN: no pictures)."""
    label_N = label_N.cpu()
    count = torch.bincount(label_N, minlength=num_classes).double()
    share = torch.bincount(label_N, weights=right_N.cpu().double(), minlength=num_classes) / count
    return float(share.nanmean()), share.tolist()


def chance_any_of(num_positives: Sequence[int], num_candidates: int, k: int) -> float:
    """Expected share of queries with a positive among ``k`` random candidates, exactly (hypergeometric).

    Args:
        num_positives: for each query, how many of the ``num_candidates`` are right.
    """
    k = min(k, num_candidates)
    all_draws = math.comb(num_candidates, k)
    total = sum(
        count * (1 - math.comb(num_candidates - positives, k) / all_draws)
        for positives, count in Counter(num_positives).items()
    )
    return total / len(num_positives)


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
