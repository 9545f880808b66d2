"""Local copies of remote shards: downloaded once, below the limit, never stale, resumed."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from vlp.data.cache import CacheOptions
from vlp.data.samples import BadSample
from vlp.data.store import Store
from vlp.types import UserError

MB = 1_000_000


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def store_in(folder: Path, megabytes: float = 50.0) -> Store:
    cache = CacheOptions(folder=str(folder / "cache"), gigabytes=megabytes / 1000)
    return Store(cache, retries=2, timeout=1.0, first_wait=0.02)


def downloads(web: Any) -> list[tuple[str, str]]:
    """The requests but for those for one byte, which ask for the version."""
    return [(name, wanted) for name, wanted in web.ranges if wanted != "bytes=0-0"]


def copies(folder: Path) -> dict[str, int]:
    """Name of the shard -> size, of the whole copies."""
    return {path.name.partition("-")[2]: path.stat().st_size for path in (folder / "cache").glob("*.tar")}


def together(*checks: Callable[[], None]) -> list[int | None]:
    """Exit codes of forked processes that do these things at the same time."""
    children = [multiprocessing.get_context("fork").Process(target=check) for check in checks]
    for child in children:
        child.start()
    for child in children:
        child.join(15)
    return [child.exitcode for child in children]


def test_options() -> None:
    assert CacheOptions().folder is None
    assert CacheOptions().gigabytes == 50
    for wrong in ({"gigabytes": 0}, {"gigabyte": 1}):
        with pytest.raises(ValidationError):
            CacheOptions(**wrong)
    assert all(field.description for field in CacheOptions.model_fields.values())


def test_a_shard_is_read_from_its_copy(web: Any, tmp_path: Path) -> None:
    web.files["a.tar"] = data = noise(MB)
    store, url = store_in(tmp_path), web.url("a.tar")
    for i in range(20):
        assert store.read_at(url, i * 1000, 100) == data[i * 1000 :][:100]
    with store.open_stream(url) as stream:
        assert stream.read() == data
    assert downloads(web) == [("a.tar", "bytes=0-")]
    assert copies(tmp_path) == {"a.tar": MB}
    with pytest.raises(BadSample, match="shorter"):
        store.read_at(url, MB - 5, 10)


def test_the_next_run_downloads_nothing(web: Any, tmp_path: Path) -> None:
    web.files["a.tar"] = data = noise(MB)
    for _ in range(2):
        assert store_in(tmp_path).read_at(web.url("a.tar"), 5, 10) == data[5:15]
    assert downloads(web) == [("a.tar", "bytes=0-")]


@pytest.mark.parametrize("etags", [True, False])
def test_a_changed_shard_is_downloaded_anew(web: Any, tmp_path: Path, etags: bool) -> None:
    web.etags = etags
    web.files["a.tar"] = noise(MB)
    store_in(tmp_path).read_at(web.url("a.tar"), 5, 10)
    web.files["a.tar"] = changed = noise(MB if etags else MB + 1, 1)
    assert store_in(tmp_path).read_at(web.url("a.tar"), 5, 10) == changed[5:15]


def test_processes_and_threads_share_one_download(web: Any, tmp_path: Path) -> None:
    web.files["a.tar"] = data = noise(MB)
    web.stalls, web.stall_seconds = [300_000], 0.3  # long enough for all to come while it lasts
    store, url = store_in(tmp_path), web.url("a.tar")

    def check() -> None:
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda _: store.read_at(url, 5, 10), range(4))) == {data[5:15]}

    assert together(check, check, check) == [0, 0, 0]
    assert downloads(web) == [("a.tar", "bytes=0-")]


def test_the_limit_holds_and_what_was_unused_longest_goes(web: Any, tmp_path: Path) -> None:
    for name in "abcdef":
        web.files[f"{name}.tar"] = noise(MB, ord(name))
    store = store_in(tmp_path, megabytes=3.5)
    for name in "abc":
        store.read_at(web.url(f"{name}.tar"), 0, 10)
        time.sleep(0.02)
    assert sorted(copies(tmp_path)) == ["a.tar", "b.tar", "c.tar"]
    store_in(tmp_path, megabytes=3.5).read_at(web.url("a.tar"), 0, 10)  # another run uses it
    store.read_at(web.url("d.tar"), 0, 10)
    assert sorted(copies(tmp_path)) == ["a.tar", "c.tar", "d.tar"]
    store.read_at(web.url("e.tar"), 0, 10)
    assert sorted(copies(tmp_path)) == ["a.tar", "d.tar", "e.tar"]
    assert store.read_at(web.url("b.tar"), 0, 10) == web.files["b.tar"][:10]  # what has gone comes again
    notes = {path.name.partition("-")[2] for path in (tmp_path / "cache").glob("*.json")}
    assert notes == {f"{name}.json" for name in copies(tmp_path)}


def test_the_limit_holds_while_several_download(web: Any, tmp_path: Path) -> None:
    for i in range(12):
        web.files[f"{i}.tar"] = noise(MB, i)
    web.stalls, web.stall_seconds = [500_000] * 12, 0.03
    store = store_in(tmp_path, megabytes=2.2)
    largest, done = 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.005):
            sizes = 0
            for path in (tmp_path / "cache").glob("*.tar*"):
                if path.suffix != ".json" and path.exists():
                    sizes += path.stat().st_size if path.exists() else 0
            largest = max(largest, sizes)

    def check(start: int) -> None:
        for i in range(start, 12, 3):
            assert store.read_at(web.url(f"{i}.tar"), 7, 10) == web.files[f"{i}.tar"][7:17]

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert together(*(lambda start=i: check(start) for i in range(3))) == [0, 0, 0]
    done.set()
    watcher.join()
    assert MB < largest <= 2.2 * MB


def test_a_shard_larger_than_the_cache_is_refused(web: Any, tmp_path: Path) -> None:
    web.files["a.tar"] = noise(MB)
    with pytest.raises(UserError, match=r"a\.tar has 0\.001 GB .* raise data\.cache\.gigabytes"):
        store_in(tmp_path, megabytes=0.9).read_at(web.url("a.tar"), 0, 10)
    with pytest.raises(UserError, match=r"raise data\.cache\.gigabytes"):  # its length is not known before
        store_in(tmp_path, megabytes=0.9).read_at("pipe:head -c 1000000 /dev/zero", 0, 10)
    assert copies(tmp_path) == {}


def test_a_folder_that_cannot_be_written(web: Any, tmp_path: Path) -> None:
    web.files["a.tar"] = noise(MB)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"^data\.cache\.folder .*cache cannot keep"):
        store_in(tmp_path).read_at(web.url("a.tar"), 0, 10)


def kill_half_way(web: Any, folder: Path) -> None:
    """Another process downloads a.tar and dies by SIGKILL after 600,000 bytes."""
    web.stalls, web.stall_seconds = [600_000], 2.0
    code = (
        "from vlp.data.cache import CacheOptions; from vlp.data.store import Store\n"
        f"Store(CacheOptions(folder={str(folder / 'cache')!r}), timeout=5.0).local_copy({web.url('a.tar')!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 10
    partial = folder / "cache"
    while sum(path.stat().st_size for path in partial.glob("*.partial")) < 500_000:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert copies(folder) == {}


@pytest.mark.parametrize("changes", [False, True])
def test_a_killed_download_goes_on_at_the_byte_reached(web: Any, tmp_path: Path, changes: bool) -> None:
    web.files["a.tar"] = noise(MB)
    kill_half_way(web, tmp_path)
    web.files["a.tar"] = noise(MB, int(changes))
    web.ranges.clear()
    assert store_in(tmp_path).read_at(web.url("a.tar"), 5, 10) == web.files["a.tar"][5:15]
    assert Path(store_in(tmp_path).local_copy(web.url("a.tar"))).read_bytes() == web.files["a.tar"]
    ((_, wanted),) = downloads(web)
    start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
    assert start == 0 if changes else start >= 500_000


def test_room_of_a_killed_download_is_given_to_others(web: Any, tmp_path: Path) -> None:
    web.files["a.tar"], web.files["b.tar"] = noise(MB), noise(MB, 1)
    kill_half_way(web, tmp_path)
    store_in(tmp_path, megabytes=1.5).read_at(web.url("b.tar"), 0, 10)
    assert not list((tmp_path / "cache").glob("*.partial"))
    assert list(copies(tmp_path)) == ["b.tar"]


def test_a_server_that_dies_in_the_middle_keeps_nobody_waiting_in_line(web: Any, tmp_path: Path) -> None:
    web.files["a.tar"] = noise(MB)
    web.stalls, web.stall_seconds = [600_000], 10.0
    store, url = Store(CacheOptions(folder=str(tmp_path / "cache")), 3, 2.0, 0.2), web.url("a.tar")

    def check() -> None:
        with pytest.raises(BadSample, match="unreadable shard"):
            store.read_at(url, 0, 10)

    began = time.monotonic()
    threading.Timer(0.5, web.die).start()
    assert together(*[check] * 6) == [0] * 6
    assert time.monotonic() - began < 7  # one after the other would take about ten seconds
    web.stalls = []
    web.come_back()
    assert store.read_at(url, 0, 10) == web.files["a.tar"][:10]


def test_a_copy_removed_by_others_comes_again(web: Any, tmp_path: Path) -> None:
    for name in "ab":
        web.files[f"{name}.tar"] = noise(MB, ord(name))
    store = store_in(tmp_path, megabytes=1.5)

    def check() -> None:
        for i in range(15):
            for name in "ab":
                assert store.read_at(web.url(f"{name}.tar"), i, 10) == web.files[f"{name}.tar"][i : i + 10]

    assert together(check, check) == [0, 0]


def test_s3_copies(s3: Any, tmp_path: Path) -> None:
    store, data = store_in(tmp_path), noise(MB)
    store.write("s3://shards/a.tar", data)
    assert store.read_at("s3://shards/a.tar", 5, 10) == data[5:15]
    store.write("s3://shards/a.tar", noise(MB, 1))
    assert store.read_at("s3://shards/a.tar", 5, 10) == data[5:15]  # asked once a process
    assert store_in(tmp_path).read_at("s3://shards/a.tar", 5, 10) == noise(MB, 1)[5:15]


def test_what_was_just_written_is_read(s3: Any, tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for i in range(3):
        path, data = "s3://shards/a.index", noise(1000, i)
        store.write(path, data)
        assert store.read_all(path) == data
        with store.open_stream(path) as stream:
            assert stream.read() == data
        assert store.read_at(path, 5, 10) == data[5:15]


def test_the_temporary_folder_goes_with_the_process(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    code = f"""
import multiprocessing, os
from vlp.data.store import Store
store = Store()
def read():
    assert store.read_at("pipe:cat {tmp_path}/a.tar", 3, 2) == b"34"
child = multiprocessing.get_context("fork").Process(target=read)
child.start(); child.join(); assert child.exitcode == 0
(folder,) = [name for name in os.listdir({str(tmp_path)!r}) if name.startswith("vlp-shards")]
os.remove("{tmp_path}/a.tar")
read()  # the copy that the child made
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert os.listdir(tmp_path) == []
