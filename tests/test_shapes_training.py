"""Runs whose steps see less of pictures and texts: killed in any phase, in any number of processes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vlp import cli
from vlp.data.write import ShardWriter, encode_image
from vlp.track import read_metrics

# Tests are no package, so no import statement reaches it.
_spec = importlib.util.spec_from_file_location("resume_runs", Path(__file__).with_name("resume_runs.py"))
assert _spec is not None
assert _spec.loader is not None
runs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runs)

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
STEPS = 8
PHASES = {
    "patch_dropout": {"start": 0.5, "end": 0, "after": 6},
    "image_size": {"start": 16, "end": 32, "after": 4},
    "text_length": {"start": 6, "end": 16, "after": 4},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with ShardWriter(folder / "train", 12) as writer:
        for i in range(24):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 44, 3), dtype=np.uint8)
            caption = " ".join(["a picture of", *[f"thing {i}"] * (1 + i % 4)])
            writer.write(encode_image(Image.fromarray(pixels)), "png", caption)
    tree = {
        "name": "phases",
        "data": {"train": str(folder / "train"), "workers": 0},
        "model": {"config": MODEL},
        "objectives": [{"name": "infonce"}],
        "train": {"steps": STEPS, "global_batch_size": 8, "warmup": 1, **PHASES},
        "checkpoint": {"every": 1, "keep": 1},
        "track": {"every": 1, "tensorboard": False},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = runs.Run(recipe, tmp_path_factory.mktemp("whole") / "run")
    run.start()
    run.finish()
    return run


def test_the_log_tells_the_phases(whole: Any) -> None:
    rows = read_metrics(whole.run_dir / "metrics.jsonl")
    shapes = [[row[f"train/{name}"] for name in ("image_size", "text_length", "patch_dropout")] for row in rows]
    assert shapes == [[16, 6, 0.5]] * 4 + [[32, 16, 0.5]] * 2 + [[32, 16, 0]] * 2


def test_killed_in_each_phase_a_run_ends_as_the_whole_one(recipe: Path, whole: Any, tmp_path: Path) -> None:
    run = runs.Run(recipe, tmp_path / "run", "data.workers=1")
    for steps in (2, 3, 3):  # before, at and after the changes
        run.start()
        run.kill_when(lambda steps=steps: run.num_taken() >= steps)
    run.start()
    run.finish()
    for attempt in range(run.attempts):
        taken, expected = run.whole_batches(attempt), whole.whole_batches(0)
        assert all(taken[step] == expected[step] for step in taken)
    (weights, _, losses), (expected_weights, _, expected_losses) = run.result(), whole.result()
    assert losses == expected_losses
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)


SHARDED = [pytest.param(3, engine, marks=pytest.mark.slow) for engine in ("fsdp2", "zero3")]


@pytest.mark.parametrize(("micro", "engine"), [(4, "ddp"), (3, "ddp"), *SHARDED])
def test_two_processes_train_the_same_model(recipe: Path, whole: Any, tmp_path: Path, micro: int, engine: str) -> None:
    """Also in micro-batches: which patches are left out is a function of the step and of the picture."""
    run = runs.Run(recipe, tmp_path / "run", f"train.micro_batch_size={micro}", f"train.engine={engine}")
    run.start(2)
    run.finish()
    (weights, _, losses), (expected, _, expected_losses) = run.result(), whole.result()
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in expected_losses], rel=1e-4)
    for name, value in expected.items():
        if name.startswith("open_clip_model"):
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.image_size=64", "train.image_size 64 exceeds the model's 32: lower it, or change the model"),
        ("train.text_length.end=20", "train.text_length 6 to 20 exceeds the model's 16"),
        ("model.lock_image=true", "train.patch_dropout: model.lock_image freezes the image tower"),
        ("train.patch_dropout=1", "patch_dropout 1 must lie in [0, 1)"),
    ],
)
def test_what_cannot_be_trained_is_refused_before(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], override: str, sentence: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", str(recipe), f"run_dir={tmp_path / 'run'}", override])
    assert stopped.value.code == 2
    assert sentence in capfd.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
