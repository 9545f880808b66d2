"""Alignment: a picture and its text lie in one point.

    loss = 1/B sum_i ||u_i - v_i||^2 = 2 - 2/B sum_i u_i.v_i

u_i, v_i are the normalised image and text features of pair i.

Columns: image, text. The logit scale plays no part. Cost: N x D; no communication, and no other row: with micro-batches
it is evaluated on each alone.
Value: 0 where all pairs agree, 4 where they are opposed, about 2 at initialisation.
Relations: alone it is smallest where everything is one point; `uniformity`, or a contrastive loss, keeps it from there.
Source: Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on
the Hypersphere", section 4.1 with the exponent 2; beside `infonce`, Fahim et al. 2024, "It's Not a Modality Gap".
"""

from __future__ import annotations

from typing import ClassVar

from vlp.features import Embeddings
from vlp.objectives import base
from vlp.similarity import tiles
from vlp.types import Loss


class Objective(base.Objective, frozen=True, extra="forbid"):
    """Mean squared distance of the matching pairs."""

    couples_batch: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def loss(self, embeddings: Embeddings) -> Loss:
        wide = tiles.precision(embeddings.image_ND)
        total = (embeddings.image_ND.to(wide) - embeddings.text_ND.to(wide)).square().sum(-1).mean()
        return Loss(total, {"alignment_loss": total})
