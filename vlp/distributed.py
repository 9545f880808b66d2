"""Ranks, collectives with gradient, and seeds that are counters instead of states."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from vlp.types import UserError


def rank() -> int:
    """Rank of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """The accelerator of this process, by its number on the machine, or the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))


def leave() -> None:
    """End the process group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def say(message: str) -> None:
    """Print once per run, from rank zero, on stderr (stdout is for results)."""
    if rank() == 0:
        print(message, file=sys.stderr, flush=True)


class Gathering:
    """An all-gather of rows that goes on while its process does something else; every process starts them alike.

    Args:
        local: this process's rows, as many as every other process has.
    """

    def __init__(self, local: Tensor) -> None:
        self._local = local
        self._gathered = local.new_empty(world_size() * local.shape[0], *local.shape[1:])
        self._work = dist.all_gather_into_tensor(self._gathered, local.detach().contiguous(), async_op=True)

    def wait(self) -> Tensor:
        """The rows of all processes, in the order of ranks: (N, ...) -> (B, ...), with the exact gradient."""
        assert self._work is not None
        self._work.wait()
        return _Gathered.apply(self._local, self._gathered)


class _Gathered(torch.autograd.Function):
    """Backward is the reduce-scatter, so each rank gets the whole gradient of its own rows."""

    @staticmethod
    def forward(ctx: FunctionCtx, local: Tensor, gathered: Tensor) -> Tensor:
        return gathered.view_as(gathered)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        rows = grad.shape[0] // world_size()
        if not grad.is_cuda:  # gloo, whose reduce-scatter sends as much as an all-reduce: twice
            parts = torch.empty_like(grad)
            dist.all_to_all_single(parts, grad)
            return parts.unflatten(0, (world_size(), rows)).sum(0), None
        local = grad.new_empty(rows, *grad.shape[1:])
        dist.reduce_scatter_tensor(local, grad)
        return local, None


def gather_rows(local: Tensor) -> Tensor:
    """Concatenate the equally many rows of every rank, in rank order: (N, ...) -> (B, ...).

    The gradient is exact: that of the sum of all ranks' losses. DDP averages over ranks, so a loss that is the mean
    over local rows gets the gradient of the mean over the global batch.
    """
    return Gathering(local).wait() if world_size() > 1 else local


class _MeanOverRanks(torch.autograd.Function):
    """Mean of a tensor over the ranks; backward, too, is the mean: that of the sum of all ranks' losses."""

    @staticmethod
    def forward(ctx: FunctionCtx, local: Tensor) -> Tensor:
        mean = local.clone()
        dist.all_reduce(mean)
        return mean.div_(world_size())

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        mean = grad.clone()
        dist.all_reduce(mean)
        return mean.div_(world_size())


def mean_with_gradient(local: Tensor) -> Tensor:
    """Mean of ``local`` over the ranks, with the exact gradient as `gather_rows` has it."""
    return _MeanOverRanks.apply(local) if world_size() > 1 else local


def sum_over_ranks(values: Tensor) -> None:
    """Replace ``values`` by their sum over the ranks; without gradient."""
    if world_size() > 1:
        dist.all_reduce(values)


def max_over_ranks(values: Tensor) -> None:
    """Replace ``values`` by their maxima over the ranks; without gradient."""
    if world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)


# Small things travel by way of the host (gloo, beside NCCL where there are GPUs), so that nobody waits for a device.


def mean_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """Average named scalars over the ranks in one collective; every rank must hold the same names."""
    if world_size() == 1:
        return values
    packed = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(packed)
    return dict(zip(values, (packed / world_size()).tolist(), strict=True))


def from_all_ranks(value: Any) -> list[Any]:
    """Every rank's ``value`` (small, picklable), in rank order, on all ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` is set on any rank, so that all take the same turn at the same step."""
    if world_size() == 1:
        return flag
    packed = torch.tensor([flag], dtype=torch.uint8)
    dist.all_reduce(packed, op=dist.ReduceOp.MAX)
    return bool(packed.item())


def fail_together(sentence: str) -> None:
    """Raise the UserError of any rank on all of them: one that ended alone would leave the others waiting for it.

    Args:
        sentence: what is wrong on this rank; empty if nothing is.
    """
    if any_rank(bool(sentence)):
        raise UserError(next(filter(None, from_all_ranks(sentence))))


@contextmanager
def failing_together() -> Iterator[None]:
    """A body whose UserError on any rank, be it the only one that works in it, is raised at its end on all of them."""
    sentence = ""
    try:
        yield
    except UserError as error:
        sentence = str(error)
    fail_together(sentence)


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def seed_of(*counters: int | str) -> int:
    """A 63-bit seed that is a pure function of its counters, well mixed however small they are."""
    digest = hashlib.blake2b(repr(counters).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def check_launch() -> None:
    """Refuse a launch that asked for several processes and silently started one.

    ``accelerate launch --cpu --num_processes 2`` starts a single process: it exports MASTER_ADDR as for several but
    no WORLD_SIZE (accelerate 1.15, utils/launch.py).

    Raises:
        UserError: with the command that does start several.
    """
    env = os.environ
    if "ACCELERATE_MIXED_PRECISION" in env and "MASTER_ADDR" in env and "WORLD_SIZE" not in env:
        raise UserError(
            "accelerate launch was asked for several processes but started only one, as it does on the CPU: "
            "use `torchrun --standalone --nproc_per_node N -m vlp train ...` instead"
        )
