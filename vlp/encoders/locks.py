"""Freezing a tower, or all but its last layer groups (LiT, arXiv:2111.07991)."""

from __future__ import annotations

from typing import Any

from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import lock_text_tower
from torch import nn

from vlp.types import UserError


def lock(clip: Any, tower: str, num_unlocked: int) -> None:
    """Freeze the ``image`` or ``text`` tower of an open_clip model, but not its last layer groups.

    Raises:
        UserError: the tower cannot be locked in part, or has too few groups for anything to stay locked.
    """
    key = f"model.lock_{tower}"
    text = getattr(clip, "text", None)
    part = clip.visual if tower == "image" else clip if text is None else text
    before = _num_frozen(part)
    try:
        if isinstance(part, HFTextEncoder):
            _lock_transformers(part, num_unlocked)
        elif tower == "image":
            part.lock(unlocked_groups=num_unlocked)
            _unlock_pooler(part, num_unlocked)
        else:
            lock_text_tower(part, num_unlocked)
    except (AssertionError, RuntimeError, KeyError, AttributeError) as error:
        raise UserError(f"{key}: this tower cannot be locked in part, write true to lock it all") from error
    if _num_frozen(part) == before:
        raise UserError(f"{key}: {num_unlocked} groups are the whole tower, nothing would be locked: write fewer")


def _unlock_pooler(visual: Any, num_unlocked: int) -> None:
    """open_clip's groups lack the attentional pooler, which belongs to the last block and the norm behind it."""
    if num_unlocked > 1 and getattr(visual, "attn_pool", None) is not None:
        visual.attn_pool.requires_grad_(True)


def _lock_transformers(text: HFTextEncoder, num_unlocked: int) -> None:
    """open_clip's own lock does not know BERT's layers; the projection on top is new and stays trainable."""
    text.transformer.requires_grad_(False)
    layers = max((m for m in text.transformer.modules() if isinstance(m, nn.ModuleList)), key=_num_parameters)
    for layer in list(layers)[max(len(layers) - num_unlocked, 0) :]:
        layer.requires_grad_(True)
    if num_unlocked > len(layers):
        text.transformer.requires_grad_(True)


def _num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _num_frozen(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if not p.requires_grad)
