"""Values that change over a run: their numbers, their refusals, and that a run follows them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import cli, recipe
from vlp.durations import Schedule, Scheduled, Span, largest, settled, smallest, value_at
from vlp.inspection import inspect
from vlp.objectives import base
from vlp.track import read_metrics
from vlp.trainer import train
from vlp.types import UserError

SPAN = Span(total_steps=1000, global_batch_size=50, num_samples=2000)  # 40 steps an epoch


def at(step: int, **schedule: Any) -> float:
    return Schedule(**schedule).at(SPAN, step, "key")


# ---- Numbers


@pytest.mark.parametrize(
    ("step", "value"), [(0, 2.0), (99, 2.0), (100, 2.0), (101, 2.02), (150, 3.0), (199, 3.98), (200, 4.0), (999, 4.0)]
)
def test_a_ramp_stays_moves_and_stays(step, value):
    assert at(step, start=2, end=4, after=100, over=101) == pytest.approx(value)


@pytest.mark.parametrize(("step", "value"), [(0, 0.0), (13, 1 / 3), (26, 2 / 3), (38, 38 / 39), (39, 1.0), (41, 1.0)])
def test_a_ramp_from_the_start_over_an_epoch(step, value):
    assert at(step, start=0, end=1, over="1 epochs") == pytest.approx(value)


@pytest.mark.parametrize(("step", "value"), [(0, 1.0), (499, 1.0), (500, 0.0), (999, 0.0)])
def test_a_jump_is_there_at_its_step(step, value):
    assert at(step, start=1, end=0, after="50%") == value


@pytest.mark.parametrize("step", [0, 10, 25, 50, 75, 100])
def test_a_cosine_is_slow_at_both_ends(step):
    found = at(step, start=1, end=0.2, over=101, shape="cosine")
    assert found == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * step / 100)) / 2)


def test_falling_and_rising_meet_in_the_middle():
    for shape in ("linear", "cosine"):
        up, down = ({"start": a, "end": b, "over": 101, "shape": shape} for a, b in ((0, 1), (1, 0)))
        assert all(at(step, **up) + at(step, **down) == pytest.approx(1) for step in range(0, 120, 7))


@pytest.mark.parametrize(
    ("after", "first_moved"), [("1000 samples", 21), ("1 epochs", 41), ("2%", 21), ("7 steps", 8), (0, 1)]
)
def test_it_begins_after_any_duration(after, first_moved):
    moved = [step for step in range(60) if at(step, start=0, end=1, after=after, over=500) > 0]
    assert moved[0] == first_moved


@pytest.mark.parametrize("schedule", [{"over": "100%"}, {"after": "20%", "over": "80%"}, {"after": 3, "over": 10}])
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_what_moves_to_the_end_of_the_run_arrives_in_its_last_update(schedule, shape):
    span = Span(total_steps=13, global_batch_size=4, num_samples=40)
    ramp = Schedule(start=0, end=1, shape=shape, **schedule)
    values = [ramp.at(span, step, "key") for step in range(13)]
    assert values[0] == 0
    assert 0 < values[-2] < values[-1] == 1


def test_the_first_update_has_the_start_and_the_last_the_end():
    ramp = Schedule(start=0, end=1, over="100%")
    assert [ramp.at(Span(3, 4, 40), step, "key") for step in range(3)] == [0, 0.5, 1]


def test_smallest_largest_and_settled():
    falling = Schedule(start=3, end=-1)
    assert (smallest(falling), largest(falling)) == (-1, 3)
    assert (smallest(2.0), largest(2.0), settled(2.0), value_at(2.0, SPAN, 5, "key")) == (2, 2, 2, 2)
    with pytest.raises(AssertionError, match="at a step only"):
        settled(falling)


# ---- Refusals


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        ({"start": 1, "end": 1, "over": 5}, "does not move: write the number alone"),
        ({"start": 1, "end": 0, "shape": "cosine"}, "no effect on a jump"),
        ({"start": 1}, "end"),
        ({"start": 1, "end": 0, "until": 5}, "until"),
        ({"start": float("nan"), "end": 0}, "finite"),
        ({"start": 1, "end": 0, "shape": "step"}, "linear"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(schedule, sentence):
    with pytest.raises(ValidationError, match=sentence):
        TypeAdapter(Scheduled).validate_python(schedule)


def test_an_objective_names_the_key_of_a_duration_that_is_none():
    objective = base.parse({"name": "infonce", "weight": {"start": 1, "end": 0, "after": "5 minutes"}})
    with pytest.raises(UserError, match=r"objectives\.infonce\.weight\.after: '5 minutes' is no duration"):
        objective.at(SPAN, 0)


@pytest.mark.parametrize(
    ("weight", "sentence"),
    [
        (0, "greater than 0"),
        (-1, "greater than 0"),
        ({"start": 1, "end": -0.1}, "never goes below"),
        ({"start": 1, "end": 1}, r"'infonce': weight: a schedule from 1 to 1 does not move: write the number alone$"),
        ({"start": 1}, r"'infonce': the key 'weight\.end' is missing$"),
        ({"start": 1, "to": 0}, r"the key 'weight\.end' is missing$"),
        ({"start": 1, "end": 0, "aftr": 2}, r"'infonce': unknown key 'weight\.aftr', did you mean 'after'\?$"),
        ({"start": "x", "end": 0}, r"weight\.start: must be a number, .* \(got 'x'\)$"),
        ({"start": 1, "end": 0, "shape": "step"}, r"weight\.shape: must be 'linear' or 'cosine' \(got 'step'\)$"),
        ({"start": 1, "end": 0, "after": [1]}, r"weight\.after: must be an integer or text"),
        ("x", r"weight: must be a number.* or a mapping, such as .* \(got 'x'\)$"),
        (float("nan"), r"weight: must be a finite number"),
        (float("inf"), r"weight: must be a finite number"),
    ],
)
def test_a_weight_that_makes_no_sense_is_refused_in_a_sentence(weight, sentence):
    with pytest.raises(UserError, match=sentence) as refused:
        base.parse({"name": "infonce", "weight": weight})
    assert "objective 'infonce'" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("temperature", [0.009, {"start": 0.1, "end": 0.009, "over": 5}, {"start": 0.001, "end": 0.1}])
def test_a_temperature_that_the_clamp_forbids_is_refused(recipe_file, temperature):
    with pytest.raises(UserError, match=r"temperature 0\.0\d+ is below 1 / max_logit_scale"):
        recipe.load(str(recipe_file), [f"train.temperature={yaml.safe_dump(temperature, default_flow_style=True)}"])
    recipe.load(str(recipe_file), ["train.temperature=0.01"])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "train.temperature={start: 1, end: 0.1, over: tomorrow}",
            r"train\.temperature\.over: 'tomorrow' is no duration",
        ),
        ("objectives.0.weight={start: 1, end: 2, after: 5 foos}", r"infonce\.weight\.after: '5 foos' is no duration"),
        ("objectives.0.weight={start: 1, end: 2, after: 6}", r"infonce\.weight: stays 1 to the end, .* has 6 steps"),
        ("objectives.0.weight={start: 1, end: 2, after: 5, over: 9}", r"infonce\.weight: stays 1 to the end"),
        ("train.temperature={start: 1, end: 0.1, after: 2 epochs}", r"train\.temperature: stays 1 to the end"),
        ("train.temperature={start: 1, end: 0.1}", r"train\.temperature: is 0\.1 from the first step on, so 1 has no"),
    ],
)
def test_a_schedule_that_the_run_cannot_follow_is_refused_before_its_first_step(recipe_file, override, sentence):
    loaded = recipe.load(str(recipe_file), [override])
    for command in (train, inspect):
        with pytest.raises(UserError, match=sentence):
            command(loaded)
    assert not (Path(loaded.run_dir) / "recipe.yaml").exists()


def test_a_schedule_may_move_in_the_last_update_alone(recipe_file):
    recipe.load(str(recipe_file), ["objectives.0.weight={start: 1, end: 2, after: 5}"]).span(48)
    recipe.load(str(recipe_file), ["objectives.0.weight={start: 1, end: 2, after: 4, over: 9}"]).span(48)


# ---- A recipe, and a run


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(ScenesOptions(out=out, num_train=48, num_eval=16, samples_per_shard=16))
    return out


@pytest.fixture
def recipe_file(scenes: Path, tmp_path: Path, tiny_model: dict[str, Any]) -> Path:
    tree = {
        "name": "test",
        "run_dir": str(tmp_path / "run"),
        "data": {"train": str(scenes / "train"), "workers": 0},
        "model": {"config": tiny_model},
        "objectives": [{"name": "infonce"}],
        "train": {"steps": 6, "global_batch_size": 12, "warmup": 1},
        "checkpoint": {"every": 2, "keep": 9},
        "track": {"every": 1, "tensorboard": False},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


OFF_AFTER_2 = "{name: alignment, weight: {start: 0.5, end: 0, after: 2}}"
RISING = "{start: 0, end: 1, after: 1, over: 50%, shape: cosine}"


def test_schedules_are_written_out_and_read_again(recipe_file, tmp_path):
    loaded = recipe.load(
        str(recipe_file),
        [f"objectives=[{{name: infonce, weight: {RISING}}}]", "train.temperature={start: 0.1, end: 1}"],
    )
    written = tmp_path / "again.yaml"
    written.write_text(loaded.to_yaml())
    assert recipe.load(str(written)) == loaded
    assert yaml.safe_load(loaded.to_yaml())["objectives"][0]["weight"] == {
        "start": 0.0,
        "end": 1.0,
        "after": 1,
        "over": "50%",
        "shape": "cosine",
    }


def scale(run_dir: Path, step: int) -> float:
    weights = load_file(run_dir / "checkpoints" / f"step-{step:07d}" / "open_clip_model.safetensors")
    return weights["logit_scale"].exp().item()


@pytest.mark.parametrize(
    ("temperature", "at_step"),
    [
        ("0.05", lambda finished: 0.05),
        ("{start: 0.2, end: 0.05, after: 1, over: 4}", lambda finished: 0.2 - 0.15 * min(1, max(0, finished - 1) / 3)),
        ("{start: 0.2, end: 0.05, after: 3}", lambda finished: 0.2 if finished < 3 else 0.05),
    ],
)
def test_a_run_has_the_temperature_that_its_recipe_says(recipe_file, tmp_path, temperature, at_step):
    """In each checkpoint that of the update before it; it is not learned, clamped or decayed."""
    run_dir = train(recipe.load(str(recipe_file), [f"train.temperature={temperature}"])).run_dir
    for step in (2, 4, 6):
        assert scale(run_dir, step) == pytest.approx(1 / at_step(step - 1), rel=1e-5)
    rows = [row for row in read_metrics(run_dir / "metrics.jsonl") if "train/lr" in row]
    assert [row["train/logit_scale"] for row in rows] == pytest.approx([1 / at_step(s) for s in range(6)], rel=1e-5)
    optimiser = load_file(run_dir / "checkpoints" / "latest" / "optimizer.safetensors")
    assert not any("logit_scale" in name for name in optimiser)
    cli.main(["export", str(run_dir), str(tmp_path / "exported")])
    exported = load_file(tmp_path / "exported" / "open_clip_model.safetensors")
    assert exported["logit_scale"].exp().item() == pytest.approx(1 / at_step(5), rel=1e-5)


def test_a_learned_temperature_moves(recipe_file):
    run_dir = train(recipe.load(str(recipe_file), ["train.lr=0.01"])).run_dir
    assert scale(run_dir, 6) != pytest.approx(1 / 0.07, rel=1e-3)


def test_moving_weights_and_every_part_are_logged(recipe_file):
    entries = f"objectives=[{{name: infonce, weight: 2}}, {OFF_AFTER_2}]"
    run_dir = train(recipe.load(str(recipe_file), [entries])).run_dir
    rows = [row for row in read_metrics(run_dir / "metrics.jsonl") if "train/lr" in row]
    assert [row["train/weight/alignment"] for row in rows] == [0.5, 0.5, 0, 0, 0, 0]
    assert not any("train/weight/infonce" in row for row in rows), "a weight that stays is in the recipe"
    for row in rows:
        parts = 2 * row["train/contrastive_loss"] + row["train/weight/alignment"] * row.get("train/alignment_loss", 0.0)
        assert row["train/loss"] == pytest.approx(parts, rel=1e-5), "parts are logged without their weights"
    assert ["train/alignment_loss" in row for row in rows] == [True, True, False, False, False, False]


def test_a_part_has_one_name_at_every_step_whatever_else_is_on(recipe_file):
    """Names follow from the recipe: not from which weights are 0, nor from which losses are per sample."""
    entries = [
        "{name: infonce, weight: {start: 1, end: 0, after: 2}}",
        "{name: alignment, weight: 0.5}",
        "{name: infonce, label_smoothing: 0.2, weight: {start: 0, end: 3, after: 4}}",
        "{name: siglip}",
    ]
    run_dir = train(recipe.load(str(recipe_file), [f"objectives=[{', '.join(entries)}]"])).run_dir
    rows = [row for row in read_metrics(run_dir / "metrics.jsonl") if "train/lr" in row]
    first, second = ([row[f"train/weight/{name}"] for row in rows] for name in ("infonce", "infonce.2"))
    assert first == [1, 1, 0, 0, 0, 0]
    assert second == [0, 0, 0, 0, 3, 3]
    for row, one, two in zip(rows, first, second, strict=True):
        assert ("train/contrastive_loss" in row, "train/contrastive_loss.2" in row) == (one > 0, two > 0)
        losses = [row.get(f"train/{part}", 0.0) for part in ("contrastive_loss", "contrastive_loss.2")]
        rest = 0.5 * row["train/alignment_loss"] + row["train/contrastive_loss.3"]
        assert row["train/loss"] == pytest.approx(one * losses[0] + two * losses[1] + rest, rel=1e-5)


def test_inspect_says_a_moving_weight(recipe_file, capsys):
    cli.main(["inspect", str(recipe_file), f"objectives=[{{name: infonce, weight: 2}}, {OFF_AFTER_2}]"])
    assert "objectives    2 x infonce, 0.5 to 0 x alignment\n" in capsys.readouterr().out


def test_a_run_on_a_schedule_goes_on_where_it_was(recipe_file, tmp_path):
    """A schedule has no state: the resumed run is the uninterrupted one."""
    moving = [f"objectives=[{{name: infonce}}, {OFF_AFTER_2}]", "train.temperature={start: 0.2, end: 0.05, over: 6}"]
    whole = train(recipe.load(str(recipe_file), [*moving, f"run_dir={tmp_path / 'whole'}"])).run_dir
    halved = train(recipe.load(str(recipe_file), moving)).run_dir
    for step in (4, 6):  # as if it had been killed after step 2
        for path in (halved / "checkpoints" / f"step-{step:07d}").iterdir():
            path.unlink()
        (halved / "checkpoints" / f"step-{step:07d}").rmdir()
    latest = halved / "checkpoints" / "latest"
    latest.unlink()
    latest.symlink_to("step-0000002")
    train(recipe.load(str(recipe_file), moving))
    one, other = (load_file(run / "checkpoints" / "latest" / "open_clip_model.safetensors") for run in (whole, halved))
    assert all(torch.equal(one[name], other[name]) for name in one)
