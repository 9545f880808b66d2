"""Weights, gradients and optimiser in parts (FSDP2): torch's `fully_shard` over the layers of the towers.

Not by way of Accelerate, which ignores FSDP2 on the CPU without a word (1.15): this way is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from vlp import distributed, sharded
from vlp.encoders.blocks import blocks
from vlp.encoders.two_tower import TwoTower
from vlp.engines.base import ShardedEngine, trainable
from vlp.engines.launch import Launch
from vlp.health import veto
from vlp.optim import adamw
from vlp.recipe import Recipe


class Engine(ShardedEngine):
    """The layers of the towers one by one, then all the rest as one; what cannot be in parts is the same everywhere.

    Those are the logit scale and bias, which have no dimension to cut, and the fusion tower, which losses use outside
    the model's own pass.
    """

    def __init__(self, model: TwoTower, recipe: Recipe, launch: Launch, frozen: list[nn.Module]) -> None:
        super().__init__(model)
        self._precision = recipe.train.precision
        self._device = launch.device
        mesh = init_device_mesh(launch.device.type, (distributed.world_size(),))
        for module in (model, *frozen):
            _shard(module, mesh, self._precision, launch)
        self.optimizer = adamw(model, recipe.train)
        self._in_parts = [p for p in trainable(model) if isinstance(p, DTensor)]
        self._everywhere = [p for p in trainable(model) if not isinstance(p, DTensor)]

    def __call__(self, *arguments: Any) -> dict[str, Tensor]:
        with self.autocast():
            return self.model(*arguments)

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bf16")

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)

    def step(self, max_norm: float | None) -> Tensor:
        self._average_what_is_everywhere()
        norm = self._norm()
        if max_norm is not None:
            share = (max_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(sharded.locals_of(self._gradients()), share)
        veto(self.optimizer, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in (*self._in_parts, *self._everywhere) if p.grad is not None]

    def _average_what_is_everywhere(self) -> None:
        gradients = [p.grad for p in self._everywhere if p.grad is not None]
        if not gradients:
            return
        packed = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.sum_over_ranks(packed)
        parts = (packed / distributed.world_size()).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _norm(self) -> Tensor:
        """Of the whole gradient: parts are added up over the processes."""
        in_parts = sharded.locals_of(p.grad for p in self._in_parts if p.grad is not None)
        square = (get_total_norm(in_parts) if in_parts else torch.zeros(())).square().to(self._device)
        distributed.sum_over_ranks(square)
        everywhere = [p.grad for p in self._everywhere if p.grad is not None]
        if everywhere:
            square = square + get_total_norm(everywhere).square()
        return square.sqrt()


def _shard(module: nn.Module, mesh: Any, precision: str, launch: Launch) -> None:
    bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": bf16 if precision == "bf16" else MixedPrecisionPolicy(),
    }
    fusion = getattr(module, "fusion", None)
    everywhere = {p for p in module.parameters() if p.ndim == 0 or p.numel() == 1}
    everywhere |= set(fusion.parameters()) if fusion is not None else set()
    of_fusion = set(fusion.modules()) if fusion is not None else set()
    for block in blocks(module):
        if block not in of_fusion:
            fully_shard(block, reshard_after_forward=launch.reshard_after_forward, **options)
    # Numbers that come with a batch, such as the mean length of captions, keep their precision.
    options["mp_policy"] = replace(options["mp_policy"], cast_forward_inputs=False)
    fully_shard(module, ignored_params=everywhere, **options)
