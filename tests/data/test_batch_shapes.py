"""Batches have the shape of their step: pictures of its size, texts of its length, of the same samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from vlp.data.batches import DataOptions, TrainingData
from vlp.data.transforms import AugmentOptions, PictureFormat, train_transform
from vlp.data.write import ShardWriter, encode_image
from vlp.durations import Span
from vlp.encoders.tokenizer import openclip_tokenizer
from vlp.shapes import FullShape, Shape, ShapeOptions, shape_at
from vlp.types import Batch

FORMAT = PictureFormat((32, 48), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
FULL = FullShape((32, 48), (8, 8), 12)
PHASES = ShapeOptions.model_validate(
    {"image_size": {"start": 16, "end": 32, "after": 4}, "text_length": {"start": 5, "end": 12, "after": 6}}
)
TOKENIZER: Any = openclip_tokenizer(12)


def shape_of(step: int) -> Shape:
    return shape_at(PHASES, Span(10, 4, 20), step, FULL)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "train"
    with ShardWriter(folder, 6) as writer:
        for i in range(20):
            pixels = np.random.default_rng(i).integers(0, 256, (60, 70, 3), dtype=np.uint8)
            caption = f"a picture of {i} things" + " and more" * (i % 5)
            writer.write(encode_image(Image.fromarray(pixels)), "png", caption)
    return folder


def data(train: Path, rank: int = 0, world: int = 1, **options: Any) -> TrainingData:
    augment = AugmentOptions(crop_scale=(0.4, 1.0), flip=0.5, colour_jitter=(0.2, 0.2, 0.2, 0.02))
    made = DataOptions(train=str(train), augment=augment, **{"workers": 0, "shuffle_window": 7, **options})
    return TrainingData(made, FORMAT, TOKENIZER, 4, 5, rank, world, image_views=2, text_views=1)


def content(batch: Batch) -> list[tuple[str, str, bytes, list[int]]]:
    images = batch.image_VNCHW.transpose(0, 1)
    rows = zip(batch.keys, batch.captions, images, batch.text_NL.tolist(), strict=True)
    return [(key, caption, image.numpy().tobytes(), ids) for key, caption, image, ids in rows]


def test_each_step_has_its_shape(train: Path) -> None:
    found = list(data(train).batches(0, 8, shape_of))
    assert [batch.image_VNCHW.shape for batch in found] == [(2, 4, 3, 16, 24)] * 4 + [(2, 4, 3, 32, 48)] * 4
    assert [batch.text_VNL.shape for batch in found] == [(1, 4, 5)] * 6 + [(1, 4, 12)] * 2
    assert all(batch.image_VNCHW.dtype == torch.uint8 for batch in found)


def test_samples_crops_and_captions_are_those_of_whole_pictures(train: Path) -> None:
    for small, whole in zip(data(train).batches(0, 8, shape_of), data(train).batches(0, 8), strict=True):
        assert (small.keys, small.captions) == (whole.keys, whole.captions)
        views = [batch.image_VNCHW.flatten(0, 1).float() for batch in (small, whole)]
        size = tuple(views[0].shape[2:])
        if size == FORMAT.size:
            assert torch.equal(*views)
            continue
        shrunk = torch.nn.functional.interpolate(views[1], size, mode="bicubic", antialias=True)
        # The same crop, resized in one step and in two.
        assert (views[0] - shrunk).abs().mean() < 4
        assert (views[0] - shrunk.roll(1, 0)).abs().mean() > 20, "those of others"


def test_texts_are_cut_as_open_clip_cuts_them(train: Path) -> None:
    own = SimpleTokenizer()
    for step, batch in enumerate(data(train).batches(0, 8, shape_of)):
        length = 5 if step < 6 else 12
        assert torch.equal(batch.text_NL, own(list(batch.captions), length))
        ends = batch.text_NL.argmax(1)
        assert (batch.text_NL.gather(1, ends[:, None]) == own.eot_token_id).all(), "all of them end"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_any_workers_processes_and_start_give_the_same_pixels(train: Path) -> None:
    whole = [content(batch) for batch in data(train).batches(0, 8, shape_of)]
    for workers in (1, 3):
        assert [content(batch) for batch in data(train, workers=workers).batches(0, 8, shape_of)] == whole
    resumed = [content(batch) for batch in data(train, workers=2).batches(3, 8, shape_of)]
    assert resumed == whole[3:]
    ranks = [list(data(train, rank, 2).batches(0, 8, shape_of)) for rank in range(2)]
    for step, parts in enumerate(zip(*ranks, strict=True)):
        assert [row for rows in zip(*map(content, parts), strict=True) for row in rows] == whole[step]


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_transform_makes_views_of_the_size_that_is_wanted(decode: Any) -> None:
    """The same as a transform of that size, to the bit."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    encoded = encode_image(Image.fromarray(pixels))
    options = AugmentOptions(crop_scale=(0.3, 1.0), flip=0.5, blur=(0.5, 0.1, 1.0))
    make: Callable[..., torch.Tensor] = train_transform(FORMAT, options, decode)
    for size in ((8, 12), (24, 24), (64, 96)):
        out = torch.empty((3, 3, *size), dtype=torch.uint8)
        found = make(encoded, np.random.default_rng(1), 3, out=out)
        small = train_transform(PictureFormat(size, FORMAT.mean, FORMAT.std), options, decode)
        assert found is out
        assert torch.equal(found, small(encoded, np.random.default_rng(1), 3))
