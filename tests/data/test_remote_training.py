"""Training batches are the same wherever the shards lie: on disk, behind HTTP, in a bucket, behind a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.index import write_index
from vlp.data.batches import DataOptions, TrainingData
from vlp.data.cache import CacheOptions
from vlp.data.captions import CaptionSource
from vlp.data.index import open_shard
from vlp.data.layers import LayerWriter
from vlp.data.sources import Source
from vlp.data.store import Store
from vlp.data.transforms import AugmentOptions, PictureFormat

FORMAT = PictureFormat((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NUM_SAMPLES = 40


@pytest.fixture
def folder(write_shards: Callable[..., Path]) -> Path:
    """Forty samples in five shards, with an index and a layer."""
    folder = write_shards(NUM_SAMPLES, 8)
    for path in sorted(folder.glob("*.tar")):
        shard, _ = open_shard(str(path))
        keys = [shard.key(row) for row in range(len(shard))]
        LayerWriter(None, "rewrites", {"tool": "test"}).write(shard, keys, {"text": [f"rewrite {key}" for key in keys]})
    write_index([str(folder)])
    return folder


def content(train: Any, workers: int = 0, **options: Any) -> list[tuple[str, str, bytes]]:
    """Keys, captions and pixels of two epochs."""

    def tokens(captions: list[str]) -> torch.Tensor:
        return torch.zeros(len(captions), 1, dtype=torch.long)

    options = {"augment": AugmentOptions(crop_scale=(0.5, 1.0), flip=0.5), "shuffle_window": 9, **options}
    captions = [CaptionSource(source="txt"), CaptionSource(source="layer.rewrites")]
    data = TrainingData(
        DataOptions(train=train, captions=captions, workers=workers, **options), FORMAT, tokens, 8, seed=3
    )
    return [
        (key, caption, image.numpy().tobytes())
        for batch in data.batches(0, 2 * NUM_SAMPLES // 8)
        for key, caption, image in zip(batch.keys, batch.captions, batch.image_NCHW, strict=True)
    ]


def put_on(web: Any, folder: Path, *parts: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).parts[0].startswith(parts):
            web.files[str(path.relative_to(folder))] = path.read_bytes()
    return web.url("{00000..00004}.tar")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("parts", [("0", "index", "layers"), ("0", "layers")])
def test_behind_http_with_and_without_an_index(web: Any, folder: Path, workers: int, parts: tuple[str, ...]) -> None:
    address = put_on(web, folder, *parts)
    assert content(address, workers) == content(str(folder))


def test_from_a_bucket(s3: Any, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            Store().write(f"s3://shards/train/{path.relative_to(folder)}", path.read_bytes())
    assert content("s3://shards/train", workers=1) == content(str(folder))


def test_from_a_cache_on_disk(web: Any, folder: Path, tmp_path: Path) -> None:
    address = put_on(web, folder, "0", "index", "layers")
    cache = CacheOptions(folder=str(tmp_path / "cache"), gigabytes=0.1)
    first = content(address, workers=2, cache=cache)
    downloads = [name for name, span in web.ranges if name.endswith(".tar") and span != "bytes=0-0"]
    assert sorted(downloads) == [f"{i:05d}.tar" for i in range(5)], "once for both workers"
    assert first == content(str(folder))


def test_from_a_command_with_layers_elsewhere(folder: Path) -> None:
    piped = Source(
        shards=f"pipe:cat {folder}/{{00000..00004}}.tar", layers=str(folder / "layers"), index=str(folder / "index")
    )
    assert content([piped]) == content(str(folder))
    piped = Source(shards=f"pipe:cat {folder}/{{00000..00004}}.tar", layers=str(folder / "layers"))
    assert content([piped], workers=2) == content(str(folder))


def test_a_mixture_of_places(web: Any, folder: Path) -> None:
    put_on(web, folder, "0", "index", "layers")
    here = {"weight": 1, "layers": str(folder / "layers")}
    local = [Source(shards=f"{folder}/{{00000..00002}}.tar", **here), Source(shards=f"{folder}/00003.tar", weight=2)]
    mixed = [Source(shards=web.url("{00000..00002}.tar"), **here), Source(shards=f"{folder}/00003.tar", weight=2)]
    assert content(mixed) == content(local)
