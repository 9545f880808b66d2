"""Uniformity: pictures spread over the sphere, and so do texts, each among their own kind.

    loss = 1/2 [ L(u) + L(v) ],   L(z) = log 1/(B(B-1)) sum_{i != j} exp(-t ||z_i - z_j||^2)

u_i, v_i are the normalised image and text features of pair i of the global batch. The paper's formula has the pairs
i = j in the mean; its code, and this, has not: they would add a constant inside the logarithm and damp the gradient.
The logarithm of a mean over the global batch is not the mean of the processes' logarithms: this is the former, on any
number of processes.

Columns: image, text. The logit scale plays no part. Cost per process: an all-gather of N x D features forward and a
reduce-scatter backward for each of the two; 12 N B D to 16 N B D multiply-adds with backward; tiles, however large
N x B (`vlp.similarity.softmax`). A global batch of one row has no pairs: ValueError.
Value: 0 where all features are one point, -4 (at t = 2) where they are orthogonal, about -4 + 8/D spread evenly over
the sphere, -8 for two antipodes, never outside [-4 t, 0]. At initialisation between 0 and -4, as fresh towers map
all into a cone: -1.9 in `quickstart`.
Relations: `cross_uniformity` spreads pictures from the texts of others, `alignment` holds pairs together; the three
with `infonce` close the gap between the modalities. The part ``image_uniformity`` is what evaluation logs by that name.
Source: Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on
the Hypersphere", section 4.1; for pictures and texts, Fahim et al. 2024, "It's Not a Modality Gap".
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vlp.features import Embeddings
from vlp.objectives import base
from vlp.similarity.gaussian import MOST_T, log_mean_gaussian
from vlp.types import Loss


class Objective(base.Objective, frozen=True, extra="forbid"):
    """Logarithm of the mean Gaussian potential between pictures and between texts."""

    couples_batch: ClassVar[bool] = True

    t: float = Field(
        2.0, gt=0, le=MOST_T, examples=[5.0], description="the larger, the nearer two must be to repel each other"
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def loss(self, embeddings: Embeddings) -> Loss:
        first_row = embeddings.first_row
        image = log_mean_gaussian(embeddings.image_ND, embeddings.image_BD, self.t, first_row)
        text = log_mean_gaussian(embeddings.text_ND, embeddings.text_BD, self.t, first_row)
        total = (image + text) / 2
        return Loss(total, {"uniformity_loss": total, "image_uniformity": image, "text_uniformity": text})
