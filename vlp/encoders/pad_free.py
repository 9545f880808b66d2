"""Texts without their padding, where padding has no part in the feature.

A causal tower that pools at the end of a text never sees what stands behind it, so those positions need not be
computed: captions have some 15 ids, padding fills them up to 77. A tower of transformers masks its padding. A tower
that sees all positions and masks none, such as SigLIP's, or that pools at its last place, needs every one of them.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip import CLIP
from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder, MeanPooler
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.func import functional_call

from vlp.encoders.captioner import is_causal


def used_lengths(clip: Any, text_NL: Tensor) -> Tensor:
    """Of each text, the number of its first ids on which its feature depends (N); L where that is not certain."""
    tower = getattr(clip, "text", clip)
    if type(tower) is HFTextEncoder:
        end_N = _end_of_unmasked(tower, text_NL)
    elif type(tower) in (CLIP, TextTransformer) and getattr(tower, "cls_emb", None) is None and is_causal(tower):
        # No class token: CoCa's is the last of all, and sees them all.
        end_N = _pooled_place(tower, text_NL)
    else:
        end_N = None
    if end_N is None:
        return torch.full_like(text_NL[:, 0], text_NL.shape[1])
    return end_N + 1


def encode(clip: Any, text_NL: Tensor) -> Tensor:
    """Features ND as of open_clip's ``encode_text``, also of texts shorter than the context of a causal tower.

    open_clip's towers (3.3.0) cut neither their mask nor, in the class CLIP, their positions to the length of the text.
    """
    tower = getattr(clip, "text", clip)
    mask, length = getattr(tower, "attn_mask", None), text_NL.shape[1]
    if mask is None or length == len(mask) or getattr(tower, "cls_emb", None) is not None:
        return clip.encode_text(text_NL, normalize=False)
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


def _pooled_place(tower: Any, text_NL: Tensor) -> Tensor | None:
    """Where a tower of open_clip takes the feature (N); None where the text does not say it."""
    bare = isinstance(tower, CLIP)  # the towers of this class lie in the model itself, under other names
    kind, eos_id = (tower.text_pool_type, tower.text_eos_id) if bare else (tower.pool_type, tower.eos_id)
    if kind == "argmax":
        return text_NL.argmax(dim=1)
    return (text_NL == eos_id).int().argmax(dim=1) if kind == "eos" else None


def _end_of_unmasked(tower: HFTextEncoder, text_NL: Tensor) -> Tensor | None:
    """The last place of each text that is no padding (N), 0 without any; None for poolings that may read the others."""
    padding = tower.config.pad_token_id
    if padding is None or type(tower.pooler) not in (MeanPooler, ClsPooler, ClsLastHiddenStatePooler):
        return None
    places_L = torch.arange(text_NL.shape[1], device=text_NL.device)
    return ((text_NL != padding) * places_L).amax(dim=1)
