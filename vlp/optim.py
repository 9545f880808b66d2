"""AdamW with CLIP's parameter groups, and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import nn
from torch.distributed.tensor import DTensor

from vlp.durations import Duration, Scheduled, Span, smallest
from vlp.types import UserError


class OptimOptions(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How the weights move. Defaults are open_clip's for training a ViT from scratch."""

    lr: float = Field(5e-4, gt=0, description="peak learning rate")
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

    Groups as in open_clip: no decay below two dimensions or for names with bn, ln, bias or logit_scale.
    """
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
            # Of a group all or none are sharded: the fused kernel takes no mixture.
            group = {"params": [], "weight_decay": 0.0 if exempt else options.weight_decay}
            groups.setdefault((exempt, isinstance(parameter, DTensor)), group)["params"].append(parameter)
    if not groups:
        raise UserError("nothing to train: model.lock_image and model.lock_text freeze every parameter")
    return torch.optim.AdamW(list(groups.values()), lr=options.lr, betas=options.betas, eps=options.eps, fused=True)
