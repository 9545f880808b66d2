"""Reading and decoding in threads, a batch ahead of the model that waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def batches_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], batch_size: int, threads: int
) -> Iterator[list[Result]]:
    """``work(item)`` of each item, in their order, in lists of ``batch_size``; the next list is at work meanwhile."""
    rest = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[list[Future[Result]]] = deque()
        while batch := [pool.submit(work, item) for item in islice(rest, batch_size)]:
            ahead.append(batch)
            if len(ahead) == 2:
                yield [one.result() for one in ahead.popleft()]
        while ahead:
            yield [one.result() for one in ahead.popleft()]
