"""SigLIP: the sigmoid loss, where each pair of the global batch is a yes-or-no question of its own.

    loss = -1/B sum_ij log sigmoid( z_ij (s u_i.v_j + b) ),   z_ij = 1 if i = j else -1

u_i, v_j are normalised features, s the logit scale (learned, or fixed or on a schedule by `train.temperature`, its
inverse), b the logit bias, which is learned.

Columns: image, text; logit_bias: of `model.init_logit_bias`, or the default of -10 with a scale of 10 as in the paper.
Cost per process: 6 N B D multiply-adds with backward; up to 2^18 logits (N x B) of one process an N x B fp32 matrix and
what its backward keeps; above, and over several processes, a tile and a copy of the gradients, computed in the forward
pass. An all-gather of N x D text features and the reduce-scatter of their gradient; images are not gathered.
Value at initialisation with scale 10 and bias -10: about 10 at random features, then fast to below 1.
Relations: `infonce` normalises over the batch, SigLIP does not, so it depends less on the batch size.
Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", algorithm 1.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp import similarity
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.similarity.sigmoid import softplus_sum
from vlp.types import Loss


class Objective(base.Objective, frozen=True, extra="forbid"):
    """Mean over images of the summed binary cross-entropies with every text of the global batch."""

    couples_batch: ClassVar[bool] = True
    shared_parts: ClassVar[frozenset[str]] = frozenset({"contrastive_loss"})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "logit_bias"})

    def loss(self, embeddings: Embeddings) -> Loss:
        summed = _tiled_sum(embeddings) if similarity.in_tiles(embeddings) else _dense_sum(embeddings)
        total = summed / embeddings.image_ND.shape[0]
        return Loss(total, {"contrastive_loss": total})

    def initial_logits(self) -> dict[str, float]:
        return {"logit_scale": math.log(10), "logit_bias": -10.0}


def _dense_sum(embeddings: Embeddings) -> Tensor:
    logits_NB = similarity.logits_per_image(embeddings)
    signs_NB = torch.full_like(logits_NB, -1.0)
    signs_NB.scatter_(1, similarity.matches(embeddings)[:, None], 1.0)
    return -F.logsigmoid(signs_NB * logits_NB).sum()


def _tiled_sum(embeddings: Embeddings) -> Tensor:
    return softplus_sum(
        embeddings.image_ND,
        embeddings.text_BD,
        embeddings.logit_scale,
        embeddings.logit_bias,
        embeddings.first_row,
    )
