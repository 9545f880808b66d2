"""Patience with servers that cut, stall, die, come back, change and lie."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from vlp.data.remote import _PROGRESS
from vlp.data.samples import BadSample
from vlp.data.store import Store
from vlp.data.transports import ReadError
from vlp.types import UserError


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def quick(**more: Any) -> Store:
    return Store(**{"retries": 3, "timeout": 1.0, "first_wait": 0.02, **more})


@pytest.fixture
def shard(web: Any) -> bytes:
    web.files["a.tar"] = noise(1_000_000)
    return web.files["a.tar"]


def test_a_stream_that_is_cut_goes_on_at_the_byte_reached(web: Any, shard: bytes) -> None:
    web.cuts = [150_000] * 5
    assert quick(retries=1).read_all(web.url("a.tar")) == shard  # each cut came after progress: none counts twice
    assert web.sent == len(shard)
    assert [wanted for _, wanted in web.ranges] == [f"bytes={150_000 * i}-" for i in range(6)]


def test_a_read_that_is_cut_goes_on_at_the_byte_reached(web: Any, shard: bytes) -> None:
    web.cuts = [0, 100, 1]
    assert quick().read_at(web.url("a.tar"), 500, 1000) == shard[500:1500]
    assert web.sent == 1000
    assert [wanted for _, wanted in web.ranges] == [f"bytes={start}-1499" for start in (500, 500, 600, 601)]


def test_without_progress_the_attempts_are_counted(web: Any, shard: bytes) -> None:
    web.cuts = [100] * 4
    with pytest.raises(BadSample, match=r"a\.tar: .*gave up after 4 attempts"):
        quick().read_at(web.url("a.tar"), 0, 1000)
    assert _PROGRESS > 100


@pytest.mark.parametrize("status", [500, 503, 429])
def test_server_errors_are_retried(web: Any, shard: bytes, status: int) -> None:
    web.errors = [status] * 3
    assert quick().read_at(web.url("a.tar"), 0, 10) == shard[:10]
    web.errors = [status] * 4
    with pytest.raises(BadSample, match=f"HTTP {status}"):
        quick().read_at(web.url("a.tar"), 0, 10)


@pytest.mark.parametrize("status", [404, 403, 401, 400])
def test_refusals_are_not_retried(web: Any, shard: bytes, status: int) -> None:
    web.errors = [status]
    with pytest.raises(BadSample, match=f"HTTP {status}"):
        quick().read_at(web.url("a.tar"), 0, 10)
    assert len(web.ranges) == 1


def test_whether_a_file_exists_is_not_guessed(web: Any, shard: bytes) -> None:
    web.errors = [403]
    with pytest.raises(UserError, match=r"a\.tar cannot be read: the server refuses"):
        quick().exists(web.url("a.tar"))


def test_a_stalled_connection_is_left(web: Any, shard: bytes) -> None:
    web.stalls, web.stall_seconds = [300_000, 300_000], 10.0
    began = time.monotonic()
    assert quick(timeout=0.3).read_all(web.url("a.tar")) == shard
    assert time.monotonic() - began < 8
    assert web.ranges[1:] == [("a.tar", "bytes=300000-"), ("a.tar", "bytes=600000-")]


def test_a_trickle_counts_as_a_stall(web: Any, shard: bytes) -> None:
    web.trickle = True
    with pytest.raises(BadSample, match="bytes in"):
        quick(timeout=0.3, retries=1).read_at(web.url("a.tar"), 0, 1000)


def test_a_slow_reader_is_no_stall(web: Any, shard: bytes) -> None:
    with quick(timeout=0.2, retries=0).open_stream(web.url("a.tar")) as stream:
        read = stream.read(10)
        time.sleep(0.6)
        assert read + stream.read() == shard


def test_a_dead_server_costs_the_time_of_all_retries_once(web: Any, shard: bytes) -> None:
    store, url = quick(first_wait=0.1), web.url("a.tar")
    assert store.read_at(url, 0, 10) == shard[:10]
    web.die()
    began = time.monotonic()
    with pytest.raises(BadSample, match="gave up after 4 attempts"):
        store.read_at(url, 0, 10)
    assert 0.5 < time.monotonic() - began < 5  # 0.1 + 0.2 + 0.4 seconds, more or less
    began = time.monotonic()
    for name in ("a.tar", "b.tar"):
        for _ in range(10):
            with pytest.raises(BadSample, match="refused"):
                store.read_at(web.url(name), 0, 10)
    assert time.monotonic() - began < 5  # twenty reads with all retries would take a quarter of a minute
    web.come_back()
    assert read_when_tried_again(store, url, seconds=3) == shard[:10]
    web.errors = [500, 500]
    assert store.read_at(url, 0, 10) == shard[:10]  # patient again


def read_when_tried_again(store: Store, url: str, seconds: float) -> bytes:
    """Ten bytes of a server that was given up and has come back."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return store.read_at(url, 0, 10)
        except BadSample:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_silent_server_costs_its_timeout_once_an_interval(web: Any, shard: bytes) -> None:
    store, url = quick(retries=1, timeout=0.5, first_wait=0.2), web.url("a.tar")
    web.stalls, web.stall_seconds = [0] * 1000, 3.0
    with pytest.raises(BadSample, match="gave up after 2 attempts"):
        store.read_at(url, 0, 10)
    asked, began = len(web.ranges), time.monotonic()
    for i in range(100):
        with pytest.raises(BadSample, match=r"timed out.*its server was given up"):
            store.read_at(web.url(f"{i}.tar"), 0, 10)
    assert time.monotonic() - began < 1.0  # fifty seconds if each had tried
    assert len(web.ranges) == asked
    time.sleep(1.1)
    with ThreadPoolExecutor(8) as pool:  # of many that come at once, one tries
        reads = [pool.submit(store.read_at, url, 0, 10) for _ in range(8)]
        assert all(isinstance(read.exception(), BadSample) for read in reads)
    assert len(web.ranges) == asked + 1
    web.stalls = []
    assert read_when_tried_again(store, url, seconds=5) == shard[:10]


def test_a_server_that_says_no_is_alive_again(web: Any, shard: bytes) -> None:
    store = quick(first_wait=0.05)
    web.die()
    with pytest.raises(BadSample, match="gave up"):
        store.read_at(web.url("a.tar"), 0, 10)
    web.come_back()
    time.sleep(0.3)
    assert not store.exists(web.url("no.tar"))
    assert store.read_at(web.url("a.tar"), 0, 10) == shard[:10]


def test_one_broken_file_does_not_condemn_its_server(web: Any, shard: bytes) -> None:
    store = quick(first_wait=0.1)
    web.broken = {"b.tar"}
    with ThreadPoolExecutor(1) as pool:
        broken = pool.submit(store.read_at, web.url("b.tar"), 0, 10)
        while not broken.done():
            assert store.read_at(web.url("a.tar"), 0, 10) == shard[:10]
        with pytest.raises(BadSample, match=r"HTTP 500.*gave up after 4 attempts"):
            broken.result()
    web.errors = [503, 503]
    assert store.read_at(web.url("a.tar"), 0, 10) == shard[:10]
    before = len(web.ranges)
    with pytest.raises(BadSample, match="HTTP 500"):
        store.read_at(web.url("b.tar"), 0, 10)
    assert len(web.ranges) == before + 1


def test_a_server_that_comes_back_in_time(web: Any, shard: bytes) -> None:
    store, url = quick(retries=8, first_wait=0.05), web.url("a.tar")
    with store.open_stream(url) as stream:
        start = stream.read(100_000)
        web.die()
        threading.Timer(0.3, web.come_back).start()
        assert start + stream.read() == shard


def test_by_default_a_dead_server_is_given_up_after_about_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(BadSample, match="gave up after 7 attempts"):
        Store().read_at("http://127.0.0.1:1/a.tar", 0, 10)
    assert 30 < sum(waits) < 60


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changes_while_it_is_read_is_an_error(web: Any, shard: bytes, etags: bool) -> None:
    web.etags = etags
    web.cuts = [300_000]
    with quick().open_stream(web.url("a.tar")) as stream:
        stream.read(10)
        web.files["a.tar"] = noise(len(shard) if etags else len(shard) + 1, 1)
        with pytest.raises(ReadError, match=r"a\.tar: changed while it was being read"):
            stream.read()


def test_a_shard_that_changes_between_two_reads_is_an_error(web: Any, shard: bytes) -> None:
    store, url = quick(), web.url("a.tar")
    store.read_at(url, 0, 10)
    web.files["a.tar"] = noise(len(shard), 1)
    with pytest.raises(BadSample, match="changed"):
        store.read_at(url, 0, 10)
    assert store.read_all(url) == web.files["a.tar"]  # opened anew, it is another file
    assert store.read_at(url, 0, 10) == web.files["a.tar"][:10]


def test_a_shard_shorter_than_its_index(web: Any, shard: bytes) -> None:
    for offset in (len(shard) - 5, len(shard) + 5):
        with pytest.raises(BadSample, match="has only 1000000 bytes"):
            quick().read_at(web.url("a.tar"), offset, 10)
    assert len(web.ranges) == 2  # nothing to retry


@pytest.mark.parametrize("has_lengths", [True, False])
def test_a_server_without_ranges(web: Any, shard: bytes, has_lengths: bool) -> None:
    web.has_ranges, web.has_lengths = False, has_lengths
    store, url = quick(), web.url("a.tar")
    for offset in (0, 5000, 400_000):
        assert store.read_at(url, offset, 100) == shard[offset : offset + 100]
    assert len(web.ranges) == 3  # the first read, the question for the version, the copy
    with pytest.raises(BadSample, match="shorter"):
        store.read_at(url, len(shard) - 5, 10)
    assert store.length(url) == len(shard)
    web.sent, web.cuts = 0, [400_000] if has_lengths else []
    assert store.read_all(url) == shard


def test_a_server_that_sends_parts_without_a_name(web: Any, shard: bytes) -> None:
    web.names_ranges = False
    store, url = quick(), web.url("a.tar")
    assert store.exists(url)
    with pytest.raises(BadSample, match="the server sends a part without saying which"):
        store.read_at(url, 500, 10)


def test_no_listing_and_no_writing_on_the_web(web: Any) -> None:
    store = quick()
    assert store.expand("http://[::1]/a.tar?key=*"[:20]) == ["http://[::1]/a.tar?k"]
    for pattern in ("http://x/*.tar", "http://x/folder/"):
        with pytest.raises(UserError, match="braces"):
            store.expand(pattern)
    with pytest.raises(UserError, match="cannot be written"):
        store.write("http://x/a.tar", b"")


def test_an_address_that_is_none() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        quick().read_all("http://:x/a.tar")
