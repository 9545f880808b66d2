"""Whole rows of the similarities, a strip of rows at a time, for losses that need more of a row than a sum of it.

Also which columns of a row show or say the same as it. Memory is that of a strip, however large N x B: backward
computes each strip again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlp import distributed
from vlp.features import Embeddings
from vlp.similarity import tiles

MOST_LOGITS = 1 << 20  # of a strip: 4 MiB of fp32
ACCELERATOR_MOST_LOGITS = 1 << 24  # there, starting the operations on a strip costs as much as a million logits

OfStrip = Callable[[Tensor, slice], Tensor]
"""Values, one a row (n), of a strip's logits (n C) and the places of its rows."""


@dataclass(frozen=True)
class Items:
    """Pictures or captions: what they are compared by, and the keys that tell which of them match.

    Attributes:
        features_ND: normalised.
        pair_N: number of the pair in the global batch.
        picture_N: equal for equal pictures; None where only pairs match.
        captions_KN: equal for equal captions; a picture has all of its own, a caption itself.
    """

    features_ND: Tensor
    pair_N: Tensor
    picture_N: Tensor | None
    captions_KN: Tensor | None

    def matches(self, rows: slice, columns: Items) -> Tensor:
        """Which of ``columns`` each of ``rows`` matches, n C: same pair, equal picture or a caption in common."""
        match_nC = self.pair_N[rows, None] == columns.pair_N
        if self.picture_N is not None:
            match_nC |= self.picture_N[rows, None] == columns.picture_N
        if self.captions_KN is not None and columns.captions_KN is not None:
            for caption_N in self.captions_KN:
                for caption_C in columns.captions_KN:
                    match_nC |= caption_N[rows, None] == caption_C
        return match_nC


def items(embeddings: Embeddings, captions: int, with_identities: bool) -> tuple[Items, Items, Items, Items]:
    """Pictures and captions of this process's rows, then those of the global batch.

    A picture's first ``captions`` captions stand one after the other. Gathers both features, with gradient, and the
    identities.
    """
    device = embeddings.image_ND.device
    text_NKD = embeddings.text_VND[:captions].transpose(0, 1)
    text_BKD = embeddings.text_BD[:, None] if captions == 1 else distributed.gather_rows(text_NKD.contiguous())
    picture_N, caption_KN, picture_B, caption_KB = None, None, None, None
    if with_identities:
        assert embeddings.picture_N is not None
        assert embeddings.caption_VN is not None
        picture_N, caption_KN = embeddings.picture_N, embeddings.caption_VN[:captions]
        packed = distributed.gather_rows(torch.cat([picture_N[None], caption_KN]).T.contiguous())
        picture_B, caption_KB = packed[:, 0], packed[:, 1:].T
    pair_B = torch.arange(len(text_BKD), device=device)
    pair_N = pair_B[embeddings.first_row :][: len(text_NKD)]
    return (
        *_both(embeddings.image_ND, text_NKD, pair_N, picture_N, caption_KN),
        *_both(embeddings.image_BD, text_BKD, pair_B, picture_B, caption_KB),
    )


def _both(
    image_ND: Tensor, text_NKD: Tensor, pair_N: Tensor, picture_N: Tensor | None, caption_KN: Tensor | None
) -> tuple[Items, Items]:
    captions = text_NKD.shape[1]
    return Items(image_ND, pair_N, picture_N, caption_KN), Items(
        text_NKD.flatten(0, 1),
        pair_N.repeat_interleave(captions),
        None if picture_N is None else picture_N.repeat_interleave(captions),
        None if caption_KN is None else caption_KN.T.flatten()[None],
    )


def by_rows(
    of_strip: OfStrip, row_ND: Tensor, column_CD: Tensor, logit_scale: Tensor, most_logits: int | None = None
) -> Tensor:
    """``of_strip`` of the scaled similarities of each row with all columns, in fp32 (fp64 for fp64 features), N.

    8 N C D multiply-adds with backward, 6 where one strip holds all rows. Memory beside inputs and their gradients:
    what ``of_strip`` and its backward hold of ``most_logits`` logits, by default what suits the device. No
    communication.
    """
    wide = tiles.precision(row_ND)
    with torch.autocast(row_ND.device.type, enabled=False):
        column_CD = column_CD.to(wide)

        def strip(row_nD: Tensor, column_CD: Tensor, logit_scale: Tensor, rows: slice) -> Tensor:
            return of_strip(row_nD.to(wide) * logit_scale @ column_CD.T, rows)

        if most_logits is None:
            most_logits = MOST_LOGITS if row_ND.device.type == "cpu" else ACCELERATOR_MOST_LOGITS
        height = max(1, most_logits // max(1, len(column_CD)))
        if height >= len(row_ND):
            return strip(row_ND, column_CD, logit_scale, slice(None))
        return torch.cat(
            [
                checkpoint(
                    strip,
                    row_ND[start : start + height],
                    column_CD,
                    logit_scale,
                    slice(start, start + height),
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
                for start in range(0, len(row_ND), height)
            ]
        )
