"""InfoNCE: the softmax contrastive loss of CLIP, over all negatives of the global batch.

    loss = 1/2B sum_i [ lse_j s u_i.v_j - s u_i.v_i ] + [ lse_j s u_j.v_i - s u_i.v_i ]

u_i, v_i are the normalised image and text features of pair i, s the logit scale.

Columns: image, text. Cost per process: two N x B fp32 logit matrices and 12 N B D multiply-adds with backward; one
packed all-gather of N x 2D features forward, one reduce-scatter backward. Value at initialisation: about ln B.
Relations: `siglip` replaces the softmax over the batch by independent pairs.
Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3;
the exact gradient over processes as in open_clip with local_loss and gather_with_grad.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F

from vlp import similarity
from vlp.objectives import base
from vlp.types import Embeddings, Loss


class Objective(base.Objective, frozen=True, extra="forbid"):
    """Symmetric cross-entropy over the rows and columns of the global similarity matrix."""

    needs: ClassVar[frozenset[str]] = frozenset({"image", "text"})
    couples_batch: ClassVar[bool] = True

    def loss(self, embeddings: Embeddings) -> Loss:
        matches = similarity.matches(embeddings)
        image_to_text = F.cross_entropy(similarity.logits_per_image(embeddings), matches)
        text_to_image = F.cross_entropy(similarity.logits_per_text(embeddings), matches)
        total = (image_to_text + text_to_image) / 2
        return Loss(total, {"contrastive_loss": total})
