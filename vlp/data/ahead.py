"""Reading and decoding in threads, a batch ahead of the model that waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from PIL import Image
from torch import Tensor

from vlp.data.samples import BadSample, decode_image

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


def pictures_ahead(
    transform: Callable[[Image.Image], Tensor],
    items: Iterable[Item],
    read: Callable[[Item], bytes],
    batch_size: int,
    threads: int,
) -> Iterator[list[tuple[Item, Tensor | BadSample]]]:
    """As `batches_ahead`, each item with what ``transform`` makes of its picture, or why there is none.

    Args:
        read: the bytes of an item's picture, or a BadSample; called in ``threads``.
    """

    def pixels(item: Item) -> tuple[Item, Tensor | BadSample]:
        try:
            return item, transform(decode_image(read(item)))
        except BadSample as bad:
            return item, bad

    return batches_ahead(pixels, items, batch_size, threads)
