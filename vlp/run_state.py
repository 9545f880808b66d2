"""Everything that a run computes with; as a snapshot to save, and back from a checkpoint.

There are no random states in it: every draw is a function of (seed, step) or (seed, position).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from vlp import checkpoint, distributed
from vlp.checkpoint import FUSION_FILE, LORA_FILE, MOMENTUM_FILE, OPTIMIZER_FILE, EarlyStopping, Snapshot, resuming
from vlp.console import Stopwatch
from vlp.data.bad_samples import BadSamples
from vlp.data.batches import TrainingData
from vlp.durations import Span
from vlp.ema import EMA
from vlp.encoders import lora
from vlp.encoders.openclip import describe_openclip_directory
from vlp.encoders.source import CAPTIONER_FILE, EMA_FILE, WEIGHTS_FILE
from vlp.encoders.two_tower import TwoTower
from vlp.encoding import Encoding
from vlp.engines.base import Engine, on_host
from vlp.health import Health
from vlp.recipe import Recipe
from vlp.run_directory import RECIPE_FILE
from vlp.shapes import Shape
from vlp.track import Tracker
from vlp.types import UserError
from vlp.watchdog import Watchdog


@dataclass
class Run:
    """The moving parts of a run."""

    recipe: Recipe
    engine: Engine
    average: EMA | None
    encoding: Encoding
    data: TrainingData
    span: Span
    micro_batch_size: int
    shape: Callable[[int], Shape]
    flops: float  # of a step, over all processes
    watchdog: Watchdog
    health: Health
    bad_samples: BadSamples
    earlier_bad_samples: list[dict[str, Any]]
    tracker: Tracker | None = None  # on rank zero, as is the writer
    writer: checkpoint.Writer | None = None
    stopping: EarlyStopping | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def model(self) -> TwoTower:
        return self.engine.model

    @property
    def run_dir(self) -> Path:
        return Path(self.recipe.run_dir)

    @property
    def is_over(self) -> bool:
        return self.stopping is not None and self.stopping.is_over

    def evaluates_at(self, step: int) -> bool:
        return bool(self.recipe.evaluate.every and step % self.recipe.evaluate.every == 0)

    def is_best(self, step: int) -> bool:
        """Of the evaluations so far; without early stopping the last one counts."""
        return self.stopping is None or self.stopping.best_step == step

    def samples(self, step: int) -> int:
        return step * self.recipe.train.global_batch_size

    def all_bad_samples(self) -> BadSamples:
        """Those of every rank, and of the run before it was resumed."""
        states = distributed.from_all_ranks(self.bad_samples.state())
        return self.bad_samples.merged([*self.earlier_bad_samples, *states])


_OF_MODEL = {"clip.": WEIGHTS_FILE, "captioner.": CAPTIONER_FILE, "fusion.": FUSION_FILE}


def snapshot(
    step: int, engine: Engine, encoding: Encoding, average: EMA | None, counters: Mapping[str, Any], recipe: Recipe
) -> Snapshot:
    """Whole tensors, on rank zero; every process has to call it."""
    weights = on_host(engine.weights())
    files = {file: _below(prefix, weights) for prefix, file in _OF_MODEL.items()}
    if weights and lora.adapted(engine.model.clip):
        files[WEIGHTS_FILE], files[LORA_FILE] = lora.split(files[WEIGHTS_FILE], engine.model.clip)
    files[EMA_FILE] = on_host(average.average.items() if average else ())
    files[MOMENTUM_FILE] = on_host(encoding.state().items())
    files[OPTIMIZER_FILE] = on_host(engine.optimizer_state())
    state = {**counters, "scaler": engine.scaler_state()}
    return Snapshot(step, files, state, partial(_describe, engine.model, recipe.to_yaml()))


def _describe(model: TwoTower, recipe: str, directory: Path, final: Path) -> None:
    describe_openclip_directory(model, directory, final)
    (directory / RECIPE_FILE).write_text(recipe, encoding="utf-8")


def _below(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def restore_model(path: Path, model: TwoTower, encoding: Encoding) -> None:
    """Weights, twin and queue; before an engine cuts them into parts.

    Raises:
        UserError: a file is missing or does not fit.
    """
    for prefix, file in _OF_MODEL.items():
        module = getattr(model, prefix[:-1])
        if module is not None:
            weights = checkpoint.read(path, file)
            if file == WEIGHTS_FILE and lora.adapted(module):
                _restore_lora(path, module, weights)
                continue
            with resuming(path):
                module.load_state_dict(weights)
    if encoding.state():
        twin = checkpoint.read(path, MOMENTUM_FILE)
        with resuming(path):
            encoding.load_state(twin)


def _restore_lora(path: Path, clip: Any, weights: Mapping[str, Tensor]) -> None:
    beside = checkpoint.read(path, LORA_FILE)
    with resuming(path):
        changed = lora.load(clip, weights, beside)
    if changed:
        raise UserError(
            f"model.init: these are not the weights that the run of {path} began with ({changed[0]} differs): "
            "bring those back, or choose another run_dir"
        )


def restore_training(path: Path, engine: Engine, average: EMA | None, state: Mapping[str, Any]) -> None:
    """Optimiser and averaged weights, as the engine has them."""
    moments = checkpoint.read(path, OPTIMIZER_FILE)
    with resuming(path):
        engine.load_optimizer(moments)
        engine.load_scaler(state["scaler"])
    if average is not None:
        averages = checkpoint.read(path, EMA_FILE)
        with resuming(path):
            average.load(averages)
