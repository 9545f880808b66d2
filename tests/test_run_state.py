"""All that a run computes with comes back from a checkpoint, and what is broken there is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from accelerate.state import AcceleratorState

from vlp import checkpoint, recipe, run_state
from vlp.checkpoint import CheckpointOptions, Writer
from vlp.ema import EMA
from vlp.encoders.openclip import build, load
from vlp.encoders.source import CAPTIONER_FILE
from vlp.encoding import Encoding
from vlp.engines.launch import start
from vlp.engines.load import load as load_engine
from vlp.types import UserError

COUNTERS = {"samples": 56, "num_samples": 96, "data": {"names": "d"}, "bad_samples": {}}


class Parts:
    """What the trainer makes of a recipe, but for the data."""

    def __init__(self, seed: int, **model: Any) -> None:
        captions = [{"name": "captioning"}] if "captioner" in model else []
        tree = {
            "name": "test",
            "seed": seed,
            "data": {"train": "none"},
            "model": model,
            "objectives": [{"name": "triple", "queue_size": 8}, *captions],
            "train": {"steps": 8, "global_batch_size": 4, "warmup": 1, "ema_decay": 0.5},
        }
        self.recipe = recipe.validate(tree, "test")
        AcceleratorState._reset_state(reset_partial_state=True)
        launch = start(self.recipe)
        self.model = build(self.recipe.model, seed)
        self.encoding = Encoding(self.model, self.recipe.objectives, self.recipe.rows, 96)
        self.engine = load_engine(launch, self.model, self.recipe, [])
        self.average = EMA(self.model.averaged(), 0.5)

    def train(self) -> None:
        """A step of which every gradient is one."""
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        self.engine.step(None)
        self.average.update(self.model.averaged())

    def save(self, run_dir: Path) -> Path:
        with Writer(run_dir, CheckpointOptions()) as writer:
            taken = run_state.snapshot(7, self.engine, self.encoding, self.average, COUNTERS, self.recipe)
            self.train()  # goes on while it is written
            writer.save(taken)
        found = checkpoint.newest(run_dir, CheckpointOptions())
        assert found is not None
        return found

    def restore(self, path: Path) -> None:
        run_state.restore_model(path, self.model, self.encoding)
        run_state.restore_training(path, self.engine, self.average, checkpoint.read_state(path))

    def values(self) -> dict[str, torch.Tensor]:
        named = {
            "weights": self.engine.weights(),
            "optimizer": self.engine.optimizer_state(),
            "average": self.average.average.items(),
            "momentum": self.encoding.state().items(),
        }
        return {f"{of}/{name}": value.clone() for of, pairs in named.items() for name, value in pairs}


HEAD = {"layers": 1, "width": 16, "heads": 2, "queries": 4}


@pytest.fixture(params=["two towers", "with a captioning head"])
def trained(request: pytest.FixtureRequest, tiny_model: dict[str, Any]) -> tuple[Parts, dict[str, Any]]:
    model = {"config": tiny_model, **({"captioner": HEAD} if "head" in request.param else {})}
    parts = Parts(0, **model)
    parts.train()
    return parts, model


def test_weights_average_moments_twin_and_counters_come_back(tmp_path, trained):
    parts, model = trained
    before = parts.values()
    path = parts.save(tmp_path / "run")
    other = Parts(1, **model)
    other.restore(path)
    after = other.values()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert checkpoint.read_state(path) == {"step": 7, **COUNTERS, "scaler": None}
    assert recipe.difference(path / "recipe.yaml", parts.recipe.to_yaml()) == []


def test_open_clip_and_vlp_load_it(tmp_path, trained):
    parts, _ = trained
    expected = {name: value.clone() for name, value in parts.model.clip.state_dict().items()}
    average = {name: value.clone() for name, value in parts.average.average.items()}
    path = parts.save(tmp_path / "run")
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{path}")
    assert all(torch.equal(value, expected[name]) for name, value in theirs.state_dict().items())
    ours = load(str(tmp_path / "run"))
    values = {f"{prefix}{k}": v for prefix, m in ours.averaged().items() for k, v in m.state_dict().items()}
    assert average.keys() == values.keys()
    assert all(torch.equal(value, values[name]) for name, value in average.items())


FILES = [f"{name}.safetensors" for name in ("open_clip_model", "optimizer", "ema", "momentum", "captioner")]


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(path.read_bytes()[:10]), Path.unlink], ids=["cut", "gone"]
)
def test_what_is_broken_or_missing_is_named(tmp_path, trained, spoil):
    parts, model = trained
    path = parts.save(tmp_path / "run")
    assert (path / CAPTIONER_FILE).exists() == ("captioner" in model)
    for name in (name for name in FILES if (path / name).exists()):
        whole = (path / name).read_bytes()
        spoil(path / name)
        with pytest.raises(UserError, match=r"step-0000007 cannot be resumed \(.*\); remove it to go on") as raised:
            parts.restore(path)
        assert "\n" not in str(raised.value)
        (path / name).write_bytes(whole)
    parts.restore(path)


def test_counters_that_are_missing_are_named(tmp_path, trained):
    path = trained[0].save(tmp_path / "run")
    (path / "state.json").write_text('{"step": 1}')
    with pytest.raises(UserError, match=r"state\.json lacks samples, num_samples, data, bad_samples, scaler"):
        checkpoint.read_state(path)
