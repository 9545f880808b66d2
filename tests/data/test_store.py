"""Bytes from anywhere: the disk, a web server, S3 and other stores, commands. Faults of servers: test_remote."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vlp.data.samples import BadSample
from vlp.data.store import Store, UnreadableError, forget, is_remote
from vlp.data.transports import ReadError
from vlp.data.transports.stores import BLOCK
from vlp.types import UserError


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def quick(**more: Any) -> Store:
    return Store(**{"retries": 3, "timeout": 1.0, "first_wait": 0.02, **more})


@pytest.fixture
def shard(web: Any) -> bytes:
    web.files["a.tar"] = noise(1_000_000)
    return web.files["a.tar"]


def test_what_is_remote() -> None:
    assert is_remote("http://x/a.tar")
    assert is_remote("s3://x/a.tar")
    assert is_remote("pipe:cat a.tar")
    assert not is_remote("/data/a.tar")
    assert not is_remote("a:b.tar")


# Local files


def test_local_files(tmp_path: Path) -> None:
    path = str(tmp_path / "folder" / "a.tar")
    store = Store()
    assert not store.exists(path)
    store.write(path, b"0123456789")
    assert store.exists(path)
    assert store.length(path) == 10
    assert store.read_at(path, 3, 4) == b"3456"
    assert store.read_all(path) == b"0123456789"
    with store.open_stream(path) as stream:
        assert stream.read(2) == b"01"
    assert store.local_copy(path) == path
    assert os.listdir(tmp_path / "folder") == ["a.tar"]


def test_another_file_at_the_same_local_path(tmp_path: Path) -> None:
    path, store = str(tmp_path / "a.tar"), Store()
    store.write(path, b"old")
    assert store.read_at(path, 0, 3) == b"old"
    store.write(path, b"new")
    assert store.read_at(path, 0, 3) == b"old"  # the descriptor is kept: a shard that changes is indexed anew
    forget(path)
    assert store.read_at(path, 0, 3) == b"new"


def test_more_local_files_than_may_be_open(tmp_path: Path) -> None:
    store = Store()
    for i in range(200):
        (tmp_path / str(i)).write_bytes(b"%03d" % i)
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda i: store.read_at(str(tmp_path / str(i % 200)), 0, 3), range(2000))
        assert list(read) == [b"%03d" % (i % 200) for i in range(2000)]
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) <= before + 64


def test_a_local_file_that_is_missing_or_short(tmp_path: Path) -> None:
    path, store = str(tmp_path / "a.tar"), Store()
    with pytest.raises(BadSample, match="unreadable shard") as caught:
        store.read_at(path, 0, 1)
    assert caught.value.kind == "unreadable shard"
    with pytest.raises(UserError, match=r"a\.tar cannot be read: No such file"):
        store.read_all(path)
    with pytest.raises(UserError, match=r"a\.tar"):
        store.length(path)
    store.write(path, b"0123")
    with pytest.raises(BadSample, match="shorter"):
        store.read_at(path, 2, 4)


# HTTP


def test_web_files(web: Any, shard: bytes) -> None:
    store, url = quick(), web.url("a.tar")
    assert store.exists(url)
    assert not store.exists(web.url("b.tar"))
    assert store.length(url) == len(shard)
    web.sent = 0
    assert store.read_at(url, 1000, 5000) == shard[1000:6000]
    assert store.read_at(url, 0, 10) == shard[:10]
    assert store.read_at(url, 5, 0) == b""
    assert web.sent == 5010  # a range is asked for, not more
    assert store.read_all(url) == shard
    assert web.connections <= 3  # kept, but for answers that were not read


def test_an_empty_web_file(web: Any) -> None:
    web.files["empty.json"] = b""
    assert quick().read_all(web.url("empty.json")) == b""
    assert quick().length(web.url("empty.json")) == 0


def test_a_tar_is_scanned_while_it_comes(web: Any, write_tar: Callable[..., Path]) -> None:
    path = write_tar([(f"{i}.png", noise(3000, i)) for i in range(300)])
    web.files["a.tar"] = path.read_bytes()
    web.cuts = [100_000, 200_000, 300_000]
    with quick().open_stream(web.url("a.tar")) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        found = [(member.name, member.offset_data, member.size) for member in tar]
    with tarfile.open(path) as tar:
        assert found == [(member.name, member.offset_data, member.size) for member in tar]


def test_a_stream_skips_forward(web: Any, shard: bytes) -> None:
    with quick().open_stream(web.url("a.tar")) as stream:
        assert stream.read(10) == shard[:10]
        assert stream.seek(900_000) == stream.tell() == 900_000
        assert stream.read(10) == shard[900_000:900_010]
        with pytest.raises(OSError, match="forward"):
            stream.seek(0)
        assert stream.read() == shard[900_010:]
        assert stream.read(1) == b""


# Processes


def test_a_store_is_pickled(web: Any, shard: bytes) -> None:
    store = quick()
    store.read_at(web.url("a.tar"), 0, 10)
    assert pickle.loads(pickle.dumps(store)).read_at(web.url("a.tar"), 5, 10) == shard[5:15]


def in_forks(check: Callable[[], None], number: int = 3) -> None:
    """Forked as the workers of a DataLoader are."""
    children = [multiprocessing.get_context("fork").Process(target=check) for _ in range(number)]
    for child in children:
        child.start()
    for child in children:
        child.join(10)
        assert child.exitcode == 0


def test_forked_workers_have_connections_of_their_own(web: Any, shard: bytes, tmp_path: Path) -> None:
    store, url = quick(), web.url("a.tar")
    (tmp_path / "b.tar").write_bytes(shard)

    def check() -> None:
        for i in range(50):
            assert store.read_at(url, i * 1000, 1000) == shard[i * 1000 : (i + 1) * 1000]
            assert store.read_at(str(tmp_path / "b.tar"), i, 1000) == shard[i : i + 1000]

    check()
    in_forks(check)
    check()
    assert web.connections == 4


def test_forked_workers_read_s3(s3: Any) -> None:
    store, data = quick(), noise(100_000)
    store.write("s3://shards/a.tar", data)

    def check() -> None:
        assert store.read_at("s3://shards/a.tar", 5, 1000) == data[5:1005]

    check()
    in_forks(check, 2)
    check()


# S3, and what else fsspec knows: memory:// stands for stores that need an account, such as gs://


def test_s3(s3: Any) -> None:
    store, data = quick(), noise(100_000)
    for name in ("b.tar", "a.tar", "a.json"):
        store.write(f"s3://shards/train/{name}", data)
    path = "s3://shards/train/a.tar"
    assert store.exists(path)
    assert not store.exists("s3://shards/train/c.tar")
    assert store.length(path) == len(data)
    assert store.read_all(path) == data
    s3.passed = 0
    assert store.read_at(path, 10, 100) == data[10:110]
    assert s3.passed < 2000
    tars = ["s3://shards/train/a.tar", "s3://shards/train/b.tar"]
    for pattern in ("s3://shards/train", "s3://shards/train/", "s3://shards/*/*.tar", "s3://shards/train/[ab].tar"):
        assert store.expand(pattern) == tars
    assert store.expand(path) == [path]
    with pytest.raises(UserError, match=r"no \.tar"):
        store.expand("s3://shards/train/x*.tar")
    for offset in (len(data) - 5, len(data) + 5):
        with pytest.raises(BadSample, match="unreadable shard"):
            store.read_at(path, offset, 10)
    for missing in ("s3://shards/train/c.tar", "s3://no-such-bucket/c.tar"):
        with pytest.raises(BadSample, match="is not there"):
            store.read_at(missing, 0, 10)
        with pytest.raises(UnreadableError, match="is not there"):
            store.read_all(missing)


def test_s3_cut_and_slow_in_the_middle_of_a_shard(s3: Any) -> None:
    store, data = quick(), noise(2 * BLOCK + 1_000_000)
    store.write("s3://shards/a.tar", data)
    s3.passed, s3.bytes_per_second = 0, 60e6
    s3.cuts = [1_000_000, 500_000, 2_000_000]
    assert store.read_all("s3://shards/a.tar") == data
    assert not s3.cuts
    assert s3.passed < len(data) + 3_500_000  # a cut costs what had come of its block


def test_a_dead_s3(s3: Any) -> None:
    store = quick(retries=2)
    store.write("s3://shards/a.tar", b"0123456789")
    s3.is_dead = True
    began = time.monotonic()
    with pytest.raises(BadSample, match=r"s3://shards/a\.tar: .*gave up after 3 attempts"):
        store.read_at("s3://shards/a.tar", 0, 4)
    assert time.monotonic() - began < 8
    s3.is_dead = False
    time.sleep(0.2)  # until it is tried again
    assert store.read_at("s3://shards/a.tar", 0, 4) == b"0123"


def test_s3_that_stalls(s3: Any) -> None:
    store = quick(retries=1, timeout=0.5)
    store.write("s3://shards/a.tar", noise(1_000_000))
    s3.bytes_per_second = 2_000.0  # 65,536 bytes, then half a minute of silence
    began = time.monotonic()
    with pytest.raises(BadSample, match="Timeout"):
        store.read_at("s3://shards/a.tar", 0, 1_000_000)
    assert time.monotonic() - began < 10


def test_an_s3_shard_that_changes_while_it_is_read(s3: Any) -> None:
    store = quick()
    store.write("s3://shards/a.tar", noise(BLOCK + 1000))
    with store.open_stream("s3://shards/a.tar") as stream:
        stream.read(10)
        store.write("s3://shards/a.tar", noise(BLOCK + 1000, 1))
        with pytest.raises(ReadError, match="changed"):
            stream.read()


def test_any_fsspec_protocol() -> None:
    store, data = quick(), noise(BLOCK + 1000)
    store.write("memory://shards/a.tar", data)
    assert store.read_all("memory://shards/a.tar") == data
    assert store.read_at("memory://shards/a.tar", 5, 10) == data[5:15]
    assert store.expand("memory://shards") == ["memory://shards/a.tar"]
    assert not store.exists("memory://shards/b.tar")
    with pytest.raises(BadSample, match=f"has only {len(data)} bytes"):
        store.read_at("memory://shards/a.tar", len(data) - 5, 10)
    with pytest.raises(UserError, match="folder"):
        store.read_all("memory://shards")


@pytest.mark.parametrize("status", [401, 403])
def test_optional_files_that_are_refused_are_not_there(web: Any, status: int) -> None:
    store, url = quick(), web.url("a.json")
    web.absent = status
    assert not store.exists(url, optional=True)
    with pytest.raises(UnreadableError, match=f"refuses it .HTTP {status}"):
        store.exists(url)
    web.files["a.json"] = b"{}"
    assert store.exists(url, optional=True)
    web.broken = {"a.json"}
    with pytest.raises(UnreadableError, match="HTTP 500"):
        store.exists(url, optional=True)


def test_optional_files_that_a_bucket_refuses_are_not_there() -> None:
    class Secretive(MemoryFileSystem):
        protocol = "secretive"

        def info(self, path: str, **options: Any) -> Any:
            raise PermissionError("Forbidden")

    fsspec.register_implementation("secretive", Secretive, clobber=True)
    assert not quick().exists("secretive://bucket/a.json", optional=True)
    with pytest.raises(UnreadableError, match="PermissionError: Forbidden"):
        quick().exists("secretive://bucket/a.json")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, name, None)
    from fsspec.registry import _registry

    for protocol, extra in (("s3", "s3"), ("gs", "gcs")):
        monkeypatch.delitem(_registry, protocol, raising=False)
        with pytest.raises(UserError, match=rf"pip install vlp\[{extra}\]"):
            quick().read_at(f"{protocol}://shards/a.tar", 0, 10)
    with pytest.raises(UserError, match="Protocol not known: what"):
        quick().read_all("what://a.tar")


# Commands


def test_commands(tmp_path: Path) -> None:
    data = noise(1_000_000)
    (tmp_path / "a.tar").write_bytes(data)
    store, path = quick(), f"pipe:cat {tmp_path}/a.tar | cat"
    assert store.read_all(path) == data
    assert store.read_at(path, 500_000, 10) == data[500_000:500_010]
    (tmp_path / "a.tar").unlink()
    assert store.read_at(path, 700_000, 10) == data[700_000:700_010]  # from the copy
    assert store.length(path) == len(data)
    assert store.expand(path) == [path]


def test_commands_that_fail(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ended with status 3"):
        quick().read_all("pipe:echo half; exit 3")
    with pytest.raises(BadSample, match="ended with status 3"):
        quick().read_at("pipe:echo half; exit 3", 0, 4)
    with pytest.raises(UserError, match="ended with status 127"):
        quick().read_all("pipe:no-such-command 2> /dev/null")


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(BadSample, match="silent"):
        quick(timeout=0.1).read_at(f"pipe:(sleep 1.8; touch {tmp_path}/late) & sleep 60", 0, 4)
    assert time.monotonic() - began < 1.8
    time.sleep(2.0 - (time.monotonic() - began))
    assert not (tmp_path / "late").exists()  # what the shell had started ended with it


def test_a_command_whose_reader_leaves_is_ended() -> None:
    stream = quick().open_stream("pipe:cat /dev/zero")
    assert stream.read(1 << 20) == bytes(1 << 20)
    stream.close()
