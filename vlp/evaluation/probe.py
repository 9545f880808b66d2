"""How well the classes of a set can be read off features: pure functions, nothing random.

Only every fifth item of a class is asked for, and never one that the probe was fitted on; the parts are a function of
the labels alone, so that two models, or two steps of one, are asked the same questions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

L2 = 1e-3
MAX_STEPS = 100
MAX_ROWS = 10_000
MAX_CLASSES = 200  # a thousand take 20 s of a core instead of 3
MAX_QUERIES = 5_000
SAME = 1e-6  # cosines closer than this are equal: fp32 products differ by their place in the matrix
MIN_ROWS = 64  # of a product of matrices: fewer, and it waits for memory
TILE_ELEMENTS = 2**24  # 64 MiB of fp32 similarities, whatever the size of the set


def logistic_accuracy(
    features_ND: Tensor, labels_N: Tensor, max_rows: int = MAX_ROWS, max_classes: int = MAX_CLASSES
) -> float:
    """Share of held-out rows that a multinomial logistic regression gives their class, in [0, 1].

    Minimises mean cross-entropy + L2/2 ||W||^2 (`L2` fixed, the offset free) on standardised features, in fp64 by
    L-BFGS of at most `MAX_STEPS` steps from zero: the linear probe of Radford et al., arXiv:2103.00020, section 3.2,
    without its search for the strength. `held_out` says which rows are asked for. Where all features are equal, what
    remains is the share of the most frequent class.

    Args:
        features_ND: N x D, of any length; each column is standardised by the rows the probe is fitted on.
        labels_N: N whole numbers.
        max_rows: of more rows only this many are used, evenly spaced in the order of the classes.
        max_classes: of more classes only the rows of this many are used, evenly spaced.

    Returns:
        NaN where fewer than two classes have the five items that a split needs.
    """
    labels_N = labels_N.to(features_ND.device)
    rows, classes_C = labels_N.argsort(stable=True), labels_N.unique()
    if len(classes_C) > max_classes:
        kept = torch.arange(max_classes, device=rows.device) * len(classes_C) // max_classes
        rows = rows[torch.isin(labels_N[rows], classes_C[kept])]
    if len(rows) > max_rows:
        rows = rows[torch.arange(max_rows, device=rows.device) * len(rows) // max_rows]
    features_ND, labels_N = features_ND[rows].double(), labels_N[rows].unique(return_inverse=True)[1]
    asked_N = held_out(labels_N)
    if len(labels_N[asked_N].unique()) < 2:
        return math.nan
    fitted_ND = features_ND[~asked_N]
    deviation_D = fitted_ND.std(dim=0)
    # A constant column would blow up the rounding of its values.
    deviation_D = torch.where(deviation_D < SAME, torch.ones_like(deviation_D), deviation_D)
    features_ND = (features_ND - fitted_ND.mean(dim=0)) / deviation_D
    weights_CD, offset_C = fit(features_ND[~asked_N], labels_N[~asked_N], int(labels_N.max()) + 1)
    predicted_N = F.linear(features_ND[asked_N], weights_CD, offset_C).argmax(dim=1)
    return float((predicted_N == labels_N[asked_N]).double().mean())


def held_out(labels_N: Tensor) -> Tensor:
    """A boolean mask N: one item of each five of a class, counted in the order of the rows.

    Which of the five changes from five to five, so that the mask has no period that the set could have too. The k-th
    items of all classes are on the same side. A class of fewer than five items has none held out.
    """
    order = labels_N.argsort(stable=True)
    counts_C = labels_N.unique(return_counts=True)[1]
    first_N = (counts_C.cumsum(0) - counts_C).repeat_interleave(counts_C)
    counter_N = torch.empty_like(order)
    counter_N[order] = torch.arange(len(order), device=order.device) - first_N
    mixed_N = ((counter_N // 5) * 2_654_435_761 >> 16) % 5  # Knuth's multiplicative hash of the number of the five
    return counter_N % 5 == 4 - mixed_N


@torch.enable_grad()
def fit(
    features_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    strength: float = L2,
    start: tuple[Tensor, Tensor] | None = None,
    max_steps: int = MAX_STEPS,
) -> tuple[Tensor, Tensor]:
    """Weights CD and offsets C at the minimum of mean cross-entropy + strength/2 ||W||^2, by L-BFGS.

    In the precision of ``features_ND``, from ``start`` (zero without one).
    """
    zeros = features_ND.new_zeros(num_classes, features_ND.shape[1]), features_ND.new_zeros(num_classes)
    weights_CD, offset_C = (value.clone().requires_grad_() for value in start or zeros)
    optimizer = torch.optim.LBFGS(
        [weights_CD, offset_C], max_iter=max_steps, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )
    rows = max(1, TILE_ELEMENTS // num_classes)

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = strength / 2 * weights_CD.square().sum()
        total.backward()
        for tile_TD, labels_T in zip(features_ND.split(rows), labels_N.split(rows), strict=True):
            logits_TC = F.linear(tile_TD, weights_CD, offset_C)
            loss = F.cross_entropy(logits_TC, labels_T, reduction="sum") / len(features_ND)
            loss.backward()
            total = total + loss
        return total.detach()

    optimizer.step(closure)
    return weights_CD.detach(), offset_C.detach()


def knn_accuracy(features_ND: Tensor, labels_N: Tensor, k: int = 10, max_queries: int = MAX_QUERIES) -> float:
    """Share of rows that the majority of their ``k`` nearest other rows gives their class, in [0, 1].

    Nearest by cosine, one vote each (Wu et al., arXiv:1805.01978, weigh the votes). Ties count against the model: of
    equally near rows those of other classes come first, and a class must have more votes than each other one. So a
    collapsed model scores 0.

    Args:
        features_ND: L2-normalised.
        max_queries: of more rows only this many are asked for, evenly spaced; all N are candidates in any case.

    Returns:
        NaN where there are no ``k`` other rows, or only one class.
    """
    labels_N = labels_N.to(features_ND.device).unique(return_inverse=True)[1]
    num_rows = len(labels_N)
    if num_rows <= k or len(labels_N.unique()) < 2:
        return math.nan
    num_queries = min(num_rows, max_queries)
    queries = torch.arange(num_queries, device=labels_N.device) * num_rows // num_queries
    asked = features_ND[queries], labels_N[queries]
    return float(_right_by_votes(*asked, features_ND, labels_N, k, queries).double().mean())


def knn_right(query_ND: Tensor, query_label_N: Tensor, key_MD: Tensor, key_label_M: Tensor, k: int) -> Tensor:
    """Which queries the majority of their ``k`` nearest keys gives their class (boolean N); ties as in `knn_accuracy`.

    Args:
        query_ND, key_MD: L2-normalised; ``k`` is at most M.
    """
    labels = torch.cat([key_label_M, query_label_N]).to(key_MD.device).unique(return_inverse=True)[1]
    key_label_M, query_label_N = labels.split([len(key_MD), len(query_ND)])
    return _right_by_votes(query_ND, query_label_N, key_MD, key_label_M, k, None)


def _right_by_votes(
    query_ND: Tensor, query_label_N: Tensor, key_MD: Tensor, key_label_M: Tensor, k: int, own_N: Tensor | None
) -> Tensor:
    """Labels are numbers from 0 on; ``own_N`` is the key that a query itself is, which has no vote."""
    num_classes, found = int(torch.cat([key_label_M, query_label_N]).max()) + 1, []
    for rows in torch.arange(len(query_ND), device=key_MD.device).split(max(MIN_ROWS, TILE_ELEMENTS // len(key_MD))):
        own = query_label_N[rows, None]
        scores = query_ND[rows] @ key_MD.T
        scores -= SAME * (key_label_M == own)
        if own_N is not None:
            scores[torch.arange(len(rows)), own_N[rows]] = -math.inf
        voters = key_label_M[scores.topk(k, dim=1).indices]
        votes = torch.zeros(len(rows), num_classes, device=voters.device)
        votes.scatter_add_(1, voters, torch.ones_like(votes[:, :1]).expand(-1, k))
        for_own = votes.gather(1, own).squeeze(1)
        found.append(for_own > votes.scatter(1, own, -1).amax(dim=1))
    return torch.cat(found)
