"""InfoNCE: the softmax contrastive loss of CLIP, over all negatives of the global batch.

    loss = 1/2B sum_i [ lse_j s u_i.v_j - s u_i.v_i ] + [ lse_j s u_j.v_i - s u_i.v_i ]

u_i, v_i are the normalised image and text features of pair i, s the logit scale.

Columns: image, text. Cost per process: one packed all-gather of N x 2D features forward, one reduce-scatter backward,
and with backward
- up to 2^22 logits (N x B): two N x B fp32 matrices, 12 N B D multiply-adds;
- above: two tiles of 16 MiB, however large N x B, 8 N B D multiply-adds, an all-reduce of B and an all-gather of N
  floats. The gathered images are not used.
Value at initialisation: about ln B.
Relations: `siglip` replaces the softmax over the batch by independent pairs.
Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3;
the exact gradient over processes as in open_clip with local_loss and gather_with_grad.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from vlp import similarity
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.similarity.softmax import log_sum_exps
from vlp.types import Loss


class Objective(base.Objective, frozen=True, extra="forbid"):
    """Symmetric cross-entropy over the rows and columns of the global similarity matrix."""

    couples_batch: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def loss(self, embeddings: Embeddings) -> Loss:
        total = _tiled(embeddings) if similarity.in_tiles(embeddings) else _dense(embeddings)
        return Loss(total, {"contrastive_loss": total})


def _dense(embeddings: Embeddings) -> Tensor:
    matches = similarity.matches(embeddings)
    logits_BB = similarity.logits_per_image(embeddings)
    return (F.cross_entropy(logits_BB, matches) + F.cross_entropy(logits_BB.T, matches)) / 2


def _tiled(embeddings: Embeddings) -> Tensor:
    # ln(exp(m) + exp(n)) - m = softplus(n - m), with n over the others alone: exact also where the loss is nearly 0.
    over_texts_N, over_images_N = log_sum_exps(
        embeddings.image_ND, embeddings.text_BD, embeddings.logit_scale, embeddings.first_row, without_matches=True
    )
    matching_N = similarity.logits_of_matches(embeddings)
    return (F.softplus(over_texts_N - matching_N) + F.softplus(over_images_N - matching_N)).mean() / 2
