"""Batches on their way to the device, copied while it still computes."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch

from vlp.types import Batch


def to_device(batches: Iterator[Batch], device: torch.device | str) -> Generator[Batch, None, None]:
    """The same batches with their tensors on ``device``, each read only when it is asked for.

    On CUDA the copy runs on a stream of its own, so that a batch in pinned memory travels while the GPU still works on
    the one before: the host has queued that work and asks for the next batch, as long as it does not wait for
    a result (``loss.item()``) in between. Pinned memory that is used again must not be overwritten before the copy
    has ended.
    """
    device = torch.device(device)
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copying = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copying):
            arrived = batch.to(device)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        for value in vars(arrived).values():
            if isinstance(value, torch.Tensor):
                # Memory of the copying stream: not to be given out again before the computing stream is done with it.
                value.record_stream(computing)
        yield arrived
