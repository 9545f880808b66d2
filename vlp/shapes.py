"""How much of a picture and of a text the steps of a run see: patches left out, smaller pictures, shorter texts.

Most of a run does not need all of it: CLIP learns from half of the patches (FLIP, Li et al. 2022, arXiv:2212.00794), or
from small pictures and a few words (CLIPA, Li et al. 2023, arXiv:2305.07017), in a fraction of the time; a short phase
with whole pictures and texts at the end closes the gap. The shape of a step is a pure function of it, so a run that
goes on needs nothing but its step.
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, Field, model_validator

from vlp.durations import Schedule, Scheduled, Span, described, largest, smallest, value_at
from vlp.types import UserError

_IDS = 4  # a ramp of the length of texts moves by so many at once: few lengths, few kernels
_DROPOUT, _SIZE, _LENGTH = "train.patch_dropout", "train.image_size", "train.text_length"


class Shape(NamedTuple):
    """Of one training step: (height, width) of its pictures, ids of its texts, share of the patches it leaves out."""

    size: tuple[int, int]
    text_length: int
    patch_dropout: float


class FullShape(NamedTuple):
    """What the towers were made for: (height, width) of pictures and of a patch of them, ids of the longest text."""

    size: tuple[int, int]
    patch: tuple[int, int]
    text_length: int


class ShapeOptions(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How much of pictures and texts training sees; evaluation sees all."""

    patch_dropout: Scheduled = Field(
        0.0,
        description="share of each picture's patches that is left out before they are embedded, such as 0.5 (FLIP); "
        "`{start: 0.5, end: 0, after: 95%}` ends with whole pictures",
    )
    image_size: Scheduled | None = Field(
        None,
        description="pixels of a picture's shorter side, at most the model's, such as "
        "`{start: 112, end: 224, after: 80%}` (CLIPA); the model's without it",
    )
    text_length: Scheduled | None = Field(
        None,
        description="ids of a text, its start and end included; what is longer is cut, such as "
        "`{start: 16, end: 77, after: 80%}` (CLIPA); the model's context without it",
    )

    @model_validator(mode="after")
    def _shapes_are_possible(self) -> ShapeOptions:
        share = self.patch_dropout
        if not (smallest(share) >= 0 and largest(share) < 1):
            raise ValueError(f"patch_dropout {described(share)} must lie in [0, 1): choose a share such as 0.5")
        for name, value, least in (("image_size", self.image_size, 1), ("text_length", self.text_length, 3)):
            if value is not None and not all(end >= least and end == int(end) for end in _ends(value)):
                raise ValueError(f"{name} {described(value)} must be whole numbers of at least {least}: round them")
        return self

    @property
    def shapes_differ(self) -> bool:
        """Whether any step sees less than whole pictures and texts."""
        return bool(self.patch_dropout) or self.image_size is not None or self.text_length is not None


def shape_at(options: ShapeOptions, span: Span, step: int, full: FullShape) -> Shape:
    """The shape of the update that follows ``step`` finished ones.

    While the size of pictures moves, it is a multiple of a patch; while the length of texts does, one of four.
    """
    size, length = full.size, full.text_length
    if options.image_size is not None:
        short = min(size)
        side = value_at(options.image_size, span, step, _SIZE)
        if side < short:
            height, width = (_multiple(side * whole / short, of) for whole, of in zip(size, full.patch, strict=True))
            size = min(height, size[0]), min(width, size[1])
    if options.text_length is not None:
        ids = value_at(options.text_length, span, step, _LENGTH)
        least = int(smallest(options.text_length))
        length = int(ids) if ids in _ends(options.text_length) else max(least, _multiple(ids, _IDS))
        length = min(length, full.text_length)
    return Shape(size, length, value_at(options.patch_dropout, span, step, _DROPOUT))


def moving(options: ShapeOptions, shape: Shape) -> dict[str, float]:
    """What of a step's shape changes over the run, for the log."""
    values = {"patch_dropout": shape.patch_dropout, "image_size": min(shape.size), "text_length": shape.text_length}
    return {name: float(value) for name, value in values.items() if isinstance(getattr(options, name), Schedule)}


def check(options: ShapeOptions, span: Span, full: FullShape) -> None:
    """Refuse shapes that the towers were not made for, that change nothing, or that the run never comes to.

    Raises:
        UserError: with the key and the values next to it.
    """
    side, patch = min(full.size), full.patch[full.size.index(min(full.size))]
    for key, value, most in ((_SIZE, options.image_size, side), (_LENGTH, options.text_length, full.text_length)):
        if value is not None and largest(value) > most:
            raise UserError(f"{key} {described(value)} exceeds the model's {most}: lower it, or change the model")
        if value == most:
            raise UserError(f"{key} {most} is the model's own and has no effect: remove it")
    for key, value in ((_DROPOUT, options.patch_dropout), (_SIZE, options.image_size), (_LENGTH, options.text_length)):
        if isinstance(value, Schedule):
            value.check(span, key)
    for end in () if options.image_size is None else _ends(options.image_size):
        if end % patch and end != side:
            below, above = int(end // patch * patch), min(side, int(end // patch * patch) + patch)
            choice = f"{below} or {above}" if below else f"{above}"
            raise UserError(f"{_SIZE} {end:g} is no multiple of the patch of {patch} pixels: write {choice}")


def _ends(value: Scheduled) -> tuple[float, ...]:
    return (value.start, value.end) if isinstance(value, Schedule) else (value,)


def _multiple(value: float, of: int) -> int:
    """The multiple that is nearest, at least one."""
    return max(1, int(value / of + 0.5)) * of
