"""A recipe's model and batches, trained by vlp and by open_clip turn by turn."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from vlp import flops
from vlp.bench import _steps
from vlp.bench._openclip_step import NormalisedBatch, OpenClipLoop
from vlp.bench._our_loop import OurLoop
from vlp.bench._rounds import Window, ratio
from vlp.data.batches import TrainingData
from vlp.encoders.openclip import build, outline
from vlp.encoders.shape_check import full_shape
from vlp.encoding import crops
from vlp.engines.launch import Launch
from vlp.objectives.base import hard_texts, needs, text_views
from vlp.recipe import Recipe, TrainOptions
from vlp.shapes import shape_at
from vlp.types import Batch

OURS, WHOLE, PEER = "vlp", "vlp, whole pictures and texts", "open_clip"
WHOLE_SHAPE: dict[str, Any] = {"patch_dropout": 0.0, "image_size": None, "text_length": None}
_BATCHES = 4
_MOST_ROWS = 1 << 14  # of all batches together: pictures of peers take four times the memory


@dataclass(frozen=True)
class Contender:
    """A loop to be measured: vlp's with ``changes`` of ``train``, or open_clip's with switches of its own."""

    peer: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    pad_free: bool = True
    patch_dropout: float = 0.0
    compiled: bool = False


class Case:
    """A recipe's model and a few batches of its data, on the device."""

    def __init__(self, recipe: Recipe, launch: Launch) -> None:
        self.recipe, self.launch = recipe, launch
        self.outline = outline(recipe.model, recipe.starts())
        self._data = TrainingData(
            recipe.data,
            self.outline.picture_format,
            self.outline.tokenizer,
            recipe.train.global_batch_size,
            recipe.seed,
            image_views=crops(recipe.objectives),
            text_views=text_views(recipe.objectives),
            with_picture_ids="picture_ids" in needs(recipe.objectives),
            hard_texts=hard_texts(recipe.objectives),
        )
        self._span = recipe.span(self._data.num_samples)
        self._batches = self._read(TrainOptions.model_validate({**recipe.train.model_dump(), **WHOLE_SHAPE}))
        self._normalised: list[NormalisedBatch] = []

    def about(self) -> str:
        """What is measured, in a line."""
        recipe, shape = self.recipe, self.outline
        height, width = shape.picture_format.size
        ids_N = torch.cat([shape.special_tokens.told(batch.text_NL.cpu()).sum(1) + 1 for batch in self._batches])
        mean, most, places = ids_N.float().mean(), ids_N.max(), self._batches[0].text_NL.shape[1]
        return (
            f"{recipe.name}: batches of {recipe.rows}, pictures of {height} x {width}, texts of {mean:.1f} ids in the "
            f"mean, {most} at most, of {places} places; {recipe.train.precision}, {device_name(self.launch.device)}"
        )

    def _read(self, train: TrainOptions) -> list[Batch]:
        """The first batches, all with the shape of the first step."""
        shape = shape_at(train, self._span, 0, full_shape(self.outline))
        number = max(1, min(_BATCHES, _MOST_ROWS // self.recipe.rows))
        return [batch.to(self.launch.device) for batch in self._data.batches(0, number, lambda step: shape)]

    def start(self, contender: Contender) -> _steps.Loop:
        """A model with the recipe's first weights, and its optimiser."""
        recipe, device = self.recipe, self.launch.device
        if not contender.peer:
            train = TrainOptions.model_validate({**recipe.train.model_dump(), **contender.changes})
            changed = recipe.model_copy(update={"train": train})
            smaller = train.image_size is not None or train.text_length is not None
            batches = self._read(train) if smaller else self._batches
            return OurLoop(changed, self.launch, batches, self._data.num_samples, contender.pad_free)
        clip = build(recipe.model, recipe.seed, recipe.starts(), needs(recipe.objectives)).to(device).clip
        return OpenClipLoop(clip, recipe, self._span, self._normalised, contender.patch_dropout, contender.compiled)

    def measure(self, contenders: Mapping[str, Contender], seconds: float, repeats: int, curve: int) -> dict[str, Any]:
        """Memory of each contender, losses of its first ``curve`` steps, then all of them turn by turn.

        Those that the device has no room for are left out, and named.
        """
        device = self.launch.device
        if any(contender.peer for contender in contenders.values()) and not self._normalised:
            model = build(self.recipe.model, self.recipe.seed).to(device)
            self._normalised = [(model.normalise(batch.image_NCHW), batch.text_NL) for batch in self._batches]
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("steps in turn", total=(repeats + 2) * len(contenders))

            def told(name: str) -> None:
                bar.update(task, description=name, advance=1)

            mib = {}
            for name, contender in contenders.items():
                told(f"{name}, memory")
                with suppress(torch.OutOfMemoryError):
                    mib[name] = _steps.memory(partial(self.start, contender), device)
            loops, losses = {name: self.start(contenders[name]) for name in mib}, {}
            for name, loop in loops.items():
                told(f"{name}, losses")
                losses[name] = loop.losses(curve)
            windows = _steps.turns(loops, self.recipe.rows, repeats, seconds, device, told)
        ours = [name for name in mib if not contenders[name].peer]
        pairs = [(peer, name) for peer in mib if peer not in ours for name in ours]
        whole = next((name for name in (WHOLE, OURS) if name in mib), None)
        return {
            "batch_size": self.recipe.rows,
            "no_room": [name for name in contenders if name not in mib],
            "loops": {name: self._row(windows[name], mib[name], losses[name]) for name in mib},
            "ratio": {f"{peer} / {name}": ratio(windows[peer], windows[name]) for peer, name in pairs},
            "loss_difference": _steps.difference(losses[whole], losses[PEER]) if whole and PEER in mib else None,
        }

    def _row(self, windows: Sequence[Window], mib: float, losses: list[float]) -> dict[str, Any]:
        """The figures of a contender; FLOPs are those of whole pictures and texts, whatever is left out."""
        rate = _steps.rate(windows)
        flops_per_second = rate["median"] * flops.per_row(self.outline, self.recipe.objectives)
        peak = flops.peak_of(self.launch.device, self.recipe.train.precision)
        return {
            "samples_per_second": rate,
            "cpu_milliseconds_per_sample": _steps.cpu_milliseconds(windows),
            "tflops_per_second": flops_per_second / 1e12,
            "mfu": flops_per_second / peak if peak else None,
            "mib": mib,
            "losses": losses,
        }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
