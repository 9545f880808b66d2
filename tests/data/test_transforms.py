from __future__ import annotations

import io
import random
from typing import Any, Literal

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F

from vlp.data.transforms import (
    AugmentOptions,
    PictureFormat,
    crop_box,
    draw_ground,
    eval_transform,
    jitter,
    largest_reduction,
    randaugment,
    reduced_box,
    to_tensor,
    train_transform,
)

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SQUARE = PictureFormat((16, 16), ZERO, ONE)
PHOTO = PictureFormat((224, 224), ZERO, ONE)
WHOLE = AugmentOptions(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft colours, finer and finer detail of falling strength, sharp edges and a little noise."""
    generator = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0)
    for cells, strength in [(4, 50), (16, 20), (64, 8)]:
        grid = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        soft = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(soft, dtype=float) / 128 - 1) * strength
    for _ in range(8):
        left, top = generator.integers(0, width), generator.integers(0, height)
        pixels[top : top + height // 4, left : left + width // 5] += generator.integers(-60, 60, 3)
    pixels += generator.normal(0, 3, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image, **options: Any) -> bytes:
    return encoded(image, "JPEG", **{"quality": 90, "subsampling": 2, **options})


def pillows(image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Pillow's crop and resize, columns first: since version 13 it takes the rows first where that is less work."""
    crop = image.crop(box)
    for part in [(size[1], crop.height), (size[1], size[0])]:
        crop = crop.resize(part, Image.Resampling.BICUBIC)
    return np.asarray(crop).transpose(2, 0, 1).astype(int)


def difference(view: torch.Tensor, reference: np.ndarray | torch.Tensor) -> tuple[float, int]:
    """Mean and largest, of 255."""
    gaps = np.abs(view.numpy().astype(int) - np.asarray(reference).astype(int))
    return float(gaps.mean()), int(gaps.max())


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
        mean, largest = difference(transform(encoded(image), np.random.default_rng(seed))[0], to_tensor(expected))
        assert mean < 0.5  # noise, and Pillow may take the rows before the columns; a crop beside it is 60 off
        assert largest < 12


@pytest.mark.parametrize("size", [(640, 480), (1280, 960), (341, 256), (480, 640), (100, 80), (60, 300), (224, 224)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exact_is_pillows_crop_and_resize(size: tuple[int, int], kind: str) -> None:
    data = jpeg(photo(*size)) if kind == "JPEG" else encoded(photo(*size))
    decoded = Image.open(io.BytesIO(data))
    for options in (AugmentOptions(), AugmentOptions(crop_scale=(0.1, 1.0))):
        view = train_transform(PHOTO, options)(data, np.random.default_rng(1))[0]
        mean, largest = difference(
            view, pillows(decoded, crop_box(*size, options, np.random.default_rng(1)), (224, 224))
        )
        assert mean <= 0.05
        assert largest <= 3


def test_bilinear_models_get_bilinear_crops() -> None:
    data = encoded(photo(300, 200))
    view = train_transform(PictureFormat((40, 40), ZERO, ONE, "bilinear"), WHOLE)(data, np.random.default_rng(0))[0]
    box = crop_box(300, 200, WHOLE, np.random.default_rng(0))
    expected = photo(300, 200).crop(box).resize((40, 40), Image.Resampling.BILINEAR)
    assert difference(view, to_tensor(expected))[0] < 0.05


@pytest.mark.parametrize(
    ("size", "most"), [((640, 480), 2.0), ((1280, 960), 2.0), ((1999, 1501), 2.0), ((341, 256), 0.0)]
)
def test_fast_is_close_to_exact(size: tuple[int, int], most: float) -> None:
    """At 341x256 no smaller scale would do, so that both modes are the same."""
    data = jpeg(photo(*size))
    exact, fast = (train_transform(PHOTO, AugmentOptions(), mode) for mode in ("exact", "fast"))
    means = []
    for seed in range(6):
        views = [transform(data, np.random.default_rng(seed))[0] for transform in (exact, fast)]
        means.append(difference(views[1], views[0])[0])
    assert max(means) <= most
    assert max(means) > 0 or not most


def test_a_reduced_crop_covers_the_view_and_only_just() -> None:
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(3000):
        left, top, width, height, *size = generator.integers(1, 200, 6).tolist()
        box = (left, top, left + width, top + height)
        reduction = largest_reduction(box, (size[0], size[1]))
        seen.add(reduction)
        if reduction > 1:
            x1, y1, x2, y2 = reduced_box(box, reduction)
            assert y2 - y1 >= size[0]
            assert x2 - x1 >= size[1]
        if reduction < 8:
            assert height < 2 * reduction * size[0] or width < 2 * reduction * size[1]
    assert seen == {1, 2, 4, 8}
    assert reduced_box((3, 5, 10, 11), 1) == (3, 5, 10, 11)


def test_views() -> None:
    """View 0 does not depend on how many there are, nor on whether another view needs a larger scale."""
    options = AugmentOptions(crop_scale=(0.1, 1.0), flip=0.5, grey=0.3, rotate=10)
    data = jpeg(photo(640, 480))
    for mode in ("exact", "fast"):
        transform = train_transform(PictureFormat((60, 60), ZERO, ONE), options, mode)
        for seed in range(5):
            four = transform(data, np.random.default_rng(seed), 4)
            assert four.shape == (4, 3, 60, 60)
            assert len({view.numpy().tobytes() for view in four}) == 4
            for num_views in (1, 2):
                fewer = transform(data, np.random.default_rng(seed), num_views)
                assert torch.equal(fewer, four[:num_views])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_views_are_written_where_they_are_wanted(memory_format: torch.memory_format) -> None:
    transform = train_transform(SQUARE, AugmentOptions())
    batch = torch.zeros((6, 3, 16, 16), dtype=torch.uint8).contiguous(memory_format=memory_format)
    out = transform(encoded(noise(30, 20)), np.random.default_rng(0), 2, out=batch[2:4])
    assert torch.equal(batch[2:4], transform(encoded(noise(30, 20)), np.random.default_rng(0), 2))
    assert out.data_ptr() == batch[2:4].data_ptr()
    assert not batch[:2].any()
    assert not batch[4:].any()
    with pytest.raises(AssertionError):
        transform(encoded(noise(30, 20)), np.random.default_rng(0), 1, out=batch[2:4])


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
    for data in (encoded(noise(width, height)), jpeg(noise(width, height))):
        for mode in ("exact", "fast"):
            view = train_transform(SQUARE, AugmentOptions(), mode)(data, np.random.default_rng(0))
            assert view.shape == (1, 3, 16, 16)


BLURS: list[dict[str, Any]] = [{}, {"blur": (1.0, 0.5, 0.5)}, {"blur": (1.0, 2.0, 2.0)}]


def varied(**options: Any) -> torch.Tensor:
    """Forty draws of one picture that nothing else changes."""
    transform = train_transform(SQUARE, WHOLE.model_copy(update=options))
    return torch.cat([transform(encoded(noise(16, 16)), np.random.default_rng(seed)) for seed in range(40)])


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
    for images in (varied(rotate=30.0), varied(colour_jitter=(0.3, 0.3, 0.3, 0.1)), varied(blur=(1.0, 0.1, 2.0))):
        assert len({image.numpy().tobytes() for image in images}) == 40
    assert len({image.numpy().tobytes() for image in varied(randaugment=(2, 9))}) > 25


def test_corners_of_a_turned_picture_have_the_colour_of_the_ground() -> None:
    red = encoded(Image.new("RGBA", (60, 60), (200, 0, 0, 128)))
    assert (varied(rotate=45.0)[:, :, 0, 0] == 255).any()
    options = WHOLE.model_copy(update={"rotate": 45.0, "ground": "random"})
    for seed in range(10):
        ground = draw_ground(options, np.random.default_rng(seed))
        view = train_transform(PictureFormat((60, 60), ZERO, ONE), options)(red, np.random.default_rng(seed))[0]
        angle = abs(np.random.default_rng(seed).random(4)[3] * 2 - 1) * 45
        if angle > 10:
            assert tuple(view[:, 0, 0].tolist()) == ground


def test_blur_smooths_more_with_a_larger_sigma_and_keeps_the_mean() -> None:
    plain, little, much = (varied(**options).float() for options in BLURS)
    assert plain.std(dim=(2, 3)).mean() > 1.1 * little.std(dim=(2, 3)).mean() > 2 * much.std(dim=(2, 3)).mean()
    assert (plain.mean(dim=(2, 3)) - much.mean(dim=(2, 3))).abs().max() < 4
    changed = [not torch.equal(image, plain[0]) for image in varied(blur=(0.5, 1.0, 2.0)).float()]
    assert 10 < sum(changed) < 30


def test_randaugment_is_torchvisions_and_leaves_its_generator_alone() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    changed = [randaugment(noise(16, 16), (2, 15), (0, 90, 0), seed) for seed in range(30)]
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(3)
    theirs = v2.RandAugment(2, 15, interpolation=InterpolationMode.BILINEAR, fill=[0, 90, 0])(noise(16, 16))
    assert np.array_equal(changed[3], theirs)
    assert len({image.tobytes() for image in changed}) > 20


def test_an_option_that_is_off_draws_nothing() -> None:
    """So a recipe keeps its crops when an option that comes later in the order is switched on."""

    class Counting(np.random.Generator):
        calls = 0

        def random(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().random(*args, **kwargs)

    generator = Counting(np.random.PCG64(0))
    train_transform(SQUARE, WHOLE)(encoded(noise(16, 16)), generator)
    assert generator.calls == 1
    plain, mirrored = varied(crop_scale=(0.2, 1.0)), varied(crop_scale=(0.2, 1.0), flip=1.0)
    assert torch.equal(mirrored, plain.flip(3))


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
    options = AugmentOptions(
        flip=0.5,
        grey=0.5,
        rotate=10,
        colour_jitter=(0.2, 0.2, 0.2, 0.05),
        ground="random",
        randaugment=(2, 9),
        blur=(0.5, 0.1, 2.0),
    )
    data = encoded(noise(30, 20))
    transform = train_transform(SQUARE, options)
    first, second = (transform(data, np.random.default_rng(8), 3) for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    np_state, py_state = np.random.get_state()[1].tolist(), random.getstate()
    transform(data, np.random.default_rng(9))
    assert torch.equal(state, torch.get_rng_state())
    assert np.random.get_state()[1].tolist() == np_state
    assert random.getstate() == py_state


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
        {"blur": (0.5, 2.0, 1.0)},
        {"blur": (0.0, 1.0, 2.0)},
        {"randaugment": (0, 9)},
        {"randaugment": (2, 31)},
        {"sharpen": 1.0},
    ],
)
def test_options_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AugmentOptions(**bad)
