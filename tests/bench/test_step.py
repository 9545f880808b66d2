"""vlp bench step: both loops train the same model on the same batches, and the peer's is open_clip's own."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from open_clip.transformer import PatchDropout

from vlp import cli, recipe
from vlp.bench import _openclip_step, _steps, step
from vlp.bench._step_case import OURS, PEER, WHOLE, Case, Contender
from vlp.encoders.two_tower import TwoTower
from vlp.engines.launch import start

pytest.importorskip("open_clip_train.train")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A few drawn scenes."""
    from data_tools.scenes import ScenesOptions, write_scenes

    out = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(ScenesOptions(out=out, num_train=96, num_eval=2, image_size=32))
    return str(out / "train")


@pytest.fixture
def recipe_with(shards: str, tiny_model: dict[str, Any]) -> Callable[..., recipe.Recipe]:
    def make(**train: Any) -> recipe.Recipe:
        objective = train.pop("objective", {"name": "infonce"})
        tree = {
            "name": "tiny",
            "data": {"train": shards, "workers": 0},
            "model": {"config": tiny_model},
            "objectives": [objective],
            "train": {"steps": 40, "global_batch_size": 16, "lr": 1e-3, "warmup": 4, **train},
        }
        return recipe.validate(tree, "test")

    return make


def figures_of(recipe: recipe.Recipe) -> dict[str, Any]:
    return step.run(recipe, seconds=0, repeats=2, curve=6)


def test_both_losses_fall_alike(recipe_with, capsys):
    figures = figures_of(recipe_with())
    ours, theirs = (figures["loops"][name]["losses"] for name in (OURS, PEER))
    assert len(ours) == len(theirs) == 6
    assert figures["loss_difference"] == max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
    assert abs(ours[-1] - ours[0]) > 1e-2  # weights moved
    assert list(figures["ratio"]) == [f"{PEER} / {OURS}"]
    assert all(row["mib"] > 1 and row["samples_per_second"]["min"] > 0 for row in figures["loops"].values())
    assert not figures["no_ratio"]
    printed = capsys.readouterr().out
    assert "texts of" in printed
    assert "losses of the first 6 steps" in printed


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"name": "siglip"}},
        {"micro_batch_size": 4},
        {"clip_norm": 0.05, "schedule": "constant"},
        {"gradient_checkpointing": "full"},
        {"gradient_checkpointing": "selective"},
    ],
)
def test_the_peer_does_what_the_recipe_says(recipe_with, changes):
    """Its loss, cached micro-batches, clipping: with another one the curves part."""
    assert figures_of(recipe_with(**changes))["loss_difference"] < 1e-4


def test_clipping_changes_the_curve(recipe_with):
    plain, clipped = (figures_of(recipe_with(clip_norm=norm))["loops"][PEER]["losses"] for norm in (None, 1e-3))
    assert plain[0] == clipped[0]
    assert abs(plain[-1] - clipped[-1]) > 1e-4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"objective": {"name": "infonce", "label_smoothing": 0.1}}, "no such objectives"),
        ({"objective": {"name": "decoupled"}}, "no such objectives"),
        ({"ema_decay": 0.9}, "ema_decay"),
        ({"temperature": 0.05}, "temperature"),
        ({"micro_batch_size": 5}, "micro_batch_size"),
    ],
)
def test_what_open_clip_cannot_train_is_measured_alone(recipe_with, capsys, changes, reason):
    figures = figures_of(recipe_with(**changes))
    assert reason in figures["no_ratio"]
    assert reason in capsys.readouterr().out
    assert list(figures["loops"]) == [OURS]
    assert figures["ratio"] == {}
    assert figures["loss_difference"] is None


def test_a_coca_is_measured_alone(recipe_with, tiny_coca):
    options = recipe_with(schedule="constant")
    options = options.model_copy(update={"model": options.model.model_copy(update={"config": tiny_coca})})
    figures = figures_of(options)
    assert "CoCa" in figures["no_ratio"]
    assert list(figures["loops"]) == [OURS]


def test_what_is_left_out_stands_beside_whole_pictures_and_open_clips_own_dropout(recipe_with):
    figures = figures_of(recipe_with(patch_dropout=0.5, image_size=16, text_length=8))
    dropped = f"{PEER}, force_patch_dropout 0.5"
    assert list(figures["loops"]) == [OURS, WHOLE, PEER, dropped]
    assert set(figures["ratio"]) == {f"{peer} / {name}" for peer in (PEER, dropped) for name in (OURS, WHOLE)}
    curves = {name: row["losses"] for name, row in figures["loops"].items()}
    assert figures["loss_difference"] == _steps.difference(curves[WHOLE], curves[PEER]) < 1e-4
    assert abs(curves[OURS][0] - curves[WHOLE][0]) > 1e-4
    assert abs(curves[dropped][0] - curves[PEER][0]) > 1e-4


def test_padding_is_left_out_and_can_be_computed(recipe_with, monkeypatch):
    """As the trainer does it, without a difference to the losses; and as peers do it."""
    seen: list[bool] = []
    real = TwoTower.encode_text

    def looked_on(model, text_NL, shapes=None):
        seen.append(shapes is not None and shapes.ids < text_NL.numel())
        return real(model, text_NL, shapes)

    monkeypatch.setattr(TwoTower, "encode_text", looked_on)
    options = recipe_with()
    case = Case(options, start(options))
    curves = []
    for pad_free in (True, False):
        seen.clear()
        curves.append(case.start(Contender(pad_free=pad_free)).losses(6))
        assert seen == [pad_free] * 6
    assert _steps.difference(*curves) < 1e-4


def test_the_loop_is_open_clips_with_its_rates_and_its_patch_dropout(recipe_with, monkeypatch):
    import open_clip_train.train as theirs

    rates, steps = [], []
    real = theirs.train_one_epoch

    def looked_on(model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, args, tb_writer=None):
        assert isinstance(model.visual.patch_dropout, PatchDropout)
        assert model.visual.patch_dropout.prob == 0.5
        steps.append(data["train"].dataloader.num_batches)

        def schedule(i):
            scheduler(i)
            rates.append(optimizer.param_groups[0]["lr"])

        real(model, data, loss, epoch, optimizer, scaler, schedule, dist_model, args, tb_writer)

    monkeypatch.setattr(theirs, "train_one_epoch", looked_on)
    options = recipe_with()
    case = Case(options, start(options))
    case.measure({PEER: Contender(peer=True, patch_dropout=0.5)}, seconds=0, repeats=1, curve=6)
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert steps[0] == 6
    assert len(rates) == sum(steps)


def test_batches_follow_each_other_also_over_calls():
    batches = [(torch.zeros(2), torch.tensor(i)) for i in range(3)]
    found = [int(text) for _, text in _openclip_step._Loader(batches, first=4, number=5)]
    assert found == [1, 2, 0, 1, 2]


def test_turns_alternate_and_count_the_samples_of_their_steps():
    said: list[str] = []

    class Loop:
        def __init__(self, name: str) -> None:
            self.name = name

        def train(self, steps: int) -> None:
            said.append(f"{self.name}{steps}")

        def losses(self, steps: int) -> list[float]:
            return []

    windows = _steps.turns({"a": Loop("a"), "b": Loop("b")}, 16, repeats=2, seconds=0, device=torch.device("cpu"))
    assert said == ["a1", "a1", "b1", "b1", "a1", "a2", "b1", "b2", "b1", "b2", "a1", "a2"]
    assert [window.samples for window in windows["a"]] == [32, 32]


def test_memory_is_of_the_model_and_its_steps():
    def loop(mib: int) -> Any:
        class Loop:
            def train(self, steps: int) -> None:
                torch.ones(mib << 18).sum()

        return Loop()

    large, small = (_steps.memory(lambda mib=mib: loop(mib), torch.device("cpu")) for mib in (200, 20))
    assert 150 < large - small < 210


def test_memory_is_not_that_of_garbage_in_this_process():
    class Loop:
        def train(self, steps: int) -> None:
            gc.collect()
            torch.ones(100 << 18).sum()

    gc.disable()
    try:
        garbage = SimpleNamespace(tensor=torch.ones(300 << 18))
        garbage.itself = garbage
        del garbage
        assert 90 < _steps.memory(Loop, torch.device("cpu")) < 140
    finally:
        gc.enable()


def test_several_processes_are_refused(recipe_with, monkeypatch):
    options = recipe_with()
    monkeypatch.setattr(step.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(step, "start", lambda recipe: None)
    with pytest.raises(recipe.UserError, match="one process"):
        step.run(options)


def test_command_writes_all_figures(shards, tmp_path: Path, monkeypatch):
    real = step.run
    monkeypatch.setattr(step, "run", lambda recipe: real(recipe, seconds=0, repeats=1, curve=2))
    path = tmp_path / "figures.json"
    overrides = [f"data.train={shards}", "evaluate.sets=[]", "train.global_batch_size=8"]
    cli.main(["bench", "step", "quickstart", "profile=smoke", *overrides, "--json", str(path)])
    assert json.loads(path.read_text())["loops"][PEER]["samples_per_second"]["median"] > 0
