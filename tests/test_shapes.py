"""The shape of a step: how much of pictures and texts it sees, a pure function of the step."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from vlp import shapes
from vlp.durations import Span
from vlp.shapes import FullShape, ShapeOptions, shape_at
from vlp.types import UserError

SPAN = Span(total_steps=100, global_batch_size=8, num_samples=800)
FULL = FullShape((224, 224), (16, 16), 77)


def options(**given: Any) -> ShapeOptions:
    return ShapeOptions.model_validate(given)


def test_without_options_every_step_sees_all() -> None:
    assert shape_at(options(), SPAN, 0, FULL) == ((224, 224), 77, 0.0)
    assert not options().shapes_differ
    for one in ({"patch_dropout": 0.5}, {"image_size": 112}, {"text_length": 16}):
        assert options(**one).shapes_differ


def test_phases_of_clipa_and_flip_end_with_the_whole() -> None:
    made = options(
        image_size={"start": 112, "end": 224, "after": "80%"},
        text_length={"start": 16, "end": 77, "after": "80%"},
        patch_dropout={"start": 0.5, "end": 0, "after": "95%"},
    )
    assert shape_at(made, SPAN, 79, FULL) == ((112, 112), 16, 0.5)
    assert shape_at(made, SPAN, 80, FULL) == ((224, 224), 77, 0.5)
    assert shape_at(made, SPAN, 95, FULL) == ((224, 224), 77, 0.0)
    assert shapes.moving(made, shape_at(made, SPAN, 0, FULL)) == {
        "patch_dropout": 0.5,
        "image_size": 112,
        "text_length": 16,
    }
    assert shapes.moving(options(image_size=112), shape_at(options(image_size=112), SPAN, 0, FULL)) == {}


def test_what_moves_slowly_moves_by_patches_and_by_four_ids() -> None:
    made = options(image_size={"start": 64, "end": 224, "over": 100}, text_length={"start": 5, "end": 77, "over": 100})
    found = [shape_at(made, SPAN, step, FULL) for step in range(100)]
    sides, lengths = [shape.size[0] for shape in found], [shape.text_length for shape in found]
    assert sorted(set(sides)) == list(range(64, 225, 16))
    assert sides == sorted(sides)
    assert (lengths[0], lengths[-1]) == (5, 77), "the ends are as they are written"
    assert {length % 4 for length in lengths[1:-1] if length > 5} == {0}
    assert lengths == sorted(lengths), "never below the start, though 5.7 is nearer to 4 than to 8"
    assert all(size == size[::-1] for size, *_ in found)


def test_pictures_that_are_no_squares_keep_their_ratio() -> None:
    full = FullShape((160, 240), (16, 16), 77)
    assert shape_at(options(image_size=80), SPAN, 0, full).size == (80, 128)  # 120 lies between 112 and 128
    assert shape_at(options(image_size=160), SPAN, 0, full).size == (160, 240)
    assert shape_at(options(image_size=16), SPAN, 0, full).size == (16, 32)
    tall = FullShape((240, 160), (16, 16), 77)
    assert shape_at(options(image_size=80), SPAN, 0, tall).size == (128, 80)


def test_a_size_that_is_no_multiple_of_its_patches_is_whole_at_the_end() -> None:
    """384 pixels are 27 patches of 14, and six pixels that no tower sees."""
    full = FullShape((384, 384), (14, 14), 64)
    made = options(image_size={"start": 196, "end": 384, "over": "100%"})
    shapes.check(made, SPAN, full)
    sides = [shape_at(made, SPAN, step, full).size[0] for step in range(100)]
    assert (sides[0], sides[-1]) == (196, 384)
    assert all(side % 14 == 0 for side in sides if side < 384)
    nearly = FullShape((190, 190), (16, 16), 64)  # 12 patches would be 192 pixels
    made = options(image_size={"start": 160, "end": 190, "over": "100%"})
    assert max(shape_at(made, SPAN, step, nearly).size[0] for step in range(100)) == 190


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"patch_dropout": 1.0}, r"patch_dropout 1 must lie in \[0, 1\): choose a share such as 0.5"),
        ({"patch_dropout": {"start": 0.5, "end": -0.1}}, r"patch_dropout 0.5 to -0.1 must lie in"),
        ({"image_size": 112.5}, "image_size 112.5 must be whole numbers of at least 1: round them"),
        ({"image_size": {"start": 0, "end": 224}}, "image_size 0 to 224 must be whole"),
        ({"text_length": 2}, "text_length 2 must be whole numbers of at least 3"),
        ({"image_size": {"start": 112, "end": 112}}, "does not move"),
        ({"text_size": 3}, "Extra inputs are not permitted"),
    ],
)
def test_shapes_that_are_none_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        options(**given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"image_size": 256}, "train.image_size 256 exceeds the model's 224: lower it, or change the model"),
        ({"image_size": {"start": 112, "end": 448}}, "train.image_size 112 to 448 exceeds the model's 224"),
        ({"text_length": {"start": 16, "end": 80, "after": 3}}, "train.text_length 16 to 80 exceeds the model's 77"),
        ({"image_size": 224}, "train.image_size 224 is the model's own and has no effect: remove it"),
        ({"text_length": 77}, "train.text_length 77 is the model's own and has no effect: remove it"),
        ({"image_size": 100}, "train.image_size 100 is no multiple of the patch of 16 pixels: write 96 or 112"),
        ({"image_size": {"start": 8, "end": 224, "after": 3}}, "train.image_size 8 is no multiple .*: write 16"),
        ({"patch_dropout": {"start": 0.5, "end": 0, "after": 100}}, "train.patch_dropout: stays 0.5 to the end"),
        ({"image_size": {"start": 112, "end": 224, "after": "2 epochs"}}, "train.image_size: stays 112 to the end"),
        ({"text_length": {"start": 16, "end": 77, "after": "2 weeks"}}, "train.text_length.after: '2 weeks' is no dur"),
    ],
)
def test_shapes_that_the_model_or_the_run_does_not_allow_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}") as raised:
        shapes.check(options(**given), SPAN, FULL)
    assert "\n" not in str(raised.value)


def test_what_fits_passes() -> None:
    for given in ({"image_size": 112, "text_length": 76, "patch_dropout": 0.75}, {"image_size": 16}, {}):
        shapes.check(options(**given), SPAN, FULL)
