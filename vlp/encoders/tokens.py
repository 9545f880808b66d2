"""Local features of open_clip's towers, in the common space: patches of pictures, words of texts.

A tower's own projection takes its tokens where it takes the pooled feature; one forward pass gives both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from torch import Tensor, nn

from vlp.types import UserError


def image_with_tokens(visual: nn.Module, pixels_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled features ND and those of the patches NPD (class tokens left out).

    Raises:
        UserError: a kind of tower whose patches cannot be had.
    """
    if isinstance(visual, VisionTransformer):
        with _returning_tokens(visual):
            pooled_ND, tokens = visual(pixels_NCHW)
        if visual.final_ln_after_pool:
            tokens = visual.ln_post(tokens)
        return pooled_ND, tokens if visual.proj is None else tokens @ visual.proj
    if isinstance(visual, TimmModel) and not hasattr(visual.head, "pool"):
        features = visual.trunk.forward_features(pixels_NCHW)
        pooled_ND = visual.head(visual.trunk.forward_head(features))
        if features.ndim == 4:
            tokens = features.flatten(2).transpose(1, 2)
        else:
            tokens = features[:, getattr(visual.trunk, "num_prefix_tokens", 0) :]
        return pooled_ND, visual.head(tokens)
    raise UserError(
        f"model: an image tower of the kind {type(visual).__name__} gives no patch tokens: "
        "choose a ViT, or a timm tower without timm_pool"
    )


def text_with_tokens(clip: Any, text_NL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled features ND, those of all positions NLD, and which of them are words (NL, bool).

    Words are what lies between the start and the end of the text, or all that is no padding where a tower has neither.
    """
    tower = getattr(clip, "text", clip)
    if isinstance(tower, HFTextEncoder):
        with _returning_tokens(tower):
            pooled_ND, tokens = tower(text_NL)
        words_NL = text_NL != tower.config.pad_token_id
        return pooled_ND, tower.proj(tokens), words_NL[:, words_NL.shape[1] - tokens.shape[1] :]
    if isinstance(tower, TextTransformer):
        with _returning_tokens(tower):
            pooled_ND, tokens = tower(text_NL)
        if tower.cls_emb is not None:
            tokens = tower.ln_final(tokens)
        return pooled_ND, _project(tower, tokens), _words(text_NL, tower.pool_type, tower.pad_id)
    # The towers of the class CLIP lie bare in the model, and its encode_text gives no tokens.
    embedded = tower.token_embedding(text_NL).to(tower.transformer.get_cast_dtype())
    embedded = embedded + tower.positional_embedding.to(embedded.dtype)
    states = tower.ln_final(tower.transformer(embedded, attn_mask=tower.attn_mask))
    kind = tower.text_pool_type
    pooled = text_global_pool(states, text_NL, kind, eos_token_id=getattr(tower, "text_eos_id", None))
    return _project(tower, pooled), _project(tower, states), _words(text_NL, kind, 0)


def _project(tower: Any, states: Tensor) -> Tensor:
    projection = tower.text_projection
    if projection is None:
        return states
    return projection(states) if isinstance(projection, nn.Linear) else states @ projection


def _words(text_NL: Tensor, pool_type: str, pad_id: int) -> Tensor:
    if pool_type not in ("argmax", "eos"):
        return text_NL != pad_id
    end_N = text_NL.argmax(dim=1)  # the end of a text has the largest id
    places_L = torch.arange(text_NL.shape[1], device=text_NL.device)
    return (places_L > 0) & (places_L < end_N[:, None])


@contextmanager
def _returning_tokens(tower: Any) -> Iterator[None]:
    before = tower.output_tokens
    tower.output_tokens = True
    try:
        yield
    finally:
        tower.output_tokens = before
