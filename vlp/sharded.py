"""Tensors of which every process may hold a part (torch's DTensor), handled as if they were whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """The part of this process, which shares its memory; the tensor itself where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def locals_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [local(tensor) for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """All parts put together on every process: a collective where the tensor is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, other: Tensor) -> Tensor:
    """``value``, whole, on the device of ``other`` and sharded like it; every process must have the same value."""
    value = value.to(other.device)
    if not isinstance(other, DTensor):
        return value
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)


@torch.no_grad()
def fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy whole ``values`` into ``targets`` of the same names, in place.

    Raises:
        KeyError: a target has no value.
        ValueError: a value has another shape.
    """
    for name, target in targets.items():
        value = values[name]
        if value.shape != target.shape:
            raise ValueError(f"{name} has the shape {list(value.shape)} instead of {list(target.shape)}")
        local(target).copy_(local(like(value, target)))
