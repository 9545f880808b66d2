"""vlp's own training step on batches that are there already: the trainer's, without what it does between steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vlp import trainer
from vlp.ema import EMA
from vlp.encoders.openclip import build
from vlp.encoders.shape_check import full_shape
from vlp.encoding import Encoding
from vlp.engines import load as engines
from vlp.engines.launch import Launch
from vlp.health import Health
from vlp.objectives.base import needs
from vlp.recipe import Recipe
from vlp.shapes import shape_at
from vlp.types import Batch


class OurLoop:
    """The steps of a run, all of them with the shape of the first.

    Args:
        batches: of this process, on the device; used again and again.
        num_samples: of the data.
        pad_free: whether padding of texts is left out where that is exact, as the trainer always does.
    """

    def __init__(
        self, recipe: Recipe, launch: Launch, batches: Sequence[Batch], num_samples: int, pad_free: bool = True
    ) -> None:
        options, span = recipe.train, recipe.span(num_samples)
        model = build(recipe.model, recipe.seed, recipe.starts(), needs(recipe.objectives))
        if options.gradient_checkpointing is not None:
            model.use_gradient_checkpointing(options.gradient_checkpointing)
        model.to(launch.device)
        encoding = Encoding(model, recipe.objectives, recipe.rows, num_samples)
        engine = engines.load(launch, model, recipe, [encoding.momentum.twin] if encoding.momentum else [])
        shape = shape_at(options, span, 0, full_shape(model))
        rows = len(batches[0])
        # What the trainer's update reads of a run.
        self._run: Any = SimpleNamespace(
            recipe=recipe,
            engine=engine,
            model=engine.model,
            average=EMA(model.averaged(), options.ema_decay) if options.ema_decay else None,
            encoding=encoding,
            span=span,
            micro_batch_size=min(options.micro_batch_size or rows, rows),
            shape=lambda step: shape,
            health=Health(options, Path(recipe.run_dir), span.steps(options.warmup, "train.warmup")),
        )
        self.model = model.train()
        self._batches = [_with_lengths(batch, encoding) for batch in batches] if pad_free else batches
        self._done = 0

    def train(self, steps: int) -> list[Tensor]:
        """The loss of each step, still on the device."""
        found: list[Tensor] = []
        for _ in range(steps):
            batch = self._batches[self._done % len(self._batches)]
            figures: dict[str, Any] = trainer._update(self._run, batch, self._done)
            found.append(figures["loss"])
            self._done += 1
        return found

    def losses(self, steps: int) -> list[float]:
        return torch.stack(self.train(steps)).tolist()


def _with_lengths(batch: Batch, encoding: Encoding) -> Batch:
    """``batch``, on its device, with the lengths of its texts, on the host."""
    found = encoding.with_text_lengths(batch.to("cpu"))
    return replace(batch, text_length_VN=found.text_length_VN, hard_length_KN=found.hard_length_KN)
