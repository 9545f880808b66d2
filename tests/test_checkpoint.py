"""Checkpoints: atomic, loadable by open_clip, and clear about what is broken."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch

from vlp import checkpoint
from vlp.ema import EMA
from vlp.encoders.captioner import CaptionerOptions
from vlp.encoders.openclip import ModelOptions, build, load
from vlp.encoders.source import CAPTIONER_FILE, EMA_FILE, latest_checkpoint
from vlp.encoders.two_tower import TwoTower
from vlp.optim import OptimOptions, adamw
from vlp.types import UserError

COUNTERS = {"samples": 56, "num_samples": 96, "data": "d", "bad_samples": {}, "scaler": None}


@pytest.fixture
def model(tiny_model) -> TwoTower:
    return build(ModelOptions(config=tiny_model), seed=0)


def trained_once(model: TwoTower) -> torch.optim.Optimizer:
    optimizer = adamw(model, OptimOptions())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def save(run_dir: Path, step: int, model: TwoTower, optimizer: torch.optim.Optimizer, ema: EMA | None = None) -> Path:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "recipe.yaml").write_text("name: test\n")
    return checkpoint.save(run_dir, step, model, optimizer, {EMA_FILE: ema.average if ema else {}}, COUNTERS, keep=2)


def test_weights_average_moments_and_counters_come_back(tmp_path, model, tiny_model):
    optimizer, ema = trained_once(model), EMA(model.averaged(), 0.5)
    save(tmp_path / "run", 7, model, optimizer, ema)
    other = build(ModelOptions(config=tiny_model), seed=1)
    other_optimizer, other_ema = adamw(other, OptimOptions()), EMA(other.averaged(), 0.5)
    found = latest_checkpoint(tmp_path / "run")
    checkpoint.load(found, EMA_FILE, other_ema.load)
    assert checkpoint.restore(found, other, other_optimizer) == {"step": 7, **COUNTERS}
    for one, two in ((model.clip.state_dict(), other.clip.state_dict()), (ema.average, other_ema.average)):
        assert all(torch.equal(one[name], two[name]) for name in one)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert all(torch.equal(optimizer.state[one][k], other_optimizer.state[two][k]) for k in optimizer.state[one])


def test_open_clip_loads_a_checkpoint(tmp_path, model):
    path = save(tmp_path / "run", 1, model, trained_once(model))
    loaded, _, _ = open_clip.create_model_and_transforms(f"local-dir:{path}")
    assert torch.equal(loaded.visual.proj, model.clip.visual.proj)


def test_the_newest_stay_and_latest_points_at_the_last(tmp_path, model):
    optimizer = trained_once(model)
    for step in (1, 2, 3):
        save(tmp_path / "run", step, model, optimizer)
    root = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in root.iterdir()) == ["latest", "step-0000002", "step-0000003"]
    assert latest_checkpoint(tmp_path / "run") == (root / "step-0000003").resolve()


def test_a_save_that_dies_leaves_the_one_before(tmp_path, model, monkeypatch):
    optimizer = trained_once(model)
    save(tmp_path / "run", 1, model, optimizer)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.synchronous, "save_file", full_disk)
    with pytest.raises(UserError, match="No space left"):
        save(tmp_path / "run", 2, model, optimizer)
    assert latest_checkpoint(tmp_path / "run").name == "step-0000001"


def test_a_run_without_a_checkpoint_has_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_broken_file_is_named(tmp_path, model, name):
    optimizer = trained_once(model)
    path = save(tmp_path / "run", 1, model, optimizer)
    (path / name).write_bytes((path / name).read_bytes()[:10])
    with pytest.raises(UserError, match="cannot be resumed") as raised:
        checkpoint.restore(path, model, optimizer)
    assert "\n" not in str(raised.value)
    assert path.name in str(raised.value)


def test_counters_that_are_missing_are_named(tmp_path, model):
    optimizer = trained_once(model)
    path = save(tmp_path / "run", 1, model, optimizer)
    (path / "state.json").write_text('{"step": 1}')
    with pytest.raises(UserError, match=r"state\.json lacks samples, num_samples"):
        checkpoint.restore(path, model, optimizer)


def test_the_average_is_what_the_formula_says_and_is_lent_for_evaluation(model):
    ema = EMA(model.averaged(), decay=0.9)
    before = model.clip.visual.proj.detach().clone()
    with torch.no_grad():
        model.clip.visual.proj += 1.0
    ema.update(model.averaged())
    after = model.clip.visual.proj.detach().clone()
    with ema.applied(model.averaged()):
        torch.testing.assert_close(model.clip.visual.proj, 0.9 * before + 0.1 * after)
    assert torch.equal(model.clip.visual.proj, after)


# ---- A captioning head beside the model


@pytest.fixture
def telling(tiny_model) -> TwoTower:
    head = CaptionerOptions(layers=1, width=16, heads=2, queries=4)
    return build(ModelOptions(config=tiny_model, captioner=head), seed=0)


def test_a_head_its_moments_and_its_average_come_back(tmp_path, telling):
    optimizer, ema = trained_once(telling), EMA(telling.averaged(), 0.5)
    with torch.no_grad():
        for parameter in telling.captioner.parameters():
            parameter += 0.25
    ema.update(telling.averaged())
    path = save(tmp_path / "run", 7, telling, optimizer, ema)
    other = build(
        ModelOptions(
            config=telling.openclip_config["model_cfg"],
            captioner=CaptionerOptions(layers=1, width=16, heads=2, queries=4),
        ),
        seed=1,
    )
    other_optimizer, other_ema = adamw(other, OptimOptions()), EMA(other.averaged(), 0.5)
    checkpoint.load(path, EMA_FILE, other_ema.load)
    checkpoint.restore(path, other, other_optimizer)
    values = other.captioner.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in telling.captioner.state_dict().items())
    assert all(torch.equal(value, other_ema.average[name]) for name, value in ema.average.items())
    for one, two in zip(telling.captioner.parameters(), other.captioner.parameters(), strict=True):
        assert all(torch.equal(optimizer.state[one][k], other_optimizer.state[two][k]) for k in optimizer.state[one])
    average = load(str(path)).captioner.state_dict()
    assert all(torch.equal(value, ema.average[f"captioner.{name}"]) for name, value in average.items())


def test_the_average_of_a_head_is_lent_for_evaluation(telling):
    ema, weight = EMA(telling.averaged(), decay=0.9), telling.captioner.text.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 1.0
    ema.update(telling.averaged())
    after = weight.detach().clone()
    with ema.applied(telling.averaged()):
        torch.testing.assert_close(weight, 0.9 * before + 0.1 * after)
    assert torch.equal(weight, after)


def test_a_checkpoint_without_its_head_is_named(tmp_path, telling):
    optimizer = trained_once(telling)
    path = save(tmp_path / "run", 1, telling, optimizer)
    for spoil in (lambda file: file.write_bytes(file.read_bytes()[:10]), Path.unlink):
        spoil(path / CAPTIONER_FILE)
        with pytest.raises(UserError, match="cannot be resumed") as raised:
            checkpoint.restore(path, telling, optimizer)
        assert "\n" not in str(raised.value)
        assert path.name in str(raised.value)
