"""Small snapshots, children that kill themselves, and a bucket behind a door that can be slammed."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vlp.checkpoint import Snapshot, place

COUNTERS = {"samples": 56, "num_samples": 96, "data": {"names": "d"}, "bad_samples": {}, "scaler": None}
TESTS = Path(__file__).parent.parent


def _load(path: Path) -> ModuleType:
    """A file of helpers, which no import statement reaches: tests are no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def resume_runs() -> ModuleType:
    return _load(TESTS / "resume_runs.py")


def _describe(partial: Path, final: Path) -> None:
    (partial / "recipe.yaml").write_text("name: test\n")
    (partial / "tokenizer").mkdir()
    (partial / "tokenizer" / "place.txt").write_text(final.name)


def make_snapshot(step: int, numbers: int = 16, describe: Callable[[Path, Path], None] = _describe) -> Snapshot:
    files = {
        "open_clip_model.safetensors": {"weight": torch.full((numbers,), float(step)), "scale": torch.tensor(step)},
        "optimizer.safetensors": {"weight/exp_avg": torch.arange(numbers) + step},
        "ema.safetensors": {},
    }
    return Snapshot(step, files, COUNTERS, describe)


@pytest.fixture
def snapshot() -> Callable[..., Snapshot]:
    """``snapshot(step, numbers=16, describe=...)``: whose weights are all ``step``."""
    return make_snapshot


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], None]:
    """Wait for a condition, which threads and servers bring about."""

    def wait(condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.005)

    return wait


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that fails is asked once more, at once."""
    monkeypatch.setattr(place, "RETRIES", 1)
    monkeypatch.setattr(place, "FIRST_WAIT", 0.01)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting wants the rights of root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


# ---- A bucket


@pytest.fixture(scope="session")
def _servers() -> ModuleType:
    return _load(TESTS / "data" / "store_servers.py")


@pytest.fixture(scope="session")
def _s3_port(_servers: ModuleType) -> Iterator[int]:
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with _servers.s3_server() as port:
        yield port


@pytest.fixture
def s3(_servers: ModuleType, _s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The door before an S3 server with an empty bucket, ``s3://copies``; the environment leads to it.

    ``dies_after``: so many bytes are let in, then it ``is_dead``; ``errors``: each request is answered by 500;
    ``silent``: by nothing; ``keeps_all``: nothing may be deleted; ``bucket``: what is behind it.
    """
    import boto3

    class Door(_servers.Proxy):  # type: ignore[name-defined, misc]
        dies_after: float = float("inf")
        errors = False
        silent = False
        keeps_all = False

        def _pass_on(self, source: socket.socket, target: socket.socket, back: bool) -> None:
            if back:
                return super()._pass_on(source, target, back)
            with contextlib.suppress(OSError), source, target:
                while data := source.recv(1 << 16):
                    if self.errors:
                        source.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
                        continue
                    if self.keeps_all and data.startswith(b"DELETE"):
                        source.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                        continue
                    self.dies_after -= len(data)
                    self.is_dead = self.is_dead or self.dies_after < 0
                    if self.is_dead:
                        for end in (source, target):
                            end.shutdown(socket.SHUT_RDWR)
                        return
                    if not self.silent:
                        target.sendall(data)

        def reopen(self) -> None:
            self.dies_after, self.is_dead, self.errors, self.silent = float("inf"), False, False, False

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = boto3.resource("s3", endpoint_url=f"http://127.0.0.1:{_s3_port}").Bucket("copies")
    bucket.create()
    door = Door(_s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{door.port}")
    door.bucket = bucket
    yield door
    bucket.objects.all().delete()
    bucket.delete()
    door.close()
