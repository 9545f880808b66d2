"""Reading ahead: bounded, joined, in order, never stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp.data.read_ahead import _GAP, ReadAhead, Request
from vlp.data.samples import BadSample
from vlp.data.store import Store
from vlp.types import UserError

SHARD = np.random.default_rng(0).bytes(2_000_000)


class LocalStore(Store):
    """Counts what is read of one shard in memory, and how much at a time; may wait for a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[int, int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        self.reads.append((offset, size))
        self.gate.wait(10)
        if offset + size > len(SHARD):
            raise BadSample("unreadable shard", f"{path} is short")
        return SHARD[offset : offset + size]


def requests(spans: list[tuple[int, int]], path: str = "a.tar") -> list[Request]:
    return [Request(i, path, [span]) for i, span in enumerate(spans)]


def take_all(ahead: ReadAhead, wanted: list[Request]) -> list[list[bytes]]:
    return [ahead.take(request.key) for request in wanted]


def content(request: Request) -> list[bytes]:
    return [SHARD[offset : offset + size] for offset, size in request.ranges]


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(
        st.tuples(
            st.sampled_from(["a.tar", "b.tar"]),
            st.lists(st.tuples(st.integers(0, 1_900_000), st.integers(0, 90_000)), min_size=1, max_size=3),
        ),
        max_size=40,
    ),
    max_bytes=st.integers(1, 1_000_000),
    threads=st.integers(1, 8),
)
def test_every_sample_comes_in_order_whatever_the_bound(
    samples: list[tuple[str, list[tuple[int, int]]]], max_bytes: int, threads: int
) -> None:
    wanted = [Request(i, path, ranges) for i, (path, ranges) in enumerate(samples)]
    with ReadAhead(LocalStore(), iter(wanted), max_bytes, threads) as ahead:
        assert take_all(ahead, wanted) == [content(request) for request in wanted]


def test_bytes_held_and_under_way_are_bounded() -> None:
    wanted = requests([(i * 8_000 % 1_900_000, 5_000) for i in np.random.default_rng(1).permutation(400).tolist()])
    asked = 0

    def counted() -> Iterator[Request]:
        nonlocal asked
        for request in wanted:
            asked += 1
            yield request

    with ReadAhead(LocalStore(), counted(), max_bytes=200_000, threads=4) as ahead:
        for taken, request in enumerate(wanted, 1):
            assert ahead.take(request.key) == content(request)
            assert (asked - 1 - taken) * 5_000 <= 200_000  # one more has been looked at
            assert ahead._held <= 200_000
        assert asked == 400
        settle(lambda: ahead._held == 0)


def settle(condition: Any) -> None:
    deadline = time.monotonic() + 2
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_a_sample_larger_than_the_bound_is_fetched_alone() -> None:
    wanted = requests([(0, 10), (1000, 500_000), (0, 10), (5, 600_000), (7, 8)])
    with ReadAhead(LocalStore(), iter(wanted), max_bytes=100, threads=2) as ahead:
        assert take_all(ahead, wanted) == [content(request) for request in wanted]


def test_an_endless_iterator_is_asked_only_as_far_as_the_bound() -> None:
    def endless() -> Iterator[Request]:
        i = 0
        while True:
            yield Request(i, "a.tar", [(i % 1000 * 1000, 1000)])
            i += 1

    with ReadAhead(LocalStore(), endless(), max_bytes=50_000) as ahead:
        for i in range(3000):
            assert ahead.take(i) == [SHARD[i % 1000 * 1000 :][:1000]]


def test_neighbours_are_fetched_by_one_request() -> None:
    store = LocalStore()
    near = [(10_000 * i, 5_000) for i in range(20)]
    far = [(200_000 + _GAP, 10)]  # farther than a gap from the last of them
    rng = np.random.default_rng(2)
    wanted = requests([(near + far)[i] for i in rng.permutation(21)])
    with ReadAhead(store, iter(wanted), threads=1) as ahead:
        assert take_all(ahead, wanted) == [content(request) for request in wanted]
    assert sorted(store.reads) == [(0, 195_000), far[0]]


def test_members_of_a_sample_are_one_request_unless_they_lie_far_apart() -> None:
    store = LocalStore()
    wanted = [Request("a", "a.tar", [(70_000, 100), (512, 60_000), (1_000_000, 10)])]
    with ReadAhead(store, iter(wanted), threads=1) as ahead:
        assert ahead.take("a") == content(wanted[0])
    assert sorted(store.reads) == [(512, 69_588), (1_000_000, 10)]


def test_gaps_count_as_bytes_held() -> None:
    store = LocalStore()
    wanted = requests([(i * 20_000, 100) for i in range(50)])
    store.gate.clear()
    with ReadAhead(store, iter(wanted), max_bytes=30_000, threads=1) as ahead:
        threading.Timer(0.2, store.gate.set).start()
        assert take_all(ahead, wanted) == [content(request) for request in wanted]
    assert max(size for _, size in store.reads) <= 30_000


def test_samples_are_fetched_before_they_are_taken() -> None:
    store = LocalStore()
    wanted = requests([(i * 100_000, 10) for i in range(10)])
    with ReadAhead(store, iter(wanted), threads=4) as ahead:
        ahead.take(0)
        settle(lambda: len(store.reads) == 10)


def test_a_bad_sample_does_not_harm_its_neighbours() -> None:
    wanted = requests([(len(SHARD) - 2000, 1000), (len(SHARD) - 500, 1000), (len(SHARD) - 1000, 400)])
    with ReadAhead(LocalStore(), iter(wanted), threads=1) as ahead:
        assert ahead.take(0) == content(wanted[0])
        with pytest.raises(BadSample, match="unreadable shard"):
            ahead.take(1)
        assert ahead.take(2) == content(wanted[2])


def test_a_users_mistake_reaches_the_taker() -> None:
    wanted = [Request(0, "what://a.tar", [(0, 10)])]
    with ReadAhead(Store(), iter(wanted)) as ahead, pytest.raises(UserError, match="Protocol not known"):
        ahead.take(0)


def test_samples_that_are_not_taken_give_their_room_back() -> None:
    wanted = requests([(i * 100_000, 1000) for i in range(15)])
    with ReadAhead(LocalStore(), iter(wanted), max_bytes=5_000) as ahead:
        for key in (0, 3, 4, 8, 11, 14):
            assert ahead.take(key) == content(wanted[key])
        settle(lambda: ahead._held == 0)


def test_a_sample_that_was_left_out_is_told_and_harms_no_other() -> None:
    wanted = requests([(i * 100_000, 1000) for i in range(4)])
    with ReadAhead(LocalStore(), iter(wanted)) as ahead:
        for absent, present in (("never requested", 0), (0, 2), (1, 3)):  # 0 was taken then, 1 dropped
            with pytest.raises(KeyError):
                ahead.take(absent)
            assert ahead.take(present) == content(wanted[present])
        with pytest.raises(KeyError):
            ahead.take(4)


def test_threads_end() -> None:
    before = set(threading.enumerate())
    with ReadAhead(LocalStore(), iter(requests([(0, 10)] * 100)), max_bytes=100) as ahead:
        ahead.take(0)
        assert len(set(threading.enumerate()) - before) == 16
    assert not set(threading.enumerate()) - before


def test_from_a_server_that_cuts(web: Any) -> None:
    web.files["a.tar"] = SHARD
    store = Store(retries=3, timeout=1.0, first_wait=0.02)
    places = np.random.default_rng(3).permutation(200).tolist()
    starts = [place * 9_000 for place in places]
    wanted = [Request(i, web.url("a.tar"), [(at, 8_000), (at + 8_500, 50)]) for i, at in enumerate(starts)]
    web.cuts, web.errors = [70_000, 100_000, 2_000, 5_000], [503, 500]
    with ReadAhead(store, iter(wanted), max_bytes=400_000, threads=4) as ahead:
        assert take_all(ahead, wanted) == [content(request) for request in wanted]
    assert len(web.ranges) < 200
    assert web.sent < 2.5 * len(SHARD)  # the gaps are read again with what lies in them


def test_a_server_that_dies_ends_in_bad_samples_within_bounds(web: Any) -> None:
    web.files["a.tar"] = SHARD
    store = Store(retries=2, timeout=1.0, first_wait=0.05)
    wanted = [Request(i, web.url("a.tar"), [(i * 100_000 % 1_900_000, 20_000)]) for i in range(200)]
    began, bad = time.monotonic(), 0
    with ReadAhead(store, iter(wanted), max_bytes=200_000, threads=4) as ahead:
        for i, request in enumerate(wanted):
            if i == 50:
                web.die()
            try:
                assert ahead.take(i) == content(request)
            except BadSample:
                bad += 1
    assert 130 <= bad <= 150
    assert time.monotonic() - began < 10  # 150 reads with all retries would take more


def test_from_s3(s3: Any) -> None:
    store = Store(retries=3, timeout=1.0, first_wait=0.02)
    store.write("s3://shards/a.tar", SHARD)
    wanted = requests([(i * 150_000, 20_000) for i in range(12)], "s3://shards/a.tar")
    s3.cuts = [5_000, 15_000]
    with ReadAhead(store, iter(wanted), threads=4) as ahead:
        assert take_all(ahead, wanted) == [content(request) for request in wanted]
    assert not s3.cuts
