"""Local features of open_clip's towers: patches of pictures, words of texts, also in the common space.

A tower's own projection takes its tokens where it takes the pooled feature; one forward pass gives all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from torch import Tensor, nn
from torch.func import functional_call

from vlp.encoders.vision import PatchDropout, embedding
from vlp.types import UserError


class States(NamedTuple):
    """A tower's features, and what it knows of each patch or position before its projection, of the first rows.

    Attributes:
        feature_MD: of all rows, not normalised.
        states_NLW: as the tower gives them beside its feature, class tokens left out.
        in_common: the same in the common space, NLD, as the tower's projection takes them there.
    """

    feature_MD: Tensor
    states_NLW: Tensor
    in_common: Callable[[], Tensor]


def image_states(
    visual: nn.Module, pixels_MCHW: Tensor, rows: int | None = None, dropout: PatchDropout | None = None
) -> States:
    """Features of pictures, and the states of the patches of the first ``rows``, without those that are left out.

    Raises:
        UserError: a kind of tower whose patches cannot be had.
    """
    if isinstance(visual, VisionTransformer):
        with embedding(visual, pixels_MCHW, dropout), _returning_tokens(visual):
            feature_MD, states = visual(pixels_MCHW)
        states = states[:rows]
        return States(feature_MD, states, lambda: _project_patches(visual, states))
    if isinstance(visual, TimmModel) and not hasattr(visual.head, "pool"):
        trunk = visual.trunk
        with embedding(visual, pixels_MCHW, dropout):
            features = trunk.forward_features(pixels_MCHW)
        feature_MD, features = visual.head(trunk.forward_head(features)), features[:rows]

        def in_common() -> Tensor:
            tokens = visual.head(trunk.forward_head(_one_patch_each(trunk, features)))
            return tokens.unflatten(0, (len(features), -1))

        return States(feature_MD, _patches(trunk, features), in_common)
    raise UserError(
        f"model: an image tower of the kind {type(visual).__name__} gives no patch tokens: "
        "choose a ViT, or a timm tower without timm_pool"
    )


@torch.no_grad()
def patches(visual: Any, size: tuple[int, int]) -> tuple[int, int | None]:
    """Width of a patch's state, and how many patches a picture has where they do not know their places.

    Those of a ViT know them from its embedding of positions, those of a map of features do not.
    """
    training = visual.training
    device = next(visual.parameters()).device
    states_1PW = image_states(visual.eval(), torch.zeros(1, 3, *size, device=device)).states_NLW
    visual.train(training)
    is_map = isinstance(visual, TimmModel) and not hasattr(visual.trunk, "pos_embed")
    return states_1PW.shape[2], states_1PW.shape[1] if is_map else None


def text_states(clip: Any, text_ML: Tensor, rows: int | None = None) -> States:
    """Features of texts, which may be shorter than the context, and the states of the positions of the first ``rows``.

    Raises:
        UserError: a kind of tower whose words cannot be had.
    """
    tower = getattr(clip, "text", clip)
    mask, length = getattr(tower, "attn_mask", None), text_ML.shape[1]
    if mask is not None and length < len(mask):
        mask = mask[:length, :length]
    if isinstance(tower, HFTextEncoder | TextTransformer):
        # A tower with a class token cuts its mask itself.
        cut = {} if mask is None or tower.cls_emb is not None else {"attn_mask": mask}
        with _returning_tokens(tower):
            feature_MD, states = functional_call(tower, cut, (text_ML,)) if cut else tower(text_ML)
        states = states[:rows]
        if isinstance(tower, HFTextEncoder):
            return States(feature_MD, states, lambda: tower.proj(states))
        return States(feature_MD, states, lambda: _project(tower, _normed(tower, states)))
    if not isinstance(tower, CLIP):
        raise UserError(
            f"model: a text tower of the kind {type(tower).__name__} gives no tokens of words: "
            "choose a transformer of open_clip or of transformers"
        )
    # The towers of the class CLIP lie bare in the model, and its encode_text gives no tokens.
    embedded = tower.token_embedding(text_ML).to(tower.transformer.get_cast_dtype())
    embedded = embedded + tower.positional_embedding[:length].to(embedded.dtype)
    states = tower.ln_final(tower.transformer(embedded, attn_mask=mask))
    kind, eos_id = tower.text_pool_type, getattr(tower, "text_eos_id", None)
    pooled = text_global_pool(states, text_ML, kind, eos_token_id=eos_id)
    states = states[:rows]
    return States(_project(tower, pooled), states, lambda: _project(tower, states))


def _normed(tower: TextTransformer, states_NLW: Tensor) -> Tensor:
    """open_clip's tower normalises what it gives beside its feature only where no class token stands behind it."""
    return states_NLW if tower.cls_emb is None else tower.ln_final(states_NLW)


def word_mask(clip: Any, text_NL: Tensor, marks: Sequence[int], length: int) -> Tensor:
    """Which of the ``length`` positions that a tower gives states of are words (bool).

    Words are what lies between the start and the end of the text, which have the ids ``marks`` (see `marks_of`).
    """
    tower = getattr(clip, "text", clip)
    if isinstance(tower, HFTextEncoder):
        return _unmarked(text_NL, tower.config.pad_token_id, marks)[:, text_NL.shape[1] - length :]
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


def _patches(trunk: Any, features: Tensor) -> Tensor:
    """NPC, without class tokens, of what a timm tower gives before its head."""
    if features.ndim == 3:
        return features[:, getattr(trunk, "num_prefix_tokens", 0) :]
    if getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


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


def _project_patches(visual: VisionTransformer, states: Tensor) -> Tensor:
    if visual.final_ln_after_pool and visual.attn_pool is None:
        states = visual.ln_post(states)
    return states if visual.proj is None else states @ visual.proj


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
