from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from vlp.data.transforms import (
    AugmentOptions,
    PictureFormat,
    crop_box,
    draw_ground,
    eval_transform,
    jitter,
    to_tensor,
    train_transform,
)

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SQUARE = PictureFormat((16, 16), ZERO, ONE)
WHOLE = AugmentOptions(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_evaluation_equals_open_clip_to_the_pixel(
    mode: Literal["shortest", "longest", "squash"],
    interpolation: Literal["bicubic", "bilinear"],
    size: tuple[int, int],
) -> None:
    ours = eval_transform(PictureFormat(size, ZERO, ONE, interpolation, mode, fill_color=9))
    config = PreprocessCfg(size=size, mean=ZERO, std=ONE, interpolation=interpolation, resize_mode=mode, fill_color=9)
    theirs = image_transform_v2(config, is_train=False)
    for width, height in [(16, 16), (40, 25), (23, 61), (9, 7), (100, 13)]:
        image = noise(width, height)
        tensor = ours(image)
        assert tensor.dtype == torch.uint8
        assert torch.equal(tensor.float() / 255, theirs(image)), (width, height)


def test_the_training_crop_is_torchvisions() -> None:
    options = AugmentOptions(crop_scale=(0.2, 1.0))
    transform = train_transform(PictureFormat((14, 18), ZERO, ONE), options)
    for seed in range(20):
        image = noise(41, 33, seed)
        left, top, right, bottom = crop_box(41, 33, options, np.random.default_rng(seed))
        expected = F.resized_crop(image, top, left, bottom - top, right - left, [14, 18], InterpolationMode.BICUBIC)
        assert torch.equal(transform(image, np.random.default_rng(seed)), to_tensor(expected))


def test_crops_keep_to_their_ranges_and_reach_every_corner() -> None:
    options = AugmentOptions(crop_scale=(0.3, 0.6), crop_ratio=(0.5, 2.0))
    generator = np.random.default_rng(0)
    boxes = np.array([crop_box(200, 200, options, generator) for _ in range(3000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert 0.29 < (w * h / 40000).min() < 0.32
    assert 0.58 < (w * h / 40000).max() < 0.61
    assert 0.49 < (w / h).min() < 0.55
    assert 1.85 < (w / h).max() < 2.03
    assert boxes[:, :2].min() == 0
    assert boxes[:, 2:].max() == 200


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (1, 1), (1, 50), (3, 2)])
def test_extreme_pictures_get_a_crop(width: int, height: int) -> None:
    for seed in range(50):
        left, top, right, bottom = crop_box(width, height, AugmentOptions(), np.random.default_rng(seed))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    assert train_transform(SQUARE, AugmentOptions())(noise(width, height), np.random.default_rng(0)).shape == (
        3,
        16,
        16,
    )


def varied(**options: Any) -> torch.Tensor:
    """Forty draws of one picture that nothing else changes."""
    transform = train_transform(SQUARE, WHOLE.model_copy(update=options))
    return torch.stack([transform(noise(16, 16), np.random.default_rng(seed)) for seed in range(40)])


def test_without_augmentation_nothing_changes() -> None:
    assert torch.equal(varied(), to_tensor(noise(16, 16)).expand(40, -1, -1, -1))


def test_flip_is_a_mirror_image_half_of_the_time() -> None:
    plain = to_tensor(noise(16, 16))
    flipped = [torch.equal(image, plain.flip(2)) for image in varied(flip=0.5)]
    kept = [torch.equal(image, plain) for image in varied(flip=0.5)]
    assert 10 < sum(flipped) < 30
    assert sum(flipped) + sum(kept) == 40


def test_grey_rotation_and_colour_change_the_picture() -> None:
    grey = varied(grey=1.0)
    assert torch.equal(grey[:, 0], grey[:, 1])
    for images in (varied(rotate=30.0), varied(colour_jitter=(0.3, 0.3, 0.3, 0.1))):
        assert len({image.numpy().tobytes() for image in images}) == 40
    assert (varied(rotate=45.0)[:, :, 0, 0] == 255).any()


@pytest.mark.parametrize("which", range(4))
def test_jitter_factors_span_their_strength(which: int) -> None:
    strengths: Any = tuple(0.4 if i == which else 0.0 for i in range(4))
    image = Image.new("RGB", (2, 2), (100, 50, 50))
    images = [jitter(image, strengths, np.random.default_rng(seed)) for seed in range(300)]
    changed = np.array([np.array(image)[0, 0] for image in images])
    assert len(np.unique(changed, axis=0)) > 20
    if which == 0:
        assert 60 <= changed[:, 0].min() < 65
        assert 135 < changed[:, 0].max() <= 140


def test_draws_are_the_same_for_the_same_generator() -> None:
    options = AugmentOptions(flip=0.5, grey=0.5, rotate=10, colour_jitter=(0.2, 0.2, 0.2, 0.05), ground="random")
    transform = train_transform(SQUARE, options)
    first, second = (transform(noise(30, 20), np.random.default_rng(8)) for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    transform(noise(30, 20), np.random.default_rng(9))
    assert torch.equal(state, torch.get_rng_state())


def test_ground() -> None:
    generator = np.random.default_rng(0)
    assert draw_ground(AugmentOptions(), generator) == (255, 255, 255)
    colours = np.array([draw_ground(AugmentOptions(ground="random"), generator) for _ in range(500)])
    assert colours.min() < 5
    assert colours.max() > 250


@pytest.mark.parametrize(
    "bad",
    [
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.9, 0.5)},
        {"crop_ratio": (2.0, 1.0)},
        {"colour_jitter": (0.1, 0.1, 0.1, 0.9)},
        {"flip": 2.0},
        {"blur": 1.0},
    ],
)
def test_options_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AugmentOptions(**bad)
