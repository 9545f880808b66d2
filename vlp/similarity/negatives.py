"""Hard negatives: for each pair of this process, another text and another picture of the global batch."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vlp import distributed, draws, similarity
from vlp.features import Embeddings
from vlp.similarity.rows import by_rows

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
    with torch.no_grad():
        places_B = torch.arange(len(embeddings.image_BD), device=embeddings.image_BD.device)
        caption_N = embeddings.caption_VN[0] if embeddings.caption_VN is not None else None
        known = [ids_N for ids_N in (caption_N, embeddings.picture_N) if ids_N is not None]
        ids_BK = distributed.gather_rows(torch.stack(known, 1)) if known else places_B[:, None]
        pair_B = draws.hashed(*ids_BK.unbind(1))
        place_N = similarity.matches(embeddings)

        def draw(kind: int, logits_nB: Tensor, strip: slice) -> Tensor:
            """A column for each row; -1 where none is left."""
            place_n = place_N[strip]
            same_nB = (ids_BK[place_n, None] == ids_BK).any(-1) | (place_n[:, None] == places_B)
            noise_nB = draws.uniforms(embeddings.seed, kind, pair_B[place_n, None], pair_B).log_().neg_().log_().neg_()
            largest = noise_nB.add_(logits_nB).masked_fill_(same_nB, -torch.inf).max(1)
            return largest.indices.masked_fill_(largest.values == -torch.inf, -1)

        scale = embeddings.logit_scale
        text_N = by_rows(partial(draw, 0), embeddings.image_ND, embeddings.text_BD, scale, _MOST_LOGITS)
        image_N = by_rows(partial(draw, 1), embeddings.text_ND, embeddings.image_BD, scale, _MOST_LOGITS)
    return Negatives(text_N.clamp_min(0), image_N.clamp_min(0), text_N >= 0)
