"""The shape of the common space, from L2-normalised features: pure functions, one number each.

Sums are in fp64. Matrices of all similarities exist only tile by tile; their entries have the features' own precision.
What is not defined (no pair, no negative, one class) is NaN.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vlp.evaluation import probe

TILE = 2048
MAX_PAIRS = 5_000
MAX_QUERIES = 2_048
MAX_ROWS = 32_768  # whose pairs are all looked at: more than COCO has; texts in 36 languages take minutes


class Figure(NamedTuple):
    """How a figure is told: ``column`` heads a narrow table, ``meaning`` is a line for people."""

    column: str
    meaning: str


FIGURES = {
    "modality_gap": Figure("gap", "distance between the mean picture and the mean text, 0 to 2"),
    "linear_separability": Figure(
        "linearly separable", "unseen pictures and texts that a linear rule tells apart: 0.5 it cannot, 1 all of them"
    ),
    "alignment": Figure("alignment", "mean squared distance of matching pictures and texts, 0 (equal) to 4"),
    "image_uniformity": Figure("image uniformity", "0: all pictures in one point, about -4: spread over the sphere"),
    "text_uniformity": Figure("text uniformity", "0: all texts in one point, about -4: spread over the sphere"),
    "image_effective_rank": Figure("image rank", "number of directions that pictures use"),
    "text_effective_rank": Figure("text rank", "number of directions that texts use"),
    "penalty_entropy": Figure(
        "penalty entropy", "at the model's temperature, 1: the loss pushes all negatives alike, 0: only the hardest"
    ),
    "image_knn_accuracy": Figure("10 nearest", "pictures whose 10 nearest others are mostly of their class, 0 to 1"),
    "image_probe_accuracy": Figure(
        "linear probe",
        f"unseen pictures whose class, of {probe.MAX_CLASSES} at most, a linear rule reads off, 0 to 1",
    ),
    "tolerance": Figure("tolerance", "mean cosine of two pictures of one class, -1 to 1"),
}


def of_pairs(image_ND: Tensor, text_ND: Tensor, image_of_text: Tensor, logit_scale: float) -> dict[str, float]:
    """All figures of pictures with one or more texts each, under their names in the log after ``SET/``.

    Args:
        image_of_text: for each text the row of its picture; every picture has a text.
        logit_scale: the multiplier of the cosines.
    """
    image_of_text = image_of_text.to(image_ND.device)
    rows = torch.arange(len(image_ND), device=image_ND.device)
    texts = torch.arange(len(text_ND), device=image_ND.device)
    first_text = torch.full_like(rows, len(texts)).scatter_reduce(0, image_of_text, texts, "amin")
    entropies = (
        penalty_entropy(image_ND, text_ND, rows, image_of_text, logit_scale),
        penalty_entropy(text_ND, image_ND, image_of_text, rows, logit_scale),
    )
    return {
        "modality_gap": modality_gap(image_ND, text_ND),
        "linear_separability": linear_separability(image_ND, text_ND[first_text]),
        "alignment": alignment(image_ND[image_of_text], text_ND),
        "image_uniformity": uniformity(image_ND),
        "text_uniformity": uniformity(text_ND),
        "image_effective_rank": effective_rank(image_ND),
        "text_effective_rank": effective_rank(text_ND),
        "penalty_entropy": sum(entropies) / 2,
    }


def of_classes(image_ND: Tensor, labels_N: Tensor) -> dict[str, float]:
    """All figures of pictures with classes, under their names in the log after ``SET/``."""
    return {
        "image_knn_accuracy": probe.knn_accuracy(image_ND, labels_N),
        "image_probe_accuracy": probe.logistic_accuracy(image_ND, labels_N),
        "tolerance": tolerance(image_ND, labels_N),
    }


def modality_gap(image_ND: Tensor, text_ND: Tensor) -> float:
    """``||mean_i u_i - mean_j v_j||`` in [0, 2] (Liang et al., arXiv:2203.02053)."""
    return float((image_ND.double().mean(dim=0) - text_ND.double().mean(dim=0)).norm())


def linear_separability(image_ND: Tensor, text_ND: Tensor, max_pairs: int = MAX_PAIRS) -> float:
    """Accuracy of a logistic regression in telling unseen pictures from unseen texts; 0.5: it cannot, 1: always.

    80 % of the pairs fit it, 20 % try it. A picture and its text stand on the same side, and which side that is
    depends on their place alone (`probe.held_out`). One text a picture, or the more frequent kind would be a good guess
    for everything. Equal texts of different pictures can stand on both sides. Fahim et al., arXiv:2405.18570.

    Args:
        image_ND, text_ND: row i of the one matches row i of the other.
        max_pairs: of more pairs only this many are used, evenly spaced.

    Returns:
        In [0, 1]; NaN below five pairs.
    """
    assert len(image_ND) == len(text_ND), "row i of the pictures must match row i of the texts"
    num_pairs = min(len(image_ND), max_pairs)
    kept = torch.arange(num_pairs, device=image_ND.device) * len(image_ND) // max(1, num_pairs)
    is_text = torch.arange(2, device=image_ND.device).repeat_interleave(num_pairs)
    return probe.logistic_accuracy(torch.cat([image_ND[kept], text_ND[kept]]), is_text, max_rows=2 * max_pairs)


def alignment(image_ND: Tensor, text_ND: Tensor) -> float:
    """``mean_i ||u_i - v_i||^2 = 2 - 2 mean cos`` in [0, 4]; row i matches row i.

    Wang & Isola, arXiv:2005.10242, section 4.1. A picture with several texts stands there once for each.
    """
    return float((image_ND.double() - text_ND.double()).square().sum(dim=1).mean())


def uniformity(features_ND: Tensor, max_rows: int = MAX_ROWS) -> float:
    """``log mean_{i<j} exp(-2 ||z_i - z_j||^2)`` in [-8, 0]: 0 in one point, about -4 + 8/D spread over the sphere.

    Wang & Isola, arXiv:2005.10242, section 4.1, with t = 2; the mean is over distinct pairs. NaN for a single row.

    Args:
        max_rows: of more rows only this many are used, evenly spaced.
    """
    num_rows, total = min(len(features_ND), max_rows), 0.0
    if num_rows < len(features_ND):
        features_ND = features_ND[torch.arange(num_rows, device=features_ND.device) * len(features_ND) // num_rows]
    for top in range(0, num_rows, TILE):
        tile_TD = features_ND[top : top + TILE]
        for left in range(top, num_rows, TILE):
            kernel = (tile_TD @ features_ND[left : left + TILE].T).sub_(1).mul_(4).exp_()
            if left == top:
                kernel = kernel.triu_(1)
            total += float(kernel.sum(dtype=torch.double))
    num_pairs = num_rows * (num_rows - 1) // 2
    return math.log(total / num_pairs) if num_pairs else math.nan


def effective_rank(features_ND: Tensor) -> float:
    """``exp(H(sigma / sum sigma))`` of the singular values, in [1, min(N, D)]; rows are not centred.

    Roy & Vetterli (EUSIPCO 2007); of a model's features it is RankMe, arXiv:2210.02885. Not centred, so that a cone
    around one direction counts as the low rank that it is.
    """
    triangle = torch.linalg.qr(features_ND.double(), mode="r").R  # of the same singular values, and D x D at most
    sigma = torch.linalg.svdvals(triangle)
    return float(torch.special.entr(sigma / sigma.sum()).sum().exp())


def tolerance(features_ND: Tensor, labels_N: Tensor) -> float:
    """``mean z_i . z_j`` over all pairs i != j of one class, in [-1, 1]; NaN where no class has two rows.

    Wang & Liu, arXiv:2012.09740. A class weighs by its number of pairs.
    """
    classes_N = labels_N.to(features_ND.device).unique(return_inverse=True)[1]
    features_ND, counts_C = features_ND.double(), classes_N.bincount()
    sum_CD = features_ND.new_zeros(len(counts_C), features_ND.shape[1]).index_add_(0, classes_N, features_ND)
    num_pairs = int((counts_C * (counts_C - 1)).sum())
    return float(sum_CD.square().sum() - features_ND.square().sum()) / num_pairs if num_pairs else math.nan


def penalty_entropy(
    query_ND: Tensor,
    key_MD: Tensor,
    group_of_query_N: Tensor,
    group_of_key_M: Tensor,
    logit_scale: float,
    max_queries: int = MAX_QUERIES,
) -> float:
    """How evenly the contrastive loss pushes a query's negatives away, in [0, 1]; 1: all alike, 0: only the hardest.

    ``mean_i H(r_i) / ln(number of negatives of i)`` with the relative penalties
    ``r_ij = exp(logit_scale q_i . k_j) / sum_negatives k exp(logit_scale q_i . k_k)`` (Wang & Liu,
    arXiv:2012.09740). It falls as the temperature falls. Negatives are those of the whole set and not of a batch, so
    sets of different sizes do not compare.

    Args:
        group_of_query_N, group_of_key_M: a key of another group than the query's is its negative.
        max_queries: of more queries only this many are used, evenly spaced; all keys are negatives in any case.

    Returns:
        NaN where no query has two negatives.
    """
    num_queries = min(len(query_ND), max_queries)
    queries = torch.arange(num_queries, device=query_ND.device) * len(query_ND) // max(1, num_queries)
    shares = []
    for rows in queries.split(max(1, probe.TILE_ELEMENTS // len(key_MD))):
        positive = group_of_query_N[rows, None] == group_of_key_M
        logits = (logit_scale * (query_ND[rows] @ key_MD.T)).masked_fill_(positive, -math.inf)
        num_negatives = (~positive).sum(dim=1)
        entropy = torch.special.entr(logits.softmax(dim=1)).sum(dim=1, dtype=torch.double)
        shares.append((entropy / num_negatives.double().log())[num_negatives > 1])
    return float(torch.cat(shares).mean())
