"""Shards on disk: whole data sets, and single tars with any members."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlp.data.write import ShardWriter, encode_image

WriteShards = Callable[..., Path]
WriteTar = Callable[..., Path]


def noise(seed: int, width: int = 20, height: int = 16) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def write_shards(tmp_path: Path) -> WriteShards:
    """``write_shards(10, 4)``: ten samples in shards of four; every picture, caption and key differs."""

    def write(num_samples: int, samples_per_shard: int = 1000, name: str = "train") -> Path:
        with ShardWriter(tmp_path / name, samples_per_shard) as writer:
            for i in range(num_samples):
                rewrites = [f"rewrite {i} a", f"rewrite {i} b"]
                writer.write(encode_image(noise(i)), "png", f"caption {i}", rewrites=rewrites, title=f"title {i}")
        return tmp_path / name

    return write


@pytest.fixture
def write_tar(tmp_path: Path) -> WriteTar:
    """``write_tar([("a.png", b"..."), ...])``: a tar with just these members."""

    def write(members: list[tuple[str, bytes]], name: str = "00000.tar", format: int = tarfile.PAX_FORMAT) -> Path:
        with tarfile.open(tmp_path / name, "w", format=format) as tar:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return tmp_path / name

    return write
