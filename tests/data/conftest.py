"""Shards on disk: whole data sets, and single tars with any members."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

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


def _servers() -> ModuleType:
    """``store_servers.py``, which no import statement reaches: tests are no package."""
    spec = importlib.util.spec_from_file_location("store_servers", Path(__file__).with_name("store_servers.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def web() -> Iterator[Any]:
    """A WebServer on loopback, with switches that make it misbehave."""
    server = _servers().WebServer()
    yield server
    server.die()


@pytest.fixture(scope="session")
def _s3_port() -> Iterator[int]:
    pytest.importorskip("moto.server")
    with _servers().s3_server() as port:
        yield port


@pytest.fixture
def s3(_s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The Proxy before an S3 server with an empty bucket, ``s3://shards``; the environment leads to it."""
    import boto3

    proxy = _servers().Proxy(_s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = boto3.resource("s3").Bucket("shards")
    bucket.create()
    yield proxy
    proxy.cuts, proxy.bytes_per_second, proxy.is_dead = [], 0, False
    bucket.objects.all().delete()
    bucket.delete()
    proxy.close()
