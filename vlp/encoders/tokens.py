"""Local features of open_clip's towers, in the common space: patches of pictures, words of texts.

A tower's own projection takes its tokens where it takes the pooled feature; one forward pass gives both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from torch import Tensor, nn

from vlp.types import UserError


def image_with_tokens(visual: nn.Module, pixels_MCHW: Tensor, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Pooled features MD and those of the patches NPD of the first ``rows`` pictures (class tokens left out).

    Raises:
        UserError: a kind of tower whose patches cannot be had.
    """
    if isinstance(visual, VisionTransformer):
        with _returning_tokens(visual):
            pooled_MD, tokens = visual(pixels_MCHW)
        return pooled_MD, project_patches(visual, tokens[:rows])
    if isinstance(visual, TimmModel) and not hasattr(visual.head, "pool"):
        features = visual.trunk.forward_features(pixels_MCHW)
        pooled_MD = visual.head(visual.trunk.forward_head(features))
        features = features[:rows]
        tokens = visual.head(visual.trunk.forward_head(_one_patch_each(visual.trunk, features)))
        return pooled_MD, tokens.unflatten(0, (len(features), -1))
    raise UserError(
        f"model: an image tower of the kind {type(visual).__name__} gives no patch tokens: "
        "choose a ViT, or a timm tower without timm_pool"
    )


def project_patches(visual: VisionTransformer, tokens_NPW: Tensor) -> Tensor:
    """In the common space, NPD, the tokens that a tower of open_clip gives beside its feature."""
    if visual.final_ln_after_pool and visual.attn_pool is None:
        tokens_NPW = visual.ln_post(tokens_NPW)
    return tokens_NPW if visual.proj is None else tokens_NPW @ visual.proj


def text_with_tokens(
    clip: Any, text_ML: Tensor, marks: Sequence[int], rows: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled features MD; of the first ``rows`` texts those of the positions NLD, and which are words (NL, bool).

    Words are what lies between the start and the end of the text, which have the ids ``marks`` (see `marks_of`).

    Raises:
        UserError: a kind of tower whose words cannot be had.
    """
    tower = getattr(clip, "text", clip)
    text_NL = text_ML[:rows]
    if isinstance(tower, HFTextEncoder):
        with _returning_tokens(tower):
            pooled_MD, tokens = tower(text_ML)
        words_NL = _unmarked(text_NL, tower.config.pad_token_id, marks)
        return pooled_MD, tower.proj(tokens[:rows]), words_NL[:, words_NL.shape[1] - tokens.shape[1] :]
    if isinstance(tower, TextTransformer):
        with _returning_tokens(tower):
            pooled_MD, tokens = tower(text_ML)
        return pooled_MD, project_words(tower, tokens[:rows]), word_mask(clip, text_NL, marks)
    if not isinstance(tower, CLIP):
        raise UserError(
            f"model: a text tower of the kind {type(tower).__name__} gives no tokens of words: "
            "choose a transformer of open_clip or of transformers"
        )
    # The towers of the class CLIP lie bare in the model, and its encode_text gives no tokens.
    embedded = tower.token_embedding(text_ML).to(tower.transformer.get_cast_dtype())
    embedded = embedded + tower.positional_embedding.to(embedded.dtype)
    states = tower.ln_final(tower.transformer(embedded, attn_mask=tower.attn_mask))
    kind, eos_id = tower.text_pool_type, getattr(tower, "text_eos_id", None)
    pooled = text_global_pool(states, text_ML, kind, eos_token_id=eos_id)
    return _project(tower, pooled), _project(tower, states[:rows]), word_mask(clip, text_NL, marks)


def project_words(tower: TextTransformer, tokens_NLW: Tensor) -> Tensor:
    """In the common space, NLD, the tokens that a tower of open_clip gives beside its feature."""
    return _project(tower, tokens_NLW if tower.cls_emb is None else tower.ln_final(tokens_NLW))


def project_states(tower: Any, states_NLW: Tensor) -> Tensor:
    """In the common space, NLD, the states that the transformer of one of open_clip's own text towers ends with."""
    return _project(tower, tower.ln_final(states_NLW))


def word_mask(clip: Any, text_NL: Tensor, marks: Sequence[int]) -> Tensor:
    """What open_clip's own towers see as words (NL, bool)."""
    tower = getattr(clip, "text", clip)
    if isinstance(tower, CLIP):
        return _words(text_NL, tower.text_pool_type, getattr(tower, "text_eos_id", None), 0, marks)
    return _words(text_NL, tower.pool_type, getattr(tower, "eos_id", None), tower.pad_id, marks)


def marks_of(tokenizer: Any) -> tuple[int, ...]:
    """Ids of the start and the end of a text."""
    if isinstance(tokenizer, SimpleTokenizer):
        return tokenizer.sot_token_id, tokenizer.eot_token_id
    inner = tokenizer.tokenizer
    ids = {inner.cls_token_id, inner.bos_token_id, inner.sep_token_id, inner.eos_token_id}
    return tuple(sorted(ids - {None}))


def check(model: Any, wanted: frozenset[str]) -> None:
    """Refuse, before a run begins, towers that do not give the tokens ``wanted``.

    Args:
        model: a `TwoTower` on any device; on ``meta``, too.

    Raises:
        UserError: with the kind of the tower.
    """
    training, clip = model.training, model.clip
    picture = torch.zeros(1, 3, *model.picture_format.size, dtype=torch.uint8, device=model.device)
    text = model.tokenizer(["a word"]).to(model.device)
    tried = {
        "image_tokens": (model.encode_image_tokens, picture, clip.visual),
        "text_tokens": (model.encode_text_tokens, text, getattr(clip, "text", clip)),
    }
    width = model.openclip_config["model_cfg"]["embed_dim"]
    model.eval()
    try:
        for encode, rows, tower in (tried[kind] for kind in sorted(wanted)):
            # Those of transformers always give them, and cannot run without values.
            if not (rows.is_meta and isinstance(tower, HFTextEncoder)):
                _check(encode, rows, tower, width)
    finally:
        model.train(training)


@torch.no_grad()
def _check(encode: Callable[[Tensor], Any], rows: Tensor, tower: nn.Module, width: int) -> None:
    reason = ""
    try:
        shape = tuple(encode(rows)[1].shape)
        if len(shape) != 3 or shape[1] == 0 or shape[2] != width:
            reason = f"their shape is {shape} instead of 1 x tokens x {width}"
    except UserError:
        raise
    except (RuntimeError, AssertionError, AttributeError, IndexError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    if reason:
        kind = type(tower).__name__
        raise UserError(f"model: this tower of the kind {kind} gives no tokens ({reason}): choose another one")


def _one_patch_each(trunk: Any, features: Tensor) -> Tensor:
    """(N P) pictures that show nothing but one patch, as the head of a timm tower takes them.

    What the head does to pooled features (norms, further layers) it then does to each patch.
    """
    if features.ndim == 3:
        prefix = getattr(trunk, "num_prefix_tokens", 0)
        # In place of the class token, too: whichever tokens the head pools, they are this one.
        return features[:, prefix:].flatten(0, 1).unsqueeze(1).expand(-1, prefix + 1, -1)
    if getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(0, 2)[:, None, None]
    return features.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]


def _project(tower: Any, states: Tensor) -> Tensor:
    projection = tower.text_projection
    if projection is None:
        return states
    return projection(states) if isinstance(projection, nn.Linear) else states @ projection


def _words(text_NL: Tensor, pool_type: str, eos_id: int | None, pad_id: int, marks: Sequence[int]) -> Tensor:
    """What open_clip's own towers see as words."""
    if pool_type == "argmax":
        end_N = text_NL.argmax(dim=1)  # the end of a text has the largest id
    elif pool_type == "eos":
        assert eos_id is not None
        end_N = (text_NL == eos_id).int().argmax(dim=1)
    else:
        return _unmarked(text_NL, pad_id, marks)
    places_L = torch.arange(text_NL.shape[1], device=text_NL.device)
    return (places_L > 0) & (places_L < end_N[:, None])


def _unmarked(text_NL: Tensor, pad_id: int, marks: Sequence[int]) -> Tensor:
    """What is no padding, without the start and the end where a text has them."""
    filled_NL = text_NL != pad_id
    # Of what is filled, the first and the last: elsewhere an id of these may stand for a hidden word.
    first_NL = filled_NL & (filled_NL.cumsum(1) == 1)
    last_NL = filled_NL & (filled_NL.flip(1).cumsum(1).flip(1) == 1)
    marked_NL = torch.zeros_like(filled_NL)
    for mark in marks:
        marked_NL |= text_NL == mark
    return filled_NL & ~(marked_NL & (first_NL | last_NL))


@contextmanager
def _returning_tokens(tower: Any) -> Iterator[None]:
    before = tower.output_tokens
    tower.output_tokens = True
    try:
        yield
    finally:
        tower.output_tokens = before
