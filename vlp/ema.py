"""An exponential moving average of the weights, kept beside the model and lent to it for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """``average = decay * average + (1 - decay) * weights`` after each step; buffers are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        state = model.state_dict()
        names = [n for n, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in names], [state[n] for n in names], 1 - self.decay)
        for name in state.keys() - set(names):
            self.average[name].copy_(state[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Run the body with the averaged weights in ``model``."""
        weights: dict[str, Tensor] = {n: v.detach().clone() for n, v in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(weights)
