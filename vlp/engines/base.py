"""What the trainer asks of an engine: passes through the model, steps of the optimiser, whole tensors to save."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlp import distributed, ema, sharded
from vlp.checkpoint import to_host
from vlp.ema import EMA
from vlp.encoders.two_tower import TwoTower

Named = Iterator[tuple[str, Tensor]]


class Engine(ABC):
    """A model with its optimiser, trained by all processes together.

    Weights are fp32 under every engine, and whatever is saved is whole, so that a run may go on under another engine
    and with another number of processes.
    """

    model: TwoTower
    optimizer: torch.optim.Optimizer
    evaluates_together: ClassVar[bool] = True  # every process has the whole model; else rank zero alone, in `evaluated`

    @abstractmethod
    def __call__(self, *arguments: Any) -> dict[str, Tensor]:
        """A pass through `TwoTower.forward`, in the precision of the run."""

    @abstractmethod
    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the run, for what the engine does not wrap."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, which is the mean over the processes of their losses."""

    @abstractmethod
    def no_sync(self) -> AbstractContextManager[object]:
        """Backward passes in it need not average gradients over the processes: another one follows."""

    @abstractmethod
    def step(self, max_norm: float | None) -> Tensor:
        """Clip the gradient, update the weights, forget the gradient; returns the norm before it was clipped.

        The norm is that of the global gradient, the same on every process. Where it is not finite, weights and
        optimiser stay as they are.
        """

    def parts(self) -> dict[str, Tensor]:
        """Of the weights under their names, what this process holds."""
        return {name: sharded.local(value) for name, value in self.model.state_dict().items()}

    def weights(self) -> Named:
        """Of `model`, under its names, perhaps sharded; every process has to take all of them."""
        yield from self.model.state_dict().items()

    def optimizer_state(self) -> Named:
        """``PARAMETER/FIELD`` and its value, as `weights`."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        for parameter, fields in self.optimizer.state.items():
            for field, value in fields.items():
                yield f"{names[parameter]}/{field}", value

    def load_optimizer(self, state: Mapping[str, Tensor]) -> None:
        """Take over the whole tensors that `optimizer_state` of any engine gave.

        Raises:
            KeyError: a parameter is none of this model's.
        """
        parameters = dict(self.model.named_parameters())
        for key, value in state.items():
            name, field = key.rsplit("/", 1)
            parameter = parameters[name]
            # Fused AdamW keeps its step counter, too, on the device of the parameter.
            of_shape = value.shape == parameter.shape and field != "step"
            self.optimizer.state[parameter][field] = (
                sharded.like(value, parameter) if of_shape else value.to(parameter.device)
            )

    def written(self, parameter: nn.Parameter) -> None:  # noqa: B027 - few need to know
        """The trainer itself has changed ``parameter``."""

    @property
    def scales_gradients(self) -> bool:
        """Whether losses are scaled for fp16, so that gradients that are not finite are part of finding the scale."""
        return self.scaler_state() is not None

    def scaler_state(self) -> dict[str, Any] | None:
        """Of the loss scaling of fp16."""
        return None

    def load_scaler(self, state: dict[str, Any] | None) -> None:  # noqa: B027 - few have one
        """Take over what `scaler_state` gave."""

    @contextmanager
    def evaluated(self, average: EMA | None) -> Iterator[TwoTower | None]:
        """The model as it is evaluated, with its averaged weights where there are any; None where it is not whole.

        Every process has to enter.
        """
        if average is None:
            yield self.model
            return
        with average.applied(self.model.averaged()):
            yield self.model


class ShardedEngine(Engine):
    """One whose processes hold parts of the weights: rank zero keeps a whole copy in host memory, to evaluate with."""

    evaluates_together = False

    def __init__(self, model: TwoTower) -> None:
        self.model, device = model, model.device
        self._whole = model.cpu().copied() if distributed.rank() == 0 else None  # nowhere else is there room for two
        model.to(device)

    @contextmanager
    def evaluated(self, average: EMA | None) -> Iterator[TwoTower | None]:
        values = on_host(self.weights())
        averages = on_host(average.average.items()) if average is not None else {}
        if self._whole is None:
            yield None
            return
        sharded.fill(self._whole.state_dict(), values)
        if averages:
            sharded.fill(ema.state(self._whole.averaged()), averages)
        self._whole.to(self.model.device)
        try:
            yield self._whole
        finally:
            self._whole.cpu()


def on_host(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors in host memory of their own, on rank zero; nothing elsewhere. Every process has to call it."""
    whole = ((name, sharded.whole(tensor.detach())) for name, tensor in tensors)
    if distributed.rank() == 0:
        return to_host(whole)
    for _ in whole:
        pass
    return {}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
