"""An exponential moving average of the weights, kept beside the model and lent to it for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """``average = decay * average + (1 - decay) * weights`` after each step; buffers are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def update(self, model: nn.Module) -> None:
        lerp(self.average, model.state_dict(), 1 - self.decay)

    def load(self, average: Mapping[str, Tensor]) -> None:
        for name, value in average.items():
            self.average[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Run the body with the averaged weights in ``model``."""
        weights: dict[str, Tensor] = {n: v.detach().clone() for n, v in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(weights)


@torch.no_grad()
def lerp(average: Mapping[str, Tensor], state: Mapping[str, Tensor], share: float) -> None:
    """Move ``average`` in place by ``share`` of the way to ``state``; what is no floating number is copied."""
    names = [name for name, value in state.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in names], [state[name] for name in names], share)
    for name in state.keys() - set(names):
        average[name].copy_(state[name])
