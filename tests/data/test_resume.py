"""The stream of batches goes on at any step, in any world, over data of any shape, without reading what came before."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_tools.index import write_index
from vlp.data import index, sources
from vlp.data.batches import DataOptions, TrainingData
from vlp.data.captions import CaptionSource
from vlp.data.layers import LayerWriter
from vlp.data.sources import Source
from vlp.data.store import Store
from vlp.data.transforms import AugmentOptions, PictureFormat
from vlp.data.write import encode_image
from vlp.types import Batch

WriteShards = Callable[..., Path]
FORMAT = PictureFormat((4, 4), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CAPTIONS = [CaptionSource(source="txt"), CaptionSource(source="json.more")]
Row = tuple[str, str, bytes]


@cache
def picture(number: int) -> bytes:
    return encode_image(Image.linear_gradient("L").resize((6, 5)).point(lambda value: (value + 9 * number) % 256))


def write_set(folder: Path, counts: Sequence[int], first: int, name: str = "{}.tar") -> Path:
    """A shard each count, zero included; keys go on from ``first``."""
    folder.mkdir()
    for shard, count in enumerate(counts):
        with tarfile.open(folder / name.format(shard), "w") as tar:
            for i in range(first, first + count):
                members = {"png": picture(i), "txt": b"text %d" % i, "json": b'{"more": ["one %d", "two %d"]}' % (i, i)}
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{i}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        first += count
    return folder


def write_scores(folder: Path) -> None:
    writer = LayerWriter(None, "score", {"tool": "test"})
    for path in sorted(folder.glob("*.tar")):
        shard, _ = index.open_shard(str(path))
        keys = [shard.key(row) for row in range(len(shard))]
        writer.write(shard, keys, {"value": np.array([int(key) % 7 for key in keys], float)})


def tokens(captions: list[str]) -> torch.Tensor:
    return torch.tensor([list(caption.encode()[:8].ljust(8)) for caption in captions])


def training_data(train: list[Any], batch: int, rank: int = 0, world: int = 1, **options: Any) -> TrainingData:
    varied = AugmentOptions(crop_scale=(0.3, 1.0), flip=0.5, grey=0.3)
    options = {"workers": 0, "max_bad_fraction": 1.0, **options}
    made = DataOptions(train=train, captions=CAPTIONS, augment=varied, **options)
    return TrainingData(made, FORMAT, tokens, batch, seed=8, rank=rank, world=world)


def content(batch: Batch) -> list[Row]:
    rows = zip(batch.keys, batch.captions, batch.image_NCHW, batch.text_NL, strict=True)
    return [(key, caption, image.numpy().tobytes() + ids.numpy().tobytes()) for key, caption, image, ids in rows]


# ---- Any shape, world and start

counts = st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any)


@settings(max_examples=40, deadline=None)
@given(counts, st.lists(counts, max_size=2), st.integers(1, 12), st.integers(1, 6), st.booleans(), st.data())
def test_every_rank_goes_on_with_its_part_of_the_one_stream(
    plain: list[int], more: list[list[int]], window: int, streams: int, filtered: bool, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sets = [write_set(Path(folder) / str(i), shape, 100 * i) for i, shape in enumerate([plain, *more])]
        for one in sets:
            write_scores(one)
        kept = [[k for k in range(100 * i, 100 * i + sum(s)) if k % 7 > 1] for i, s in enumerate([plain, *more])]
        filtered = filtered and all(kept)
        if not filtered:
            kept = [list(range(100 * i, 100 * i + sum(shape))) for i, shape in enumerate([plain, *more])]
        weighted = bool(more) and data.draw(st.booleans(), label="weighted")
        train = [Source(shards=str(one), weight=1 + i if weighted else None) for i, one in enumerate(sets)]
        if data.draw(st.booleans(), label="indexed"):
            write_index([str(one) for one in sets])
        options = {"shuffle_window": window, "shuffle_streams": streams, "filter": "score > 1" if filtered else None}
        num_samples = sum(map(len, kept))
        world = data.draw(st.integers(1, min(4, num_samples)), label="world")
        batch = world * data.draw(st.integers(1, min(4, num_samples // world)), label="rows of a rank")
        stop = -(-3 * num_samples // batch)
        start = data.draw(st.integers(0, stop - 1), label="first step")

        whole = [content(made) for made in training_data(train, batch, **options).batches(0, stop)]
        parts = [training_data(train, batch, rank, world, **options).batches(start, stop) for rank in range(world)]
        for step, ranks in enumerate(zip(*parts, strict=True), start):
            rows = zip(*map(content, ranks), strict=True)
            assert [row for together in rows for row in together] == whole[step]

    keys = [int(key) for made in whole for key, _, _ in made]
    groups = kept if weighted else [[key for own in kept for key in own]]
    for group in groups:
        own = [key for key in keys if key in group]
        assert weighted or len(own) >= 3 * len(group)
        for begin in range(0, len(own) - len(group) + 1, len(group)):
            assert sorted(own[begin : begin + len(group)]) == group, "every sample once a pass"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("world", [1, 2, 4])
def test_fewer_shards_than_workers(tmp_path: Path, world: int) -> None:
    train = [str(write_set(tmp_path / "train", [9, 1], 0))]
    whole = [content(batch) for batch in training_data(train, 8).batches(0, 6)]
    for workers in (1, 3):
        parts = [training_data(train, 8, rank, world, workers=workers).batches(3, 6) for rank in range(world)]
        for step, ranks in enumerate(zip(*parts, strict=True), 3):
            assert [row for rows in zip(*map(content, ranks), strict=True) for row in rows] == whole[step]


# ---- Time to the first batch


class Traffic:
    """What was read to get there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tables = self.members = self.bytes = self.scans = 0
        load, read_at, scan = sources.load, Store.read_at, sources.scan

        def counted_load(*arguments: Any) -> Any:
            self.tables += 1
            return load(*arguments)

        def counted_read(store: Store, path: str, offset: int, size: int) -> bytes:
            self.members += 1
            self.bytes += size
            return read_at(store, path, offset, size)

        def counted_scan(*arguments: Any) -> Any:
            self.scans += 1
            return scan(*arguments)

        monkeypatch.setattr(sources, "load", counted_load)
        monkeypatch.setattr(Store, "read_at", counted_read)
        monkeypatch.setattr(sources, "scan", counted_scan)


@pytest.mark.parametrize("indexed", [True, False])
def test_the_first_batch_costs_the_same_anywhere_in_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    """Without an index, but with known counts, only the shards of the batch itself are scanned."""
    folder = write_set(tmp_path / "train", [5] * 200, 0, "{:05d}.tar")
    if indexed:
        write_index([str(folder)])
    else:
        (folder / "sizes.json").write_text("{" + ", ".join(f'"{i:05d}.tar": 5' for i in range(200)) + "}")
    read = []
    for step in (0, 1, 60, 124, 125 * 7 + 60):
        with monkeypatch.context() as patch:
            data = training_data([str(folder)], 8, shuffle_window=20, shuffle_streams=4)
            traffic = Traffic(patch)
            next(data.batches(step, step + 1))
        read.append(traffic)
    assert {traffic.members for traffic in read} == {8}, "one read a sample"
    assert max(traffic.bytes for traffic in read) < 1.2 * min(traffic.bytes for traffic in read)
    assert all(0 < traffic.tables <= 8 for traffic in read), "at most a shard a sample"
    assert all(traffic.scans == (0 if indexed else traffic.tables) for traffic in read)
