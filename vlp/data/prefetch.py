"""Batches on their way to the device, copied while it still computes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import torch

from vlp.types import Batch


def to_device(
    batches: Iterator[Batch],
    device: torch.device | str,
    on_host: Callable[[Batch], Batch] = lambda batch: batch,
) -> Generator[Batch, None, None]:
    """The same batches with their tensors on ``device``, and with what ``on_host`` adds to them before they go there.

    On CUDA the copy of a batch in pinned memory runs on a stream of its own and begins before the batch ahead of it is
    handed out, so that it travels while that one is computed, also where the host waits for results in between.
    Elsewhere each batch is read only when it is asked for. Pinned memory that is used again must not be overwritten
    before the copy has ended.
    """
    device = torch.device(device)
    if device.type != "cuda":
        for batch in batches:
            yield on_host(batch).to(device)
        return
    copying = torch.cuda.Stream(device)

    def sent(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(copying):
            return on_host(batch).to(device), copying.record_event()

    on_the_way = None
    for batch in batches:
        arrived, on_the_way = on_the_way, sent(batch)
        if arrived is not None:
            yield _received(*arrived)
    if on_the_way is not None:
        yield _received(*on_the_way)


def _received(batch: Batch, event: torch.cuda.Event) -> Batch:
    """``batch`` for the stream that computes, which waits for its copy only."""
    computing = torch.cuda.current_stream(batch.text_NL.device)
    computing.wait_event(event)
    for value in vars(batch).values():
        if isinstance(value, torch.Tensor) and value.is_cuda:
            # Memory of the copying stream: not to be given out again before the computing stream is done with it.
            value.record_stream(computing)
    return batch
