"""Captions that are nearly right but false of their pictures: those of this process's rows, or of the global batch.

They are gathered apart from the true captions: stacked with them before the gathering they would stand between the
true captions of other processes, and the places of the matches would be wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlp import distributed
from vlp.features import Embeddings


class HardTexts(NamedTuple):
    """Hard captions, in the columns C or, of each row its own, N K: their features, which are there, what they say.

    ``caption`` is comparable with `Embeddings.caption_VN`; None where that is not known.
    """

    features: Tensor
    there: Tensor
    caption: Tensor | None


def own(embeddings: Embeddings, number: int) -> HardTexts:
    """Of each row its own, the first ``number`` (K) of them: N K D, N K."""
    assert embeddings.hard_text_KND is not None
    assert embeddings.hard_mask_KN is not None
    known = embeddings.hard_caption_KN is not None and embeddings.caption_VN is not None
    return HardTexts(
        embeddings.hard_text_KND[:number].transpose(0, 1).contiguous(),
        embeddings.hard_mask_KN[:number].T,
        embeddings.hard_caption_KN[:number].T if known else None,  # type: ignore[index]
    )


def of_everybody(embeddings: Embeddings, number: int) -> HardTexts:
    """Those of the global batch, B K D -> C D, with the exact gradient; K times the traffic of the true captions."""
    features_NKD, there_NK, caption_NK = own(embeddings, number)
    told = [there_NK.long()] if caption_NK is None else [there_NK.long(), caption_NK]
    there_BK, *caption_BK = distributed.gather_rows(torch.stack(told, 1)).unbind(1)
    return HardTexts(
        distributed.gather_rows(features_NKD).flatten(0, 1),
        there_BK.flatten() > 0,
        caption_BK[0].flatten() if caption_BK else None,
    )


def negatives_of(embeddings: Embeddings, hard: HardTexts, rows: slice) -> Tensor:
    """Which of the hard captions are there and not the caption of the row itself, n C."""
    there_nC = hard.there if hard.there.ndim == 2 else hard.there.expand(len(embeddings.image_ND[rows]), -1)
    if hard.caption is None:
        return there_nC
    assert embeddings.caption_VN is not None
    caption_nC = hard.caption if hard.caption.ndim == 2 else hard.caption[None]
    for caption_N in embeddings.caption_VN:
        there_nC = there_nC & (caption_nC != caption_N[rows, None])
    return there_nC
