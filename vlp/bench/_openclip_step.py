"""open_clip's own training loop on batches that are there already, to hold ours against."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from types import SimpleNamespace
from typing import Any

import torch
from open_clip.factory import create_loss
from open_clip.transformer import PatchDropout
from torch import Tensor, nn

from vlp.durations import Span
from vlp.encoders import captioner
from vlp.encoders.two_tower import TwoTower
from vlp.objectives import base
from vlp.optim import learning_rate
from vlp.recipe import Recipe

NormalisedBatch = tuple[Tensor, Tensor]  # pictures fp32 NCHW, as its loader hands them over, and ids NL
_PRECISIONS = {"fp32": "fp32", "bf16": "amp_bfloat16", "fp16": "amp"}
_LOG_EVERY = 100  # open_clip's default


def why_not(recipe: Recipe, outline: TwoTower) -> str:
    """Why open_clip's loop cannot train this recipe, whose model has this ``outline``; empty if it can."""
    try:
        importlib.import_module("open_clip_train.train")
    except ImportError as error:
        return f"open_clip's loop lacks {error.name}: pip install {error.name}"
    plain = [base.parse({"name": name}) for name in ("infonce", "siglip")]
    if list(recipe.objectives) not in [[objective] for objective in plain]:
        return "open_clip has no such objectives: it is compared by infonce or siglip alone, without options"
    if captioner.is_coca(outline.clip):
        return "open_clip trains a CoCa by its captions, too: choose a model without"
    options = recipe.train
    if options.ema_decay is not None or options.temperature is not None or options.max_logit_scale != 100:
        return "open_clip has neither ema_decay nor temperature nor another max_logit_scale than 100"
    if recipe.data.neighbours is not None:
        return "open_clip has no neighbours"
    if options.micro_batch_size is not None and options.global_batch_size % options.micro_batch_size:
        return "open_clip accumulates whole micro-batches only: choose a micro_batch_size that divides the batch"
    return ""


class OpenClipLoop:
    """``train_one_epoch`` of open_clip's trainer with its loss and its optimiser; one process.

    Args:
        clip: the model, which it trains in place.
        batches: on the device of ``clip``; used again and again.
        patch_dropout: what ``--force-patch-dropout`` sets.
        compiled: ``--torchcompile``.
    """

    def __init__(
        self,
        clip: Any,
        recipe: Recipe,
        span: Span,
        batches: Sequence[NormalisedBatch],
        patch_dropout: float = 0.0,
        compiled: bool = False,
    ) -> None:
        options = recipe.train
        rows = options.global_batch_size
        micro_batch_size = min(options.micro_batch_size or rows, rows)
        clip.output_dict = True
        if patch_dropout:
            clip.visual.patch_dropout = PatchDropout(patch_dropout)
        if options.gradient_checkpointing is not None:  # it knows one policy, the full one
            clip.set_grad_checkpointing()
        self._clip = torch.compile(clip) if compiled else clip
        self._options, self._span = options, span
        self._accumulation = rows // micro_batch_size
        self._batches = [
            (image[start : start + micro_batch_size], text[start : start + micro_batch_size])
            for image, text in batches
            for start in range(0, rows, micro_batch_size)
        ]
        self._arguments = SimpleNamespace(
            model="",
            device=str(clip.logit_scale.device),
            precision=_PRECISIONS[options.precision],
            batch_size=micro_batch_size,
            accum_freq=self._accumulation,
            grad_clip_norm=options.clip_norm,
            siglip=recipe.objectives[0].name == "siglip",
            loss_dist_impl=None,
            distill=False,
            local_loss=False,
            gather_with_grad=False,
            horovod=False,
            wandb=False,
            rank=0,
            local_rank=0,
            world_size=1,
            skip_scheduler=False,
        )
        self._loss = create_loss(self._arguments)
        self._optimizer = _adamw(clip, recipe)
        self._scaler = torch.amp.GradScaler(clip.logit_scale.device.type) if options.precision == "fp16" else None
        self._done = 0

    def train(self, steps: int) -> None:
        self._train(steps, _LOG_EVERY)

    def losses(self, steps: int) -> list[float]:
        """Train, and read the loss of every step."""
        return self._train(steps, every=1)

    def _train(self, steps: int, every: int) -> list[float]:
        from open_clip_train.train import train_one_epoch

        first, self._done = self._done, self._done + steps
        loader = _Loader(self._batches, first * self._accumulation, steps * self._accumulation)
        self._arguments.log_every_n_steps = every
        figures = _Figures()
        data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}

        def schedule(step: int) -> None:
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(self._options, self._span, first + step)

        moving = (self._loss, 0, self._optimizer, self._scaler, schedule)
        train_one_epoch(self._clip, data, *moving, None, self._arguments, figures)
        return figures.losses


class _Loader:
    """What the loop wants of a loader: batches, their number and that of their samples."""

    def __init__(self, batches: Sequence[NormalisedBatch], first: int, number: int) -> None:
        self._batches, self._first, self.num_batches = batches, first, number
        self.num_samples = number * len(batches[0][0])

    def __iter__(self) -> Iterator[NormalisedBatch]:
        first = self._first % len(self._batches)
        return islice(cycle(self._batches), first, first + self.num_batches)


class _Figures:
    """Stands where TensorBoard's writer does."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if name == "train/loss":
            assert math.isfinite(value), f"open_clip's loss at step {step} is {value}"
            self.losses.append(value)


def _adamw(clip: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """As its trainer builds it: no decay below two dimensions and by name; torch chooses the implementation."""
    options = recipe.train
    named = [(name, parameter) for name, parameter in clip.named_parameters() if parameter.requires_grad]

    def exempt(name: str, parameter: Tensor) -> bool:
        return parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

    groups = [
        {"params": [p for name, p in named if exempt(name, p)], "weight_decay": 0.0},
        {"params": [p for name, p in named if not exempt(name, p)], "weight_decay": options.weight_decay},
    ]
    return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps)
