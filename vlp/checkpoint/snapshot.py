"""What a checkpoint will hold, in host memory, while the step goes on changing the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OPTIMIZER_FILE = "optimizer.safetensors"
MOMENTUM_FILE = "momentum.safetensors"  # the twin and its queue
FUSION_FILE = "fusion.safetensors"
LORA_FILE = "lora.safetensors"  # A and B; the weights have their product


@dataclass(frozen=True)
class Snapshot:
    """A run at one step; its tensors belong to nobody else.

    Attributes:
        step: finished steps.
        files: name of a safetensors file -> its whole, contiguous tensors on the CPU; one without any is not written.
        state: counters, for ``state.json``.
        describe: writes configuration, tokenizer and recipe into the first directory, which will be renamed to the
            second; called in another thread.
    """

    step: int
    files: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    describe: Callable[[Path, Path], None]


def to_host(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Contiguous copies in host memory that share none, whole when this returns.

    From a GPU they go through pinned memory, all under way before the one wait; torch keeps that memory for the next
    call. Of ``named``, one tensor at a time is needed.
    """
    copies, waits = {}, False
    for name, value in named:
        copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        copies[name] = copy.copy_(value.detach(), non_blocking=value.is_cuda)
        waits = waits or value.is_cuda
    if waits:
        torch.cuda.synchronize()
    return copies
