"""Which shapes of pictures and texts the towers take, found out before a run begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from torch import Tensor

from vlp import shapes
from vlp.durations import Schedule, Scheduled, Span, largest, smallest
from vlp.encoders import vision
from vlp.encoders.evaluating import evaluating
from vlp.encoders.two_tower import TwoTower
from vlp.shapes import FullShape, ShapeOptions, shape_at
from vlp.types import UserError


def full_shape(model: TwoTower) -> FullShape:
    """What its towers were made for."""
    length = model.tokenizer.context_length  # type: ignore[attr-defined]
    return FullShape(model.picture_format.size, vision.patch_size(model.clip.visual), length)


def check(model: TwoTower, options: ShapeOptions, span: Span, wanted: frozenset[str] = frozenset()) -> None:
    """Refuse shapes that the towers cannot take, or that would leave them useless at the full one.

    Args:
        model: on any device; on ``meta``, too.
        wanted: needs of the objectives.

    Raises:
        UserError: with the key and the cure.
    """
    full = full_shape(model)
    shapes.check(options, span, full)
    if options.patch_dropout:
        vision.check_dropout(model.clip)
    if options.image_size is not None:
        _check_pictures(model, options, full, wanted)
    if options.text_length is not None:
        _check_texts(model, options, span, full, wanted)


def _check_pictures(model: TwoTower, options: ShapeOptions, full: FullShape, wanted: frozenset[str]) -> None:
    assert options.image_size is not None
    ways: list[Callable[[Tensor], Any]] = [model.encode_image]
    if "image_tokens" in wanted:
        ways.append(model.encode_image_tokens)
    if "captions" in wanted:
        if model.captioner is not None and model.captioner.places is not None:
            raise UserError(
                "train.image_size: model.captioner counts the places of this tower's map, of which smaller pictures "
                "have fewer: remove one of them, or choose a ViT"
            )
        ways.append(model.caption_memory)
    kind = vision.kind(model.clip.visual)
    for side in _sides(options.image_size, full):
        height, width = _of_side(full, side)
        _try(
            model,
            ways,
            torch.zeros(1, 3, height, width, dtype=torch.uint8, device=model.device),
            f"train.image_size: this image tower ({kind}) takes no pictures of {height} x {width}",
            "raise or remove it, or choose a ViT of open_clip or a convolutional tower without attention pooling",
        )


def _sides(size: Scheduled, full: FullShape) -> list[int]:
    """Every one that the run comes to."""
    low, high = int(smallest(size)), int(largest(size))
    step = full.patch[full.size.index(min(full.size))]
    ramp = range(low, high, step) if isinstance(size, Schedule) and size.over != 0 else (low,)
    return sorted({*ramp, high})


def _check_texts(model: TwoTower, options: ShapeOptions, span: Span, full: FullShape, wanted: frozenset[str]) -> None:
    assert options.text_length is not None
    tower, length = getattr(model.clip, "text", model.clip), int(smallest(options.text_length))
    kind, text_1L = type(tower).__name__, model.tokenizer(["a"])
    sees_padding = int(model.text_lengths(text_1L)[0]) == full.text_length
    last = shape_at(options, span, span.total_steps - 1, full).text_length
    if sees_padding and last < full.text_length:
        # Its feature comes from other places of a shorter text: evaluation would be of places never trained.
        start = options.text_length.start if isinstance(options.text_length, Schedule) else options.text_length
        raise UserError(
            f"train.text_length: this text tower ({kind}) sees its padding, so the run must end with texts of its "
            f"{full.text_length} ids: write such as {{start: {start:g}, end: {full.text_length}, after: 80%}}"
        )
    if model.device.type == "meta" and isinstance(tower, HFTextEncoder):
        return  # they mask their padding, so they take texts of any length; they cannot run without values
    ways: list[Callable[[Tensor], Any]] = [model.encode_text]
    if wanted & {"text_tokens", "masked_text", "captions"}:
        ways.append(model.encode_text_tokens)
    _try(
        model,
        ways,
        text_1L[:, :length].to(model.device),
        f"train.text_length: this text tower ({kind}) takes no texts of {length} ids",
        "remove it, or choose a causal text tower of open_clip",
    )


def _try(model: TwoTower, ways: list[Callable[[Tensor], Any]], rows: Tensor, refusal: str, cure: str) -> None:
    with evaluating(model):
        for way in ways:
            try:
                way(rows)
            except (RuntimeError, AssertionError, IndexError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())[:160] or type(error).__name__
                raise UserError(f"{refusal} ({reason}): {cure}") from error


def _of_side(full: FullShape, side: float) -> tuple[int, int]:
    options = ShapeOptions(image_size=side)
    return shape_at(options, Span(1, 1, 1), 0, full).size
