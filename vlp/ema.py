"""An exponential moving average of the weights, kept beside the model and lent to it for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vlp import sharded

Modules = Mapping[str, nn.Module]
"""Modules by the prefix of their weights' names, which may be empty."""


class EMA:
    """``average = decay * average + (1 - decay) * weights`` after each step; buffers are copied."""

    def __init__(self, modules: Modules, decay: float) -> None:
        self.decay = decay
        self.average = {name: value.detach().clone() for name, value in state(modules).items()}  # sharded as they are

    def update(self, modules: Modules) -> None:
        lerp(self.average, state(modules), 1 - self.decay)

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Take over whole tensors."""
        sharded.fill({name: self.average[name] for name in average}, average)

    @contextmanager
    def applied(self, modules: Modules) -> Iterator[None]:
        """Run the body with the averaged weights in ``modules``."""
        weights = {name: value.detach().clone() for name, value in state(modules).items()}
        _fill(modules, self.average)
        try:
            yield
        finally:
            _fill(modules, weights)


def state(modules: Modules) -> dict[str, Tensor]:
    """Weights and buffers by their names behind the prefix."""
    return {prefix + name: value for prefix, module in modules.items() for name, value in module.state_dict().items()}


@torch.no_grad()
def _fill(modules: Modules, values: Mapping[str, Tensor]) -> None:
    for name, value in state(modules).items():
        value.copy_(values[name])


@torch.no_grad()
def lerp(average: Mapping[str, Tensor], state: Mapping[str, Tensor], share: float) -> None:
    """Move ``average`` in place by ``share`` of the way to ``state``; what is no floating number is copied."""
    names = [name for name, value in state.items() if value.is_floating_point()]
    averages, values = (sharded.locals_of(tensors[name] for name in names) for tensors in (average, state))
    torch._foreach_lerp_(averages, values, share)
    for name in state.keys() - set(names):
        average[name].copy_(state[name])
