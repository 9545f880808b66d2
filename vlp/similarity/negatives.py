"""Hard negatives: for each pair of this process, another text and another picture of the global batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlp import distributed, draws
from vlp.features import Embeddings

_MOST_LOGITS = 1 << 20  # of a strip: with their random numbers, about 64 MiB


class Negatives(NamedTuple):
    """Rows of the global batch, N: a wrong text for each picture, a wrong picture for each text.

    Where ``exist_N`` is false the whole batch says or shows the same as the pair, and the rows mean nothing.
    """

    text_N: Tensor
    image_N: Tensor
    exist_N: Tensor


def hard_negatives(embeddings: Embeddings) -> Negatives:
    """Draw by the softmax of the scaled similarities, leaving out the pair itself and those of its caption or picture.

    The draw is the largest sum of a logit and a Gumbel number that is a function of the seed, the pair and the other
    pair: the same on any number of processes. Pairs are told apart by what they say and show (``caption_VN`` of the
    first view, ``picture_N``), by their place where neither is known. 2 N B D multiply-adds and two strips of logits;
    gathers the features, and 16 bytes a row.
    """
    image_BD, text_BD = embeddings.image_BD, embeddings.text_BD  # with their gradient: they are kept for the losses
    with torch.no_grad(), torch.autocast(image_BD.device.type, enabled=False):
        return _drawn(embeddings, image_BD, text_BD)


def _drawn(embeddings: Embeddings, image_BD: Tensor, text_BD: Tensor) -> Negatives:
    places_B = torch.arange(len(image_BD), device=image_BD.device)
    local = slice(embeddings.first_row, embeddings.first_row + len(embeddings.image_ND))
    caption_N = embeddings.caption_VN[0] if embeddings.caption_VN is not None else None
    known = [ids_N for ids_N in (caption_N, embeddings.picture_N) if ids_N is not None]
    ids_BK = distributed.gather_rows(torch.stack(known, 1)) if known else places_B[:, None]
    pair_B = draws.hashed(*ids_BK.unbind(1))
    scale = embeddings.logit_scale.float()
    text_N, image_N = torch.empty_like(places_B[local]), torch.empty_like(places_B[local])
    exist_N = torch.empty_like(text_N, dtype=torch.bool)
    step = max(1, _MOST_LOGITS // len(places_B))
    for start in range(0, len(text_N), step):
        here = slice(start, start + step)
        rows = slice(local.start + start, min(local.start + start + step, local.stop))
        same = (ids_BK[rows, None] == ids_BK[None]).any(-1) | (places_B[rows, None] == places_B)
        exist_N[here] = ~same.all(1)
        for drawn_N, row_ND, column_BD, kind in (
            (text_N, embeddings.image_ND, text_BD, 0),
            (image_N, embeddings.text_ND, image_BD, 1),
        ):
            uniform = draws.uniforms(embeddings.seed, kind, pair_B[rows, None], pair_B)
            noise = uniform.log_().neg_().log_().neg_()
            logits = scale * (row_ND[here].float() @ column_BD.float().T)
            drawn_N[here] = noise.add_(logits).masked_fill_(same, -torch.inf).argmax(1)
    return Negatives(text_N, image_N, exist_N)
