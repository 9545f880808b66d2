"""Batches on the device of the model."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vlp.types import Batch


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches with their tensors on ``device``."""
    for batch in batches:
        yield batch.to(device)
