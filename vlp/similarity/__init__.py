"""Similarities of this process's rows with the global batch, in fp32 whatever the precision of the towers.

Here as a matrix, for small batches and as the reference; ``softmax`` and ``sigmoid`` hold the sums that losses need of
a matrix that is never there as a whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlp import distributed
from vlp.features import Embeddings
from vlp.similarity import tiles

MOST_DENSE_LOGITS = 1 << 18  # here, 512 rows, tiles become faster; their memory no longer grows with N x B


def in_tiles(embeddings: Embeddings) -> bool:
    """Whether the losses take their sums tile by tile: where the matrix is large, or others hold a part of it.

    Over processes the sums need the texts of the others only, half of what both matrices would have to gather.
    """
    rows, world = len(embeddings.image_ND), distributed.world_size()
    return world > 1 or rows * rows > MOST_DENSE_LOGITS


def logits_per_image(embeddings: Embeddings) -> Tensor:
    """Scaled and biased cosine similarities of local images with all texts, NB, fp32."""
    image_ND, text_BD = embeddings.image_ND, embeddings.text_BD
    # Autocast would round the product to bf16, which costs 1.5 % of the gradient at scale 100.
    with torch.autocast(image_ND.device.type, enabled=False):
        wide = tiles.precision(image_ND)
        return embeddings.logit_scale * (image_ND.to(wide) @ text_BD.to(wide).T) + embeddings.logit_bias


def logits_of_matches(embeddings: Embeddings, view: int = 0) -> Tensor:
    """Scaled cosine similarities of local images with their own texts of one view, N, fp32 and without the bias."""
    return embeddings.logit_scale * tiles.row_products(embeddings.image_ND, embeddings.text_VND[view])


def matches(embeddings: Embeddings) -> Tensor:
    """Column of the matching item for each local row, N."""
    rows = embeddings.image_ND.shape[0]
    return torch.arange(rows, device=embeddings.image_ND.device) + embeddings.first_row


def text_BD(embeddings: Embeddings, view: int) -> Tensor:
    """Features of the captions of one view, of the global batch, with the exact gradient."""
    return embeddings.text_BD if view == 0 else distributed.gather_rows(embeddings.text_VND[view])


def global_mean(values: Tensor) -> Tensor:
    """Mean over the rows of all processes, the same on each, with the exact gradient: N... -> ..."""
    return distributed.mean_with_gradient(values.mean(0))
