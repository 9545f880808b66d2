"""Every process holds the whole model (DDP), by way of Accelerate; also a single process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vlp.encoders.two_tower import TwoTower
from vlp.engines.base import Engine as Base
from vlp.engines.base import trainable
from vlp.engines.launch import Launch
from vlp.health import veto
from vlp.optim import adamw
from vlp.recipe import Recipe


class Engine(Base):
    """DDP, or nothing around the model of a single process."""

    def __init__(self, model: TwoTower, recipe: Recipe, launch: Launch, frozen: list[nn.Module]) -> None:
        self.model = model
        self.optimizer = adamw(model, recipe.train)
        self._accelerator: Accelerator = launch.accelerator
        self._wrapped, self._stepping = self._accelerator.prepare(model, self.optimizer)

    def __call__(self, *arguments: Any) -> dict[str, Tensor]:
        return self._wrapped(*arguments)

    def autocast(self) -> AbstractContextManager[object]:
        return self._accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def no_sync(self) -> AbstractContextManager[object]:
        return self._accelerator.no_sync(self._wrapped)

    def step(self, max_norm: float | None) -> Tensor:
        self._accelerator.unscale_gradients(self._stepping)
        parameters = trainable(self.model)
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if max_norm is not None:  # by infinity, every gradient would be multiplied by one
            clip_grads_with_norm_(parameters, max_norm, norm)
        if self._accelerator.scaler is None:  # which skips such steps itself
            veto(self.optimizer, norm)
        self._stepping.step()
        self._stepping.zero_grad()
        return norm

    def scaler_state(self) -> dict[str, Any] | None:
        scaler = self._accelerator.scaler
        return scaler.state_dict() if scaler is not None else None

    def load_scaler(self, state: dict[str, Any] | None) -> None:
        if self._accelerator.scaler is not None and state is not None:
            self._accelerator.scaler.load_state_dict(state)
