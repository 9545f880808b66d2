"""Figures reach the console, metrics.jsonl and TensorBoard, and never stand there twice."""

from __future__ import annotations

import math

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlp.track import Tracker, TrackOptions, read_metrics


def test_rows_beyond_the_checkpoint_are_forgotten_on_resume(tmp_path):
    first = Tracker(TrackOptions(tensorboard=False), tmp_path, "test", 10, 0)
    for step in (1, 2, 3, 4):
        first.log(step, 8 * step, {"train/loss": 1.0 / step})
    first.close()
    second = Tracker(TrackOptions(tensorboard=False), tmp_path, "test", 10, 2)
    second.log(3, 24, {"train/loss": 9.0})
    second.close()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["samples"], row["train/loss"]) for row in rows] == [
        (1, 8, 1.0),
        (2, 16, 0.5),
        (3, 24, 9.0),
    ]


def test_a_row_cut_off_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "train/lo')
    assert read_metrics(path) == [{"step": 1}]


def test_tensorboard_has_the_same_names(tmp_path):
    tracker = Tracker(TrackOptions(), tmp_path, "test", 10, 0)
    tracker.log(5, 40, {"val/image_to_text_R@1": 0.25})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Scalars("val/image_to_text_R@1")
    assert (event.step, event.value) == (5, 0.25)


def test_lines_go_to_a_pipe(tmp_path, capsys):
    tracker = Tracker(TrackOptions(tensorboard=False), tmp_path, "test", 10, 0)
    tracker.log(5, 40, {"train/loss": 0.5}, line="loss 0.5")
    tracker.close()
    assert capsys.readouterr().err == "step 5/10  loss 0.5\n"


def test_a_row_with_a_loss_that_is_not_finite_is_json(tmp_path):
    tracker = Tracker(TrackOptions(tensorboard=False), tmp_path, "test", 10, 0)
    tracker.log(1, 8, {"train/loss": math.nan, "train/grad_norm": math.inf, "train/lr": 0.1})
    tracker.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "samples": 8, "train/loss": null, "train/grad_norm": null, "train/lr": 0.1}\n'
