"""Cross-modal uniformity: each picture is far from the texts of the others.

    loss = log 1/(B(B-1)) sum_{i != j} exp(-t ||u_i - v_j||^2)

u_i, v_i are the normalised image and text features of pair i of the global batch; matching pairs are left out. As in
`uniformity`, it is the logarithm of one mean over the global batch, on any number of processes.

Columns: image, text. The logit scale plays no part. Cost per process: an all-gather of N x D features forward and a
reduce-scatter backward, which `infonce` shares; 6 N B D to 8 N B D multiply-adds with backward; tiles, however large
N x B. A global batch of one row has no pairs: ValueError.
Value: -4 (at t = 2) where each picture is orthogonal to the others' texts, never outside [-4 t, 0]. At initialisation
about -4, as the cones into which fresh towers map pictures and texts are about orthogonal.
Relations: of the terms beside `infonce` that close the gap between the modalities, this one is at odds with `alignment`
alone: use it with `uniformity`. It pushes all pairs at one sharpness, `infonce` at its temperature.
Source: Fahim et al. 2024, "It's Not a Modality Gap", the term XUnif of CUAXU.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vlp.features import Embeddings
from vlp.objectives import base
from vlp.similarity.gaussian import MOST_T, log_mean_gaussian
from vlp.types import Loss


class Objective(base.Objective, frozen=True, extra="forbid"):
    """Logarithm of the mean Gaussian potential between pictures and the texts of others."""

    couples_batch: ClassVar[bool] = True

    t: float = Field(
        2.0, gt=0, le=MOST_T, examples=[5.0], description="the larger, the nearer two must be to repel each other"
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def loss(self, embeddings: Embeddings) -> Loss:
        total = log_mean_gaussian(embeddings.image_ND, embeddings.text_BD, self.t, embeddings.first_row)
        return Loss(total, {"cross_uniformity_loss": total})
