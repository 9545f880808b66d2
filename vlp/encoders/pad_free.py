"""Texts without their padding, where padding has no part in the feature.

A causal tower that pools at the end of a text never sees what stands behind it, so those positions need not be
computed: captions have some 15 ids, padding fills them up to 77. A tower of transformers masks its padding. A tower
that sees all positions and masks none, such as SigLIP's, or that pools at its last place, needs every one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from open_clip import CLIP
from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder, MeanPooler
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.func import functional_call

from vlp.encoders import packing
from vlp.encoders.captioner import is_causal
from vlp.encoders.packing import TextShapes

_BLIND_TO_PADDING = (MeanPooler, ClsPooler, ClsLastHiddenStatePooler)
_MULTIPLE = 8  # ids: few lengths, so that memory of one step is used again in the next

LengthsOf = Callable[[Tensor], Tensor]


def lengths_reader(clip: Any) -> LengthsOf | None:
    """What tells, of texts NL, the number of first ids on which the feature of each depends (N); None where on all.

    To find out looks at the tower's mask, which waits for the device: once a run, not once a step.
    """
    tower = getattr(clip, "text", clip)
    if type(tower) is HFTextEncoder:
        padding = tower.config.pad_token_id
        blind = padding is not None and type(tower.pooler) in _BLIND_TO_PADDING
        return partial(_unmasked_lengths, padding) if blind else None
    if type(tower) not in (CLIP, TextTransformer) or getattr(tower, "cls_emb", None) is not None:
        return None  # a class token, as CoCa's, is the last of all and sees them all
    return partial(packing.pooled_lengths, tower) if packing.pools_at_end(tower) and is_causal(tower) else None


def used_lengths(clip: Any, text_NL: Tensor) -> Tensor:
    """Of each text, the number of its first ids on which its feature depends (N); L where that is not certain."""
    lengths_of = lengths_reader(clip)
    return torch.full_like(text_NL[:, 0], text_NL.shape[1]) if lengths_of is None else lengths_of(text_NL)


def encode(clip: Any, text_NL: Tensor, shapes: TextShapes | None = None) -> Tensor:
    """Features ND as of open_clip's ``encode_text``, also of texts shorter than the context of a causal tower.

    With ``shapes``, those of the `used_lengths` of the same texts, nothing behind these is computed, or little: a tower
    that `packing.prepare` does not know computes all texts up to the longest.
    """
    tower = getattr(clip, "text", clip)
    if shapes is not None:
        if packing.is_prepared(tower):
            return packing.encode(tower, text_NL, shapes)
        text_NL = text_NL[:, : -(-shapes.longest // _MULTIPLE) * _MULTIPLE]
    mask, length = getattr(tower, "attn_mask", None), text_NL.shape[1]
    if mask is None or length == len(mask) or getattr(tower, "cls_emb", None) is not None:
        return clip.encode_text(text_NL, normalize=False)
    # open_clip's towers (3.3.0) cut neither their mask nor, in the class CLIP, their positions.
    place = "clip." if tower is clip else "clip.text."
    shorter = {
        f"{place}attn_mask": mask[:length, :length],
        f"{place}positional_embedding": tower.positional_embedding[:length],
    }
    return functional_call(_Texts(clip), shorter, (text_NL,))


class _Texts(nn.Module):
    """``encode_text`` as the ``forward`` that `functional_call` wants."""

    clip: Any

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, text_NL: Tensor) -> Tensor:
        return self.clip.encode_text(text_NL, normalize=False)


def _unmasked_lengths(padding: int, text_NL: Tensor) -> Tensor:
    """Up to the last place that is no padding; 1 where all is."""
    places_L = torch.arange(text_NL.shape[1], device=text_NL.device)
    return ((text_NL != padding) * places_L).amax(dim=1) + 1
