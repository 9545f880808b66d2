"""Decoupled contrastive learning (DCL): InfoNCE without the matching pair in the denominator; DCLW weighs the pairs.

    loss = 1/2B sum_i [ lse_{j != i} s u_i.v_j - w_i s u_i.v_i ] + [ lse_{j != i} s u_j.v_i - w_i s u_i.v_i ]
    w_i  = 1;   weighted:   w_i = 2 - exp(u_i.v_i / sigma) / mean_k exp(u_k.v_k / sigma)

u_i, v_i are the normalised image and text features of pair i of the global batch, s the logit scale. The weights are
constants for the gradient, their mean over the global batch is 1; they favour pairs that do not agree yet.

InfoNCE's gradient on the negatives of image i carries the factor 1 - p_ii, p_ii the probability of its match: it dies
when the match is easy, in small batches most of all. Here that factor is gone.

Without it the loss has no lower bound: once matches are closer than all others, a larger scale lowers it for ever. Fix
the temperature (`train.temperature`, 0.1 in the paper), or a learned scale rises to `train.max_logit_scale`, where
the trainer stops it.

Columns: image, text. Cost per process: an all-gather of N x D features forward and a reduce-scatter backward, which
`infonce` shares; on one process up to 2^18 logits (N x B) two N x B fp32 matrices, else tiles, however large N x B,
and an all-reduce of B and an all-gather of N floats (`vlp.similarity.softmax`). A global batch of one row has no
negatives: ValueError.
Value at initialisation: about ln(B - 1).
Relations: per pair and direction `infonce` is softplus of this, which is `infonce` + ln(1 - p_ii). sigma to infinity
is DCL.
Source: Yeh et al. 2022, "Decoupled Contrastive Learning", DCL and DCLW; here between pictures and texts, without
negatives of the same kind.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from vlp import similarity
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.similarity import tiles
from vlp.similarity.softmax import margins_of_negatives
from vlp.types import Loss


class Objective(base.Objective, frozen=True, extra="forbid"):
    """Contrast of each matching pair with the negatives alone, in both directions."""

    couples_batch: ClassVar[bool] = True

    weighted: bool = Field(False, description="DCLW: pairs that do not agree yet weigh more")
    sigma: float = Field(0.5, ge=0.05, description="of the weights, with `weighted`: the smaller, the more they differ")

    @model_validator(mode="after")
    def _all_has_an_effect(self) -> Self:
        if self.sigma != type(self).model_fields["sigma"].default and not self.weighted:
            raise ValueError("sigma has no effect without weights: remove it, or set weighted: true")
        return self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def loss(self, embeddings: Embeddings) -> Loss:
        if len(embeddings.text_BD) < 2:
            raise ValueError("decoupled needs negatives: a global batch of one row has none, use at least two")
        margins_N = _tiled(embeddings) if similarity.in_tiles(embeddings) else _dense(embeddings)
        if self.weighted:
            margins_N = margins_N + (1 - self._weights(embeddings)) * similarity.logits_of_matches(embeddings)
        total = margins_N.mean()
        return Loss(total, {"decoupled_loss": total})

    @torch.no_grad()
    def _weights(self, embeddings: Embeddings) -> Tensor:
        """w_i of this process's pairs, N; their mean over the global batch is 1."""
        wide = tiles.precision(embeddings.image_ND)
        cosine_N = (embeddings.image_ND.to(wide) * embeddings.text_ND.to(wide)).sum(-1)
        agreement_N = (cosine_N / self.sigma).exp()
        return 2 - agreement_N / similarity.global_mean(agreement_N)

    def notes(self) -> list[str]:
        return ["has no lower bound: the scale rises to train.max_logit_scale, unless train.temperature fixes it"]


def _dense(embeddings: Embeddings) -> Tensor:
    """Log-sum-exp over the negatives minus the logit of the match, mean of both directions, N."""
    logits_BB = similarity.logits_per_image(embeddings)
    of_negatives_BB = logits_BB.masked_fill(torch.eye(len(logits_BB), device=logits_BB.device).bool(), -torch.inf)
    return (of_negatives_BB.logsumexp(1) + of_negatives_BB.logsumexp(0)) / 2 - logits_BB.diagonal()


def _tiled(embeddings: Embeddings) -> Tensor:
    over_texts_N, over_images_N = margins_of_negatives(embeddings)
    return (over_texts_N + over_images_N) / 2
