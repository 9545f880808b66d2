"""The page on a run: all is well with a good one, and each thing that goes wrong is a line with its figures."""

from __future__ import annotations

import io
import json
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from vlp import cli, doctor, recipe, resolve
from vlp.doctor import Finding
from vlp.track import Tracker, TrackOptions
from vlp.types import UserError

ROWS, EVERY, TOTAL = 40, 10, 400
Rows = list[dict[str, float]]


def good_rows(number: int = ROWS) -> Rows:
    """As a healthy run of one process logs them, every `EVERY` steps."""
    rows = []
    for place in range(number):
        step = EVERY * (place + 1)
        loss = 0.5 + 4.5 * math.exp(-place / 8) + 0.05 * math.sin(7 * place)
        rows.append(
            {
                "train/loss": loss,
                "train/contrastive_loss": loss,
                "train/grad_norm": 2 + math.sin(place),
                "train/lr": 1e-3 * min(1, step / 50),
                "train/logit_scale": 14.3 + 0.2 * place,
                "train/batch_time": 0.5,
                "train/data_time": 0.01,
                "train/save_time": 0.1 if step % 100 == 0 else 0.0,
                "train/samples_per_second": 512.0,
                "train/samples_per_second_per_gpu": 512.0,
                "train/skipped_samples": 0.0,
                "train/skipped_updates": 0.0,
                "train/tflops_per_gpu": 1.2,
                "train/mfu": 0.4,
                "train/peak_memory_gib": 20.0,
            }
        )
    return rows


def retrieval(dataset: str = "scenes", **more: Any) -> dict[str, Any]:
    """A result as the trainer writes it."""
    return {
        "dataset": dataset,
        "task": "zeroshot_retrieval",
        "metrics": {"text_retrieval_recall@1": 0.5, "text_retrieval_recall@10": 0.9},
        "chance": {"text_retrieval_recall@1": 0.005, "text_retrieval_recall@10": 0.05},
        "num_images": 1000,
        "num_texts": 5000,
        "tie_rate": 0.0,
        "geometry": {
            "image_uniformity": -2.6,
            "image_effective_rank": 40.0,
            "text_uniformity": -2.5,
            "text_effective_rank": 33.0,
        },
        **more,
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A run directory with these files; by default a good one that is finished."""

    def make(
        rows: Rows | None = None,
        overrides: tuple[str, ...] = (),
        scores: tuple[float, ...] = (0.3, 0.4, 0.5),
        results: tuple[dict[str, Any], ...] = (retrieval(),),
        events: tuple[dict[str, Any], ...] = (),
        saved: tuple[int, ...] = (200, 300, 400),
    ) -> Path:
        directory = tmp_path / "run"
        rows = good_rows() if rows is None else rows
        saved = tuple(step for step in saved if step <= EVERY * len(rows))  # what comes later, nobody has saved
        for folder in ("evaluation", *(f"checkpoints/step-{step:07d}" for step in saved)):
            (directory / folder).mkdir(parents=True)
        changes = [f"train.steps={TOTAL}", "evaluate.sets=[data/scenes]", "checkpoint.every=100", *overrides]
        (directory / "recipe.yaml").write_text(recipe.load("quickstart", changes).to_yaml())
        tracker = Tracker(TrackOptions(tensorboard=False), directory, "run", TOTAL, 0)
        at = {len(rows) * (place + 1) // max(1, len(scores)) - 1: score for place, score in enumerate(scores)}
        for place, row in enumerate(rows):
            step = EVERY * (place + 1)
            tracker.log(step, 256 * step, row)
            if place in at:
                tracker.log(step, 256 * step, {"val/scenes/image_to_text_R@1": at[place]})
        tracker.close()
        for result in results:
            (directory / "evaluation" / f"{result['dataset']}.json").write_text(json.dumps(result))
        for step in saved:
            state = {"step": step, "num_samples": 20_000}
            (directory / f"checkpoints/step-{step:07d}/state.json").write_text(json.dumps(state))
        if events:
            (directory / "health.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
            when = os.stat(directory / "metrics.jsonl").st_mtime + (
                60 if events[-1]["step"] > EVERY * len(rows) else -60
            )
            os.utime(directory / "health.jsonl", (when, when))
        return directory

    return make


def told(directory: Path, topic: str) -> Finding:
    (finding,) = [finding for finding in doctor.examine(directory).findings if finding.topic == topic]
    return finding


def with_figure(name: str, value: Callable[[int], float], number: int = ROWS) -> Rows:
    return [{**row, name: value(place)} for place, row in enumerate(good_rows(number))]


# ---- A good run


def test_a_good_run_is_well_and_fits_a_page(make_run, capsys):
    run = make_run()
    found = doctor.examine(run)
    assert [finding for finding in found.findings if finding.verdict != "ok"] == []
    doctor.show(found, Console(file=(out := io.StringIO())))
    lines = out.getvalue().splitlines()
    assert lines[0] == f"{run} at step 400: 0 bad, 0 look, {len(found.findings)} ok"
    assert len(lines) <= 30
    assert max(map(len, lines[1:])) <= 100
    assert not any("\x1b" in line or line != line.rstrip() for line in lines)
    says = {finding.topic: finding.says for finding in found.findings}
    assert says["progress"] == "finished: step 400 of 400"
    assert says["loss"].startswith("falls: ")
    assert says["speed"] == "512 samples/s, MFU 40 %"
    assert says["memory"] == "20.0 GiB at most"
    assert says["checkpoints"] == "3 kept, the last of step 400; saving took 0.2 % of the time"
    assert says["captions"] == "scenes: 1,000 pictures, 5,000 captions, any of a picture's counts"
    assert says["learning rate"] == "1.00e-03 at step 400, warm-up over at 50"


def test_what_is_worst_comes_first(make_run):
    run = make_run(with_figure("train/data_time", lambda _: 0.2), ("evaluate.every=null",), scores=())
    verdicts = [finding.verdict for finding in doctor.examine(run).findings]
    assert verdicts[:2] == ["bad", "look"]
    assert verdicts == sorted(verdicts, key=["bad", "look", "ok"].index)


def test_the_command_prints_writes_json_and_ends_well_whatever_it_finds(make_run, tmp_path, capsys):
    run = make_run(with_figure("train/data_time", lambda _: 0.4))
    cli.main(["doctor", str(run), "--json", str(tmp_path / "found.json")])
    assert "-> more data.workers (now 2)" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["step"] == 400
    assert found["findings"][0]["topic"] == "data"
    assert set(found["findings"][0]) == {"topic", "verdict", "says", "do"}


# ---- Runs that have just begun, go on, or are none


def test_three_rows_are_not_judged(make_run):
    run = make_run(good_rows(3), scores=(), results=(), saved=())
    found = {finding.topic: finding for finding in doctor.examine(run).findings}
    assert {finding.verdict for finding in found.values()} == {"ok"}
    assert "too few rows" in found["loss"].says
    assert "s ago, about 3 min left" in found["progress"].says or "min left" in found["progress"].says


def test_a_run_without_a_recipe_of_this_version_can_be_looked_at(make_run):
    run = make_run()
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    del tree["train"]["warmup"], tree["checkpoint"]
    (run / "recipe.yaml").write_text(yaml.safe_dump({**tree, "of_another_version": 1}))
    assert told(run, "loss").verdict == "ok"
    (run / "recipe.yaml").unlink()
    assert told(run, "data").verdict == "ok"


def test_the_length_of_a_run_in_epochs_is_known_once_it_is_saved(make_run):
    run = make_run(overrides=("train.steps=null", "train.epochs=10"), saved=(100,))
    assert told(run, "progress").says.startswith("step 400 of 782, last row ")


def test_a_run_that_ended_before_its_first_row(make_run):
    note = "the loss is nan at step 3: its update was left out"
    event = {
        "step": 3,
        "kind": "nonfinite",
        "loss": None,
        "grad_norm": None,
        "ranks": [0],
        "keys": [["a"]],
        "note": note,
    }
    run = make_run([], scores=(), results=(), events=(event,), saved=())
    finding = told(run, "not finite")
    assert finding.verdict == "bad"
    assert finding.says == f"once, the last: {note}"
    assert told(run, "progress").says == "stopped at step 3 of 400"


def test_an_event_of_before_the_run_was_resumed_is_no_news(make_run):
    run = make_run(good_rows(20), events=({**NAN, "step": 205},))
    assert told(run, "progress").says == "stopped at step 205 of 400"
    long_ago = time.time() - 7200
    os.utime(run / "health.jsonl", (long_ago, long_ago))
    assert told(run, "progress").says.startswith("step 200 of 400, last row ")


def test_what_cannot_be_read_is_an_error_with_a_cure(make_run, tmp_path):
    (tmp_path / "empty").mkdir()
    for directory, sentence in (
        (tmp_path / "nothing", "give the directory that vlp train wrote"),
        (tmp_path / "empty", "it has neither recipe.yaml nor metrics.jsonl"),
        (make_run([], scores=(), results=(), saved=()), r"wait for step 10 \(track\.every\)"),
    ):
        with pytest.raises(UserError, match=sentence):
            doctor.examine(directory)


def test_files_cut_off_by_a_kill_are_read_as_far_as_they_go(make_run):
    run = make_run()
    with (run / "metrics.jsonl").open("a") as rows:
        rows.write('{"step": 410, "train/lo')
    (run / "health.jsonl").write_text('{"step": 41')
    (run / "evaluation/half.json").write_text('{"dataset": ')
    (run / "checkpoints/step-0000400/state.json").write_text("")
    assert told(run, "progress").verdict == "ok"


def test_a_run_that_fell_silent(make_run):
    run = make_run(good_rows(20))
    long_ago = time.time() - 7200
    os.utime(run / "metrics.jsonl", (long_ago, long_ago))
    finding = told(run, "progress")
    assert (finding.verdict, finding.says) == ("look", "step 200 of 400, last row 2.0 h ago")


# ---- What goes wrong

CHANCE = math.log(256)
EVENT: dict[str, Any] = {"loss": 7.0, "grad_norm": 1.0, "ranks": [], "keys": [["k1", "k2"]]}
SPIKE = {**EVENT, "step": 150, "kind": "spike", "note": "the loss jumped to 7 at step 150, from a median of 1.2"}
NAN = {**EVENT, "step": 200, "kind": "nonfinite", "note": "the gradient is nan at step 200: its update was left out"}
DRIFT = {**EVENT, "step": 100, "kind": "drift", "ranks": [1], "keys": [], "note": "weights of rank 1 differ (visual)"}


@pytest.mark.parametrize(
    ("figure", "value", "topic", "verdict", "says"),
    [
        ("train/data_time", lambda _: 0.06, "data", "look", r"waits for it 12\.0 % of its 0\.5 s"),
        ("train/data_time", lambda _: 0.2, "data", "bad", r"waits for it 40\.0 %"),
        ("train/contrastive_loss", lambda _: CHANCE, "loss", "bad", r"ln 256 = 5\.545.*collapsed"),
        ("train/contrastive_loss", lambda _: 1.1 * CHANCE, "loss", "bad", "collapsed"),
        ("train/loss", lambda place: 4 + 0.02 * math.sin(place), "loss", "look", "not falling"),
        ("train/loss", lambda place: 5 - 0.1 * min(place, 20) + 0.1 * max(0, place - 25), "loss", "look", "rose again"),
        ("train/loss", lambda place: math.nan if place == ROWS - 1 else 4.0, "loss", "bad", "not finite at step 400"),
        ("train/grad_norm", lambda place: 1 if place < 35 else 500, "gradient", "bad", "exploding: norm 500 now"),
        ("train/grad_norm", lambda place: 1e-9, "gradient", "bad", "nothing moves"),
        ("train/logit_scale", lambda place: min(100.0, 20 + 4 * place), "logit scale", "look", "since step 210"),
        (
            "train/logit_scale",
            lambda place: 14 * 0.9**place,
            "logit scale",
            "bad",
            r"sank to 0\.2 \(first row: 14\.0\)",
        ),
        ("train/logit_scale", lambda place: 1.0, "logit scale", "bad", r"sank to 1\.0"),
        ("train/samples_per_second", lambda place: 500 - 8 * place, "speed", "look", "falling: 200 samples/s now"),
        ("train/mfu", lambda place: 0.08, "speed", "look", "MFU 8 %"),
        ("train/peak_memory_gib", lambda place: 20 + place, "memory", "look", "it grows"),
        ("train/save_time", lambda place: 3.0, "checkpoints", "look", r"saving took 37\.5 % of the time"),
        ("train/skipped_samples", lambda place: 16 * place, "bad samples", "look", r"624 of 103,024 .*1 % are allowed"),
        ("train/skipped_samples", lambda place: place, "bad samples", "ok", "39 of"),
        ("train/samples_per_second_per_gpu", lambda place: 64.0, "ranks", "ok", "8 processes, weights not compared"),
    ],
)
def test_curves_that_go_wrong(make_run, figure, value, topic, verdict, says):
    finding = told(make_run(with_figure(figure, value)), topic)
    assert re.search(says, finding.says), finding.says
    assert finding.verdict == verdict
    assert bool(finding.do) == (verdict != "ok")


@pytest.mark.parametrize(
    ("events", "topic", "verdict", "says"),
    [
        ((), "not finite", "ok", "every loss and gradient was finite"),
        ((NAN,), "not finite", "look", "once, the last: the gradient is nan at step 200"),
        (({**NAN, "step": 401},), "not finite", "bad", "once"),
        ((NAN,) * 5, "not finite", "bad", "5 times"),
        ((), "loss spikes", "ok", "none"),
        ((SPIKE, {**SPIKE, "step": 170}), "loss spikes", "look", "2, at step 150, 170; the loss jumped to 7"),
        ((DRIFT,), "ranks", "bad", r"drifting since step 100: weights of rank 1 differ \(visual\)"),
    ],
)
def test_what_health_wrote(make_run, events, topic, verdict, says):
    finding = told(make_run(events=events), topic)
    assert re.search(says, finding.says), finding.says
    assert finding.verdict == verdict


def test_updates_that_a_scaler_left_out_are_no_illness(make_run):
    finding = told(make_run(with_figure("train/skipped_updates", lambda place: float(place == 0) * 7)), "not finite")
    assert (finding.verdict, finding.says.count("7 updates left out")) == ("ok", 1)


def test_weights_that_were_compared(make_run):
    rows = [{**row, "train/samples_per_second_per_gpu": 256.0, "train/rank_drift": 0.0} for row in good_rows()]
    assert told(make_run(rows), "ranks").says == "weights equal to the bit on 2 processes (step 400)"


@pytest.mark.parametrize(
    ("overrides", "topic", "says"),
    [
        (("train.lr=10",), "learning rate", r"train\.lr 10"),
        (("train.clip_norm=0.5",), "gradient", r"clipped at 100 % of the steps: norm 2\.\d+ in the middle"),
        (("evaluate.sets=[]",), "evaluation", "no evaluation set"),
        (("train.schedule=constant",), "average", "no average of the weights"),
    ],
)
def test_options_that_go_wrong(make_run, overrides, topic, says):
    finding = told(make_run(overrides=overrides, scores=(), results=()), topic)
    assert re.search(says, finding.says), finding.says
    assert finding.verdict == "look"


def test_the_first_row_waits_for_workers_to_start(make_run):
    rows = with_figure("train/data_time", lambda place: 0.4 if place == 0 else 0.01, 5)
    assert told(make_run(rows, scores=()), "data").says == "a step waits for it 2.0 % of its 0.5 s"


def test_a_loss_over_several_captions_has_another_chance_level(make_run):
    objectives = "objectives=[{name: infonce, captions: 2}]"
    run = make_run(with_figure("train/contrastive_loss", lambda _: CHANCE), (objectives,))
    assert told(run, "loss").verdict == "ok"


def test_a_fixed_temperature_is_no_clamp(make_run):
    run = make_run(with_figure("train/logit_scale", lambda _: 100.0), ("train.temperature=0.01",))
    assert told(run, "logit scale").verdict == "ok"


def test_no_evaluation_before_the_end(make_run):
    run = make_run(good_rows(30), ("evaluate.every=null",), scores=(), results=())
    assert told(run, "evaluation").says == "only at the end of the run"


def test_what_a_kill_costs(make_run):
    slow = with_figure("train/batch_time", lambda _: 60.0, 20)
    finding = told(make_run(slow, saved=(100,)), "checkpoints")
    assert finding.says.startswith("1 kept, the last of step 100; a kill loses 1.7 h at most")
    assert finding.do == "save more often: checkpoint.every=30"


def test_checkpoints_that_do_not_come(make_run):
    finding = told(make_run(good_rows(30), saved=()), "checkpoints")
    assert (finding.verdict, finding.says) == ("bad", "none, at step 300")


AT_CHANCE = {"metrics": {"text_retrieval_recall@1": 0.006, "text_retrieval_recall@10": 0.051}}


@pytest.mark.parametrize(
    ("results", "rows", "verdict", "says"),
    [
        ((retrieval(**AT_CHANCE),), ROWS, "bad", r"1 of 1 set; scenes: text_retrieval_recall@10 5\.1 %, chance 5\.0 %"),
        ((retrieval(), retrieval("hard", **AT_CHANCE)), ROWS, "look", "1 of 2 sets; hard: "),
        ((retrieval(**AT_CHANCE),), 11, "look", "1 of 1 set"),
        ((retrieval(), retrieval("other")), ROWS, "ok", "above it on all 2 sets"),
        ((retrieval(), retrieval("x", task="image_caption_selection", **AT_CHANCE)), ROWS, "ok", "above it on 1 set"),
    ],
)
def test_scores_at_chance(make_run, results, rows, verdict, says):
    finding = told(make_run(good_rows(rows), results=results), "chance")
    assert re.search(says, finding.says), finding.says
    assert finding.verdict == verdict


@pytest.mark.parametrize(
    ("figures", "ties", "verdict"),
    [
        ({"text_uniformity": -0.05}, 0.0, "bad"),
        ({"text_uniformity": -0.7}, 0.0, "look"),
        ({"image_effective_rank": 1.2}, 0.0, "bad"),
        ({}, 0.95, "bad"),
        ({}, 0.5, "look"),
        ({}, 0.05, "ok"),
    ],
)
def test_features_in_one_point(make_run, figures, ties, verdict):
    good = retrieval()
    result = {**good, "geometry": {**good["geometry"], **figures}, "tie_rate": ties}
    assert told(make_run(results=(result,)), "collapse").verdict == verdict


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [((0.3, 0.5, 0.38), "look"), ((0.3, 0.5, 0.49), "ok"), ((0.3, 0.4, 0.5), "ok"), ((0.99, 1.0, 0.995), "ok")],
)
def test_scores_that_fall_while_the_loss_does(make_run, scores, verdict):
    finding = told(make_run(scores=scores), "overfit")
    assert finding.verdict == verdict
    if verdict == "look":
        assert finding.says == "the loss falls, but scenes/image_to_text_R@1 38.0 %, 50.0 % at step 260"


@pytest.mark.parametrize(
    ("dataset", "texts", "verdict", "says"),
    [
        ("mscoco_captions", 1000, "look", "1,000 pictures, 1,000 captions: one a picture"),
        ("flickr30k", 5000, "ok", "any of a picture's counts"),
        ("scenes", 1000, "ok", "do not compare with sets of five captions a picture"),
    ],
)
def test_one_caption_a_picture(make_run, dataset, texts, verdict, says):
    finding = told(make_run(results=(retrieval(dataset, num_texts=texts),)), "captions")
    assert says in finding.says
    assert finding.verdict == verdict


def test_a_captioner_that_does_not_look(make_run):
    run = make_run()
    for own, verdict in ((2.0, "ok"), (2.99, "look")):
        row = {"step": 400, "val/scenes/caption_loss": own, "val/scenes/caption_loss_shuffled": 3.0}
        with (run / "metrics.jsonl").open("a") as rows:
            rows.write(json.dumps(row) + "\n")
        assert told(run, "captioner").verdict == verdict


# ---- What the doctor reads and advises is there


def sources() -> str:
    return "".join(path.read_text() for path in Path(doctor.__file__).parent.glob("*.py"))


def test_every_option_that_is_read_or_named_exists():
    tree = yaml.safe_load(recipe.load("quickstart").to_yaml())
    named = set(re.findall(r"\b((?:train|data|evaluate|checkpoint|track)\.[a-z_]+)\b(?!\()", sources()))
    assert len(named) > 15
    assert sorted(key for key in named if key.split(".")[1] not in tree[key.split(".")[0]]) == []


def test_every_command_that_is_advised_exists():
    for package, folder in re.findall(r"\bvlp (data|bench) ([a-z]+)\b", sources()):
        assert folder in resolve.names({"data": "data_tools", "bench": "vlp.bench"}[package])
