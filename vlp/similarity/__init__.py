"""Similarities of this process's rows with the global batch, in fp32 whatever the precision of the towers.

Here as a matrix, for small batches and as the reference; ``softmax`` and ``sigmoid`` hold the sums that losses need of
a matrix that is never there as a whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlp.types import Embeddings

MOST_DENSE_LOGITS = 1 << 22  # 16 MiB a matrix; above, tiles are as fast and the memory no longer grows with N x B


def is_large(embeddings: Embeddings) -> bool:
    """Whether the losses take their sums tile by tile: the same answer on every process."""
    return embeddings.image_ND.shape[0] * embeddings.text_BD.shape[0] > MOST_DENSE_LOGITS


def logits_per_image(embeddings: Embeddings) -> Tensor:
    """Scaled and biased cosine similarities of local images with all texts, NB, fp32."""
    return _logits(embeddings.image_ND, embeddings.text_BD, embeddings)


def logits_per_text(embeddings: Embeddings) -> Tensor:
    """Scaled and biased cosine similarities of local texts with all images, NB, fp32."""
    return _logits(embeddings.text_ND, embeddings.image_BD, embeddings)


def logits_of_matches(embeddings: Embeddings) -> Tensor:
    """Scaled cosine similarities of local images with their own texts, N, fp32 and without the bias."""
    return embeddings.logit_scale * (embeddings.image_ND.float() * embeddings.text_ND.float()).sum(-1)


def matches(embeddings: Embeddings) -> Tensor:
    """Column of the matching item for each local row, N."""
    rows = embeddings.image_ND.shape[0]
    return torch.arange(rows, device=embeddings.image_ND.device) + embeddings.first_row


def _logits(rows_ND: Tensor, columns_BD: Tensor, embeddings: Embeddings) -> Tensor:
    # Autocast would round the product to bf16, which costs 1.5 % of the gradient at scale 100.
    with torch.autocast(rows_ND.device.type, enabled=False):
        return embeddings.logit_scale * (rows_ND.float() @ columns_BD.float().T) + embeddings.logit_bias
