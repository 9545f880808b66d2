"""A run that ends when it gets no better: what counts, what stays, and the same decisions however often it is cut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.state import AcceleratorState

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import recipe
from vlp.checkpoint import EarlyStopping, EarlyStoppingOptions
from vlp.encoders import source
from vlp.encoders.openclip import load
from vlp.evaluation.run import evaluate
from vlp.track import read_metrics
from vlp.trainer import Outcome, train
from vlp.types import UserError

NAN = float("nan")
METRIC = "val/retrieval/text_to_image_R@5"


def judged(values: list[float], **options: Any) -> tuple[EarlyStopping, list[bool]]:
    """Evaluations at the steps 10, 20, ..., up to the one that ends the run."""
    stopping = EarlyStopping(EarlyStoppingOptions(metric="val/x", **{"patience": 2, **options}))
    better = []
    for number, value in enumerate(values, 1):
        if not stopping.is_over:
            better.append(stopping.see(10 * number, {"val/x": value, "val/y": 0.0}))
    return stopping, better


def test_it_ends_after_so_many_evaluations_without_a_better_one() -> None:
    stopping, better = judged([0.1, 0.3, 0.2, 0.4, 0.4, 0.3, 0.9])
    assert better == [True, True, False, True, False, False]  # the second 0.4 is no better
    assert stopping.is_over
    assert (stopping.best_step, stopping.best, stopping.seen) == (40, 0.4, 60)


def test_lower_may_be_better_and_what_is_not_a_number_never_is() -> None:
    stopping, better = judged([NAN, 0.5, NAN, 0.4, 0.45, 0.41], goal="lowest")
    assert better == [False, True, False, True, False, False]
    assert stopping.best == 0.4


def test_what_was_seen_comes_back_and_counts_once() -> None:
    stopping, _ = judged([0.3, 0.2])
    again = EarlyStopping(stopping.options, json.loads(json.dumps(stopping.state())))
    assert not again.see(20, {"val/x": 0.9})  # seen
    assert again.see(10, {"val/x": 0.0})  # the best
    assert not again.is_over
    assert not again.see(30, {"val/x": 0.1})
    assert again.is_over


def test_a_figure_that_is_better_when_lower_wants_a_word() -> None:
    with pytest.raises(ValueError, match="say which"):
        EarlyStoppingOptions(metric="val/retrieval/image_to_text_mean_rank", patience=1)


# ---- Runs


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(ScenesOptions(out=out, num_train=64, num_eval=16))
    return out


@pytest.fixture
def recipe_file(scenes: Path, tmp_path: Path, tiny_model: dict[str, Any]) -> Path:
    """A rate so high that the model gets worse; saved less often than evaluated."""
    tree = {
        "name": "test",
        "run_dir": str(tmp_path / "run"),
        "data": {"train": str(scenes / "train"), "workers": 0},
        "model": {"config": tiny_model},
        "objectives": [{"name": "infonce"}],
        "train": {
            "steps": 40,
            "global_batch_size": 8,
            "warmup": 1,
            "lr": 3e-2,
            "schedule": "constant",
            "early_stopping": {"metric": METRIC, "patience": 3},
        },
        "evaluate": {"sets": [str(scenes / "eval" / "retrieval")], "every": 2},
        "checkpoint": {"every": 3, "keep": 1},
        "track": {"every": 1, "tensorboard": False},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(path: Path, *overrides: str) -> Outcome:
    AcceleratorState._reset_state(reset_partial_state=True)
    return train(recipe.load(str(path), overrides))


def evaluations(run_dir: Path) -> dict[int, float]:
    return {row["step"]: row[METRIC] for row in read_metrics(run_dir / "metrics.jsonl") if METRIC in row}


def state_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "checkpoints/latest/state.json").read_text())["early_stopping"]


def test_a_run_ends_keeps_its_best_and_that_is_what_it_is_as_a_model(
    recipe_file: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(recipe_file)
    seen = evaluations(outcome.run_dir)
    best = max(seen, key=lambda step: (seen[step], -step))
    assert outcome.finished
    assert outcome.step == max(seen) == best + 6 < 40
    assert f"{seen[best]:.4f} at step {best}" in capsys.readouterr().err
    kept = sorted(path.name for path in (outcome.run_dir / "checkpoints").iterdir())
    assert kept == ["best", "latest", f"step-{best:07d}", f"step-{outcome.step:07d}"]  # keep is 1

    assert source.of_reference(str(outcome.run_dir)).directory == outcome.run_dir / f"checkpoints/step-{best:07d}"
    (result,) = evaluate(load(str(outcome.run_dir)), [scenes / "eval" / "retrieval"], 256, "x", "y")
    assert result.scores.log[METRIC.removeprefix("val/")] == seen[best]
    stored = json.loads((outcome.run_dir / "evaluation/retrieval.json").read_text())
    assert stored["step"] == best
    assert stored["metrics"] == result.to_json()["metrics"]
    assert outcome.results[0].step == best

    again = run(recipe_file)  # nothing is left to do
    assert (again.step, again.finished) == (outcome.step, True)
    assert evaluations(outcome.run_dir) == seen


@pytest.mark.parametrize("cut_at", [3, 6])  # 6 is saved before it is evaluated
def test_a_run_that_was_cut_off_decides_the_same(cut_at: int, recipe_file: Path, tmp_path: Path) -> None:
    whole = run(recipe_file, "checkpoint.keep=9").run_dir
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut, symlinks=True)
    for path in cut.glob("checkpoints/step-*"):
        if int(path.name.removeprefix("step-")) > cut_at:
            shutil.rmtree(path)
    (cut / "checkpoints/latest").unlink()
    before = state_of(whole)
    assert run(recipe_file, f"run_dir={cut}", "checkpoint.keep=9").step == max(evaluations(whole))
    assert state_of(cut) == before
    assert (cut / "checkpoints/best").readlink() == (whole / "checkpoints/best").readlink()
    last = f"checkpoints/step-{max(evaluations(whole)):07d}/open_clip_model.safetensors"
    assert (cut / last).read_bytes() == (whole / last).read_bytes()


def test_the_last_evaluation_is_made_up_for_where_it_was_cut_off(recipe_file: Path) -> None:
    """Which no multiple of evaluate.every announces."""
    short = ("train.steps=3", "evaluate.every=9")
    whole = run(recipe_file, *short).run_dir
    (whole / "checkpoints/best").unlink()  # as if it had been killed in the evaluation, after the checkpoint
    outcome = run(recipe_file, *short)
    assert (whole / "checkpoints/best").readlink() == Path("step-0000003")
    assert outcome.results[0].step == 3


def test_a_run_does_not_go_on_under_other_evaluations(recipe_file: Path, scenes: Path) -> None:
    run(recipe_file, "train.steps=3")
    run(recipe_file, "train.steps=3", "evaluate.batch_size=8")  # decides nothing
    for other in ("every=3", f"sets=[{scenes}/eval/retrieval, {scenes}/eval/colour]"):
        with pytest.raises(UserError, match=rf"different: evaluate\.{other.split('=')[0]}"):
            run(recipe_file, "train.steps=3", f"evaluate.{other}")


def test_where_nothing_could_be_compared_no_best_checkpoint_is_named(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(EarlyStopping, "_value", lambda *_: NAN)
    outcome = run(recipe_file, "train.lr=1e-4")
    assert (outcome.step, outcome.results) == (6, [])  # three evaluations
    said = capsys.readouterr().err
    assert "ended at step 6 of 40" in said
    assert "none could be compared" in said
    assert "checkpoints/best" not in said


def test_a_figure_that_no_evaluation_gives_is_refused_at_the_start(recipe_file: Path) -> None:
    with pytest.raises(UserError, match=r"no evaluation gives val/recall; there are .*val/retrieval/image_to_text_R@1"):
        run(recipe_file, "train.early_stopping.metric=val/recall")


def test_it_needs_evaluations(recipe_file: Path) -> None:
    with pytest.raises(UserError, match=r"give evaluate.sets and evaluate.every"):
        recipe.load(str(recipe_file), ["evaluate.every=null"])


def test_a_best_checkpoint_that_is_gone_is_named(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(recipe_file)
    best = source.best_checkpoint(outcome.run_dir)
    assert best is not None
    shutil.rmtree(best)
    assert source.chosen_checkpoint(outcome.run_dir) == outcome.run_dir / f"checkpoints/step-{outcome.step:07d}"
    capsys.readouterr()
    run(recipe_file)
    step = source.step_of(best)
    assert f"the best checkpoint so far, of step {step}, is not in {outcome.run_dir}" in capsys.readouterr().err
