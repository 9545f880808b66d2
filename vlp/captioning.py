"""Captions of all pictures that can be decoded, from wherever they are read; of the others, why they have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from vlp.data.ahead import pictures_ahead
from vlp.data.samples import BadSample
from vlp.encoders.two_tower import TwoTower
from vlp.generation import captions_of
from vlp.generation_options import GenerationOptions

EMPTY = "empty caption"
Item = TypeVar("Item")


def captions_where_possible(
    model: TwoTower,
    items: Iterable[Item],
    read: Callable[[Item], bytes],
    batch_size: int,
    options: GenerationOptions,
    threads: int,
) -> Iterator[list[tuple[Item, str | BadSample]]]:
    """Each item with its caption, in their order, a batch at a time; the next one is read and decoded meanwhile.

    Args:
        read: the bytes of an item's picture, or a BadSample; called in ``threads``.

    Raises:
        UserError: as `captions_of`.
    """
    for batch in pictures_ahead(model.eval_transform, items, read, batch_size, threads):
        good = [picture for _, picture in batch if isinstance(picture, Tensor)]
        captions = iter(captions_of(model, torch.stack(good), options) if good else [])
        yield [
            (item, (next(captions) or BadSample(EMPTY)) if isinstance(picture, Tensor) else picture)
            for item, picture in batch
        ]
