"""AdamW with CLIP's parameter groups, rates of their own for towers and layers, and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import nn
from torch.distributed.tensor import DTensor

from vlp.durations import Duration, Scheduled, Span, smallest
from vlp.encoders.depth import places, tower_of
from vlp.types import UserError

Positive = Annotated[float, Field(gt=0)]


class RateOptions(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The learning rate of each tower, as a multiple of ``train.lr``; what stays as it is is ``model.lock_*``."""

    image: Positive = Field(1.0, description="of the image tower")
    text: Positive = Field(1.0, description="of the text tower")
    other: Positive = Field(1.0, description="of logit scale and bias, captioner and fusion tower")


class OptimOptions(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How the weights move. Defaults are open_clip's for training a ViT from scratch."""

    lr: float = Field(5e-4, gt=0, description="peak learning rate")
    lr_scale: RateOptions = RateOptions()
    layer_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="in each tower, every layer learns at this multiple of the rate of the one above it (ELECTRA, "
        "BEiT); projections at the full rate, embeddings the slowest",
    )
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's betas")
    eps: float = Field(1e-6, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(0.2, ge=0, description="for matrices; biases, norms and logit scale never decay")
    schedule: Literal["cosine", "constant", "wsd"] = Field(
        "cosine", description="wsd: warm-up, stable, then linear decay over the last `cooldown`"
    )
    warmup: Duration = Field("5%", description="linear warm-up: steps, or '2000 samples', '0.5 epochs', '5%'")
    cooldown: Duration = Field("20%", description="length of the decay of wsd")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of cosine and wsd")
    clip_norm: float | None = Field(None, gt=0, description="clip the global gradient norm to this")
    max_logit_scale: float = Field(100.0, gt=1, description="clamp of exp(logit_scale) after each step")
    temperature: Scheduled | None = Field(
        None, description="1 / exp(logit_scale), fixed at a number or on a schedule; learned without it"
    )

    @model_validator(mode="after")
    def _all_has_an_effect(self) -> OptimOptions:
        if self.schedule != "wsd" and self.cooldown != OptimOptions.model_fields["cooldown"].default:
            raise ValueError(f"cooldown has no effect with the schedule {self.schedule}: remove it, or choose wsd")
        if self.schedule == "constant" and self.min_lr:
            raise ValueError("min_lr has no effect with the schedule constant: remove it, or choose cosine or wsd")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} exceeds lr {self.lr:g}: lower it")
        if self.temperature is not None and not smallest(self.temperature) >= 1 / self.max_logit_scale:
            raise ValueError(
                f"temperature {smallest(self.temperature):g} is below 1 / max_logit_scale "
                f"({1 / self.max_logit_scale:g}): raise one of them"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must lie in [0, 1), such as [0.9, 0.98]")
        return self


def learning_rate(options: OptimOptions, span: Span, step: int) -> float:
    """Learning rate of the update that follows ``step`` finished ones: a pure function, so no state is saved."""
    warmup = span.steps(options.warmup, "train.warmup")
    if step < warmup:
        return options.lr * (step + 1) / warmup
    if options.schedule == "constant":
        return options.lr
    if options.schedule == "cosine":
        progress = (step - warmup) / max(1, span.total_steps - warmup)
        share = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    else:
        cooldown = span.steps(options.cooldown, "train.cooldown")
        share = min(1.0, (span.total_steps - step) / max(1, cooldown))
    return options.min_lr + (options.lr - options.min_lr) * share


def adamw(model: nn.Module, options: OptimOptions) -> torch.optim.AdamW:
    """AdamW over the trainable parameters.

    Groups as in open_clip: no decay below two dimensions or for names with bn, ln, bias or logit_scale. A group's
    ``lr_scale`` is what `learning_rate` is to be multiplied with.

    Raises:
        UserError: nothing is trainable, or a rate is for a tower that is locked or has no layers.
    """
    groups: dict[tuple[bool, bool, float], dict[str, Any]] = {}
    scales = _scales(model, options)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt, scale = _is_exempt(name, parameter), scales[name]
            # Of a group all or none are sharded: the fused kernel takes no mixture.
            group = {"params": [], "weight_decay": 0.0 if exempt else options.weight_decay, "lr_scale": scale}
            groups.setdefault((exempt, isinstance(parameter, DTensor), scale), group)["params"].append(parameter)
    if not groups:
        raise UserError("nothing to train: model.lock_image and model.lock_text freeze every parameter")
    return torch.optim.AdamW(list(groups.values()), lr=options.lr, betas=options.betas, eps=options.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Have each group learn at its multiple of ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def described_groups(model: nn.Module, options: OptimOptions) -> list[str]:
    """A line for each part of the model that learns at a rate of its own: parameters, rate, decay.

    Raises:
        UserError: as `adamw`.
    """
    scales = _scales(model, options)
    place_of = places(model) if options.layer_decay is not None else {}
    counts: dict[tuple[str, float], list[int]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            place = place_of.get(name)
            part = tower_of(name) if place is None else f"{tower_of(name)}, {place}"
            count = counts.setdefault((part, scales[name]), [0, 0])
            count[_is_exempt(name, parameter)] += parameter.numel()
    return [
        f"{part}: {sum(count):,} parameters, lr {options.lr * scale:.2e}"
        + (
            f", weight decay {options.weight_decay:g} for {count[0]:,}"
            if count[0] and options.weight_decay
            else ", no weight decay"
        )
        for (part, scale), count in counts.items()
    ]


def _scales(model: nn.Module, options: OptimOptions) -> dict[str, float]:
    """Of each trainable parameter, its multiple of the learning rate."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    trained = {tower_of(name) for name in names}
    for tower, scale in options.lr_scale.model_dump().items():
        if scale != 1 and tower not in trained and names:
            raise UserError(f"train.lr_scale.{tower} has no effect, as nothing of it is trained: remove it")
    place_of = places(model) if options.layer_decay is not None else {}
    if options.layer_decay is not None and names and not place_of.keys() & set(names):
        raise UserError("train.layer_decay has no effect, as both towers are locked: remove it")
    decay = options.layer_decay or 1.0
    return {
        name: getattr(options.lr_scale, tower_of(name)) * (decay ** place_of[name].above if name in place_of else 1.0)
        for name in names
    }


def _is_exempt(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
