"""Remote samples fetched before they are needed, by threads, with a bound on the bytes that are held."""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from vlp.data.store import Store

_GAP = 64 << 10  # bytes that cost less than another request
_LONGEST = 4 << 20  # bytes of several samples in one request; more would make the first of them wait


class Request(NamedTuple):
    """The members (offset, size) of one sample in the shard ``path``; ``key`` is whatever names it to the caller."""

    key: Hashable
    path: str
    ranges: Sequence[tuple[int, int]]


class _Span:
    """Bytes of one sample that are fetched together."""

    def __init__(self, path: str, start: int, stop: int) -> None:
        self.path, self.start, self.stop = path, start, stop
        self.started = self.done = False
        self.data = b""
        self.error: Exception | None = None


class _Sample(NamedTuple):
    request: Request
    spans: list[_Span]
    size: int


class ReadAhead:
    """Takes requests from an iterator and fetches them in order of need; they are taken in the same order.

    Args:
        requests: samples in the order in which they will be taken; may be endless, as it is asked only as far as
            ``max_bytes`` reach. It is asked by the thread that calls ``take``.
        max_bytes: bound on the bytes fetched but not taken, those under way included. A sample larger than
            that is fetched alone.
        threads: requests to the server at a time.

    Members of a shard that lie close together and are needed soon are fetched by one request; new ones are
    asked for when half of ``max_bytes`` is free, so that there are neighbours to join. What is handed out depends on
    the shards alone. Used by one thread of one process: make it after a fork.
    """

    def __init__(
        self, store: Store, requests: Iterator[Request], max_bytes: int = 256 << 20, threads: int = 16
    ) -> None:
        self._store = store
        self._requests = requests
        self._next = next(requests, None)
        self._max_bytes = max_bytes
        self._held = 0
        self._ahead: deque[_Sample] = deque()
        self._queue: deque[_Span] = deque()  # in order of need; spans that went with a neighbour are still in it
        self._waiting: dict[str, list[_Span]] = {}  # shard -> its spans that nobody fetches yet, by offset
        self._closed = False
        lock = threading.Lock()
        self._work = threading.Condition(lock)
        self._news = threading.Condition(lock)
        self._threads = [threading.Thread(target=self._fetch_on, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def take(self, key: Hashable) -> list[bytes]:
        """The members of the sample ``key``, in the order of its ranges; waits for them. Samples before it are dropped.

        Raises:
            BadSample: "unreadable shard", as ``Store.read_at`` does.
            KeyError: the requests leave this sample out (or it has been taken or dropped): read it from the store.
        """
        assert not self._closed
        self._ask()
        if all(sample.request.key != key for sample in self._ahead):
            raise KeyError(key)
        while (sample := self._next_sample()).request.key != key:
            pass
        self._ask()
        for span in sample.spans:
            if span.error is not None:
                raise span.error
        return [_cut(sample.spans, offset, size) for offset, size in sample.request.ranges]

    def close(self) -> None:
        """End the threads; one that waits for a dead server ends when it gives up, and holds up nobody."""
        with self._work:
            self._closed = True
            self._work.notify_all()
        deadline = time.monotonic() + 2
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next_sample(self) -> _Sample:
        sample = self._ahead.popleft()
        with self._news:
            self._news.wait_for(lambda: all(span.done for span in sample.spans))
            self._held -= sample.size
        return sample

    def _ask(self) -> None:
        """Queue what the bound allows; whatever is queued may be fetched at any time, so nobody can wait in vain."""
        if self._held > self._max_bytes // 2 and self._ahead:
            return
        while self._next is not None:
            spans = _spans(self._next)
            size = sum(span.stop - span.start for span in spans)
            with self._work:
                if self._ahead and self._held + size > self._max_bytes:
                    break
                self._held += size
                for span in spans:
                    self._queue.append(span)
                    insort(self._waiting.setdefault(span.path, []), span, key=_start)
            self._ahead.append(_Sample(self._next, spans, size))
            self._next = next(self._requests, None)
        with self._work:
            self._work.notify_all()

    def _fetch_on(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._closed or self._queue)
                if self._closed:
                    return
                group, gaps = self._pick()
            if group:
                self._fetch(group)
                with self._work:
                    self._held -= gaps
                    for span in group:
                        span.done = True
                    self._news.notify_all()

    def _pick(self) -> tuple[list[_Span], int]:
        """The span that is needed first with its neighbours, and the bytes of the gaps between, which are held too."""
        first = self._queue.popleft()
        if first.started:
            return [], 0
        waiting = self._waiting[first.path]
        low = high = waiting.index(first)
        start, stop, gaps = first.start, first.stop, 0
        while high + 1 < len(waiting) and self._joins(start, stop, waiting[high + 1], gaps):
            high += 1
            gaps += max(waiting[high].start - stop, 0)
            stop = max(stop, waiting[high].stop)
        while low > 0 and self._joins(start, stop, waiting[low - 1], gaps):
            low -= 1
            gaps += max(start - waiting[low].stop, 0)
            start = waiting[low].start
        group = waiting[low : high + 1]
        del waiting[low : high + 1]
        for span in group:
            span.started = True
        self._held += gaps
        return group, gaps

    def _joins(self, start: int, stop: int, other: _Span, gaps: int) -> bool:
        gap = max(other.start - stop, start - other.stop, 0)
        longest = max(stop, other.stop) - min(start, other.start)
        return gap <= _GAP and longest <= _LONGEST and self._held + gaps + gap <= self._max_bytes

    def _fetch(self, group: list[_Span]) -> None:
        start, stop = group[0].start, max(span.stop for span in group)
        try:
            data = self._store.read_at(group[0].path, start, stop - start)
            for span in group:
                span.data = data[span.start - start : span.stop - start]  # no copy if it is all
        except Exception as error:
            if len(group) == 1:
                group[0].error = error
            else:  # no sample suffers for its neighbours
                for span in group:
                    self._fetch([span])


def _start(span: _Span) -> int:
    return span.start


def _spans(request: Request) -> list[_Span]:
    """The members of one sample, those close together as one."""
    spans: list[_Span] = []
    for offset, size in sorted(request.ranges):
        if spans and offset - spans[-1].stop <= _GAP:
            spans[-1].stop = max(spans[-1].stop, offset + size)
        else:
            spans.append(_Span(request.path, offset, offset + size))
    return spans


def _cut(spans: list[_Span], offset: int, size: int) -> bytes:
    span = next(span for span in spans if span.start <= offset and offset + size <= span.stop)
    return span.data[offset - span.start : offset - span.start + size]
