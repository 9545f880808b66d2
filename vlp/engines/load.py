"""The engine of a launch around a model."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from vlp.durations import Schedule
from vlp.encoders.two_tower import TwoTower
from vlp.engines import ddp, fsdp2, zero
from vlp.engines.base import Engine
from vlp.engines.launch import Launch
from vlp.objectives.base import needs
from vlp.recipe import Recipe
from vlp.types import UserError

_ENGINES: dict[str, Callable[..., Engine]] = {
    "ddp": ddp.Engine,
    "fsdp2": fsdp2.Engine,
    "zero1": zero.Engine,
    "zero2": zero.Engine,
    "zero3": zero.Zero3,
}


def check(launch: Launch, recipe: Recipe) -> None:
    """Refuse, before anything is loaded, what the engine cannot do.

    Raises:
        UserError: with the engines that can.
    """
    if launch.engine.startswith("zero"):
        zero.imported()
    if recipe.model.lora is not None and launch.engine != "ddp":
        raise UserError(
            f"model.lora does not go with {launch.engine}: take the engine ddp, where it needs little memory"
        )
    _check_recomputing(launch, recipe)
    wanted = needs(recipe.objectives)
    asked = {
        "train.ema_decay": recipe.train.ema_decay is not None,
        "a schedule of train.temperature": isinstance(recipe.train.temperature, Schedule),
        "an objective with a momentum twin": "momentum" in wanted,
        "an objective with a fusion tower": "fusion" in wanted,
    }
    for what, is_asked in asked.items():
        if is_asked and launch.engine == "zero3":
            raise UserError(
                f"zero3 does not go with {what}: DeepSpeed has whole weights only while a module works; "
                "use fsdp2, which shares as much among the processes, or zero2"
            )


def _check_recomputing(launch: Launch, recipe: Recipe) -> None:
    if launch.engine == "zero3" and recipe.train.gradient_checkpointing == "selective":
        # Its linear layers add their bias in place to products that would have been kept: wrong, and nobody is told.
        raise UserError(
            "train.gradient_checkpointing: selective does not go with zero3: write full, or take the engine fsdp2"
        )


def load(launch: Launch, model: TwoTower, recipe: Recipe, frozen: list[nn.Module]) -> Engine:
    """``model``, on the device and with its weights, under the engine of the launch.

    Args:
        frozen: models of the same kind that are used without gradient, and follow its weights.
    """
    return _ENGINES[launch.engine](model, recipe, launch, frozen)
