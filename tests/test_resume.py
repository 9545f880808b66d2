"""A run that is killed, at any moment, and started again consumes and computes what an uninterrupted one does.

The processes are real and so is their SIGKILL; most are forked from this one, which has the libraries imported already.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image

from data_tools.index import write_index
from vlp import recipe as recipes
from vlp.data.index import open_shard
from vlp.data.layers import LayerWriter
from vlp.data.write import encode_image
from vlp.trainer import train
from vlp.types import UserError

# Tests are no package, so no import statement reaches it.
_spec = importlib.util.spec_from_file_location("resume_runs", Path(__file__).with_name("resume_runs.py"))
assert _spec is not None
assert _spec.loader is not None
runs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runs)
Run, TINY_MODEL, Row = runs.Run, runs.TINY_MODEL, tuple[str, str, str]
STEPS, BATCH = 24, 8


# ---- Data and recipe


def write_tar(path: Path, numbers: Sequence[int], spoilt: Sequence[int] = ()) -> None:
    """Samples with a picture, a text and two more in a JSON list; the pictures of ``spoilt`` are broken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            pixels = np.random.default_rng(i).integers(0, 256, (40, 44 + i % 5, 3), dtype=np.uint8)
            picture = encode_image(Image.fromarray(pixels)) if i not in spoilt else b"broken"
            record = json.dumps({"rewrites": [f"one rewrite {i}", f"another rewrite {i}"]})
            for name, data in (("png", picture), ("txt", f"text {i}".encode()), ("json", record.encode())):
                info = tarfile.TarInfo(f"{i:06d}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_set(folder: Path, counts: Sequence[int], first: int = 0, spoilt: Sequence[int] = ()) -> Path:
    for shard, count in enumerate(counts):
        write_tar(folder / f"{shard:05d}.tar", range(first, first + count), spoilt)
        first += count
    return folder


def write_layer(folder: Path, name: str, value: Callable[[int], Any]) -> None:
    writer = LayerWriter(None, name, {"tool": "test"})
    for path in sorted(folder.glob("*.tar")):
        shard, _ = open_shard(str(path))
        keys = [shard.key(row) for row in range(len(shard))]
        writer.write(shard, keys, {"value": [value(int(key)) for key in keys]})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_set(tmp_path_factory.mktemp("data") / "train", [11, 1, 0, 9, 9], spoilt=[4])
    write_layer(folder, "spoken", lambda i: [f"said of {i}", f"heard of {i}"] if i % 3 else None)
    return folder


def write_recipe(path: Path, train: Any, model: dict[str, Any], **data: Any) -> Path:
    tree = {
        "name": "test",
        "seed": 3,
        "data": {
            "train": train,
            "captions": [{"source": "txt"}, {"source": "json.rewrites", "weight": 2}, {"source": "layer.spoken"}],
            "augment": {
                "crop_scale": [0.4, 1.0],
                "flip": 0.5,
                "colour_jitter": [0.4, 0.4, 0.4, 0.1],
                "blur": [0.5, 0.1, 2],
            },
            "shuffle_window": 7,
            "shuffle_streams": 3,
            "max_bad_fraction": 0.2,
            **data,
        },
        "model": {"config": model},
        "objectives": [{"name": "infonce"}],
        "train": {"steps": STEPS, "global_batch_size": BATCH, "warmup": 2, "ema_decay": 0.9},
        "checkpoint": {"every": 3, "keep": 2},
        "track": {"every": 1, "tensorboard": False},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


# ---- Killed and started again


@pytest.fixture(scope="module")
def recipe(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "recipe.yaml", str(shards), TINY_MODEL)


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Any]:
    """The whole run in one process, or in two."""
    done: dict[int, Any] = {}

    def run(world: int) -> Any:
        if world not in done:
            done[world] = Run(recipe, tmp_path_factory.mktemp("whole") / f"{world}", "data.workers=0")
            done[world].start(world)
            done[world].finish()
        return done[world]

    return run


def assert_repeats(cut: Any, whole: Any, bitwise: bool = True) -> None:
    """Every attempt took the batches of the uninterrupted run from the newest checkpoint on, and the end is one."""
    expected = whole.whole_batches(0)
    seen: set[int] = set()
    starts = []
    for attempt in range(cut.attempts):
        steps_of_ranks = [sorted(rank) for rank in cut.taken(attempt) if rank]
        assert all(steps == list(range(steps[0], steps[-1] + 1)) for steps in steps_of_ranks)
        starts += {steps[0] for steps in steps_of_ranks}
        batches = cut.whole_batches(attempt)
        assert all(batches[step] == expected[step] for step in batches)
        seen |= batches.keys()
    assert starts == sorted(starts), "no checkpoint is lost"
    assert seen == set(range(STEPS))
    (a, a_state, a_losses), (b, b_state, b_losses) = cut.result(), whole.result()
    assert a.keys() == b.keys()
    assert a_state == b_state
    assert [step for step, _ in a_losses] == list(range(1, STEPS + 1))
    if bitwise:
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert a_losses == b_losses
    else:
        assert [loss for _, loss in a_losses] == pytest.approx([loss for _, loss in b_losses], rel=1e-3)


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 1), (2, 3)])
def test_killed_at_any_moment_a_run_takes_up_its_thread(
    recipe: Path, uninterrupted: Callable[[int], Any], tmp_path: Path, world: int, workers: int
) -> None:
    run = Run(recipe, tmp_path / "run", f"data.workers={workers}", "checkpoint.keep=1")
    dice = random.Random(10 * world + workers)
    for moment in ("starting", "training", "saving", "saved", "training", "saving"):
        run.start(world)
        before, steps, delay = run.checkpoints(), dice.randint(2, 6), dice.random()
        if moment == "starting":
            until = time.time() + 0.3 * delay
            run.kill_when(lambda until=until: time.time() > until)
        elif moment == "training":
            run.kill_when(lambda steps=steps: run.num_taken() >= steps)
        elif moment == "saving":
            run.kill_when(lambda: any(run.run_dir.glob("checkpoints/.step-*.partial")))
        else:
            run.kill_when(lambda before=before: not run.checkpoints() <= before)
    assert len(run.checkpoints()) >= 1
    run.start(world)
    run.finish()
    assert_repeats(run, uninterrupted(world))


def test_killed_at_each_file_operation_of_a_save(
    recipe: Path, uninterrupted: Callable[[int], Any], tmp_path: Path
) -> None:
    run = Run(recipe, tmp_path / "run", "data.workers=0", "checkpoint.keep=1")
    checkpoints = tmp_path / "run" / "checkpoints"
    for number in range(1, 100, 3):
        run.start(before=lambda number=number: runs.killed_at_file_operation(number, checkpoints))
        if run.wait() == 0:
            break
        assert run.wait() == -signal.SIGKILL, run.said()
    assert 20 < run.attempts < 100, "a save has more than twenty"
    assert_repeats(run, uninterrupted(1))


# ---- A momentum twin and its queue


@pytest.fixture(scope="module")
def with_twin(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TCL with an average beside its twin and a queue that wraps."""
    path = write_recipe(tmp_path_factory.mktemp("recipe") / "twin.yaml", str(shards), TINY_MODEL)
    tree = yaml.safe_load(path.read_text())
    tree["objectives"] = [{"name": "triple", "queue_size": 2 * BATCH, "momentum": 0.9}]
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.slow
def test_killed_with_a_twin_and_a_queue_a_run_takes_up_its_thread(with_twin: Path, tmp_path: Path) -> None:
    whole, run = (Run(with_twin, tmp_path / name, "data.workers=0") for name in ("whole", "run"))
    whole.start()
    whole.finish()
    for steps in (2, 3, 5):  # with the queue in part filled, full and wrapped
        run.start()
        run.kill_when(lambda steps=steps: run.num_taken() >= steps)
    run.start()
    run.finish()
    assert run.attempts == 4
    assert_repeats(run, whole)
    weights = run.result()[0]
    assert weights["momentum/queue/seen"] == STEPS * BATCH
    assert not torch.equal(weights["momentum/twin/visual.proj"], weights["open_clip_model/visual.proj"])


@pytest.mark.slow
def test_two_processes_go_on_with_the_twin_and_the_queue_of_one(with_twin: Path, tmp_path: Path) -> None:
    overrides = ("model.config.vision_cfg.patch_dropout=0", "data.workers=0")  # ranks draw their own dropout
    whole, run = (Run(with_twin, tmp_path / name, *overrides) for name in ("whole", "run"))
    whole.start()
    whole.finish()
    run.start(1)
    run.kill_when(lambda: run.num_taken() >= 9)
    run.start(2)
    run.finish()
    assert_repeats(run, whole, bitwise=False)
    (weights, _, losses), (expected, _, expected_losses) = run.result(), whole.result()
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in expected_losses], rel=1e-5)
    # Rows of a step enter the queue in another order.
    for name in ("momentum/queue/image", "momentum/queue/text"):
        steps = [sorted(step.tolist()) for step in weights[name].split(BATCH)]
        of_one = [sorted(step.tolist()) for step in expected[name].split(BATCH)]
        torch.testing.assert_close(torch.tensor(steps), torch.tensor(of_one), rtol=0, atol=1e-3)


# ---- Elasticity


def epochs_of(rows: Sequence[Row], num_samples: int) -> list[list[str]]:
    """The keys of each whole epoch."""
    keys = [key for key, _, _ in rows]
    return [sorted(keys[start : start + num_samples]) for start in range(0, len(keys) - num_samples + 1, num_samples)]


def write_mixture(folder: Path) -> dict[str, Any]:
    """Two weighted sources of three shards, of which a filter keeps 16 and 7 samples."""
    a, b = write_set(folder / "a", [13, 0, 11]), write_set(folder / "b", [10], first=100)
    for source in (a, b):
        write_layer(source, "spoken", lambda i: f"said of {i}" if i % 3 else None)
        write_layer(source, "score", float)
    train = [{"shards": str(a), "weight": 2}, {"shards": str(b), "weight": 1}]
    return {"train": train, "filter": "score >= 103 or score < 16"}


@pytest.mark.parametrize("kind", ["plain", "mixture"])
def test_any_world_goes_on_where_another_was_killed(tmp_path: Path, kind: str) -> None:
    plain = {"train": str(write_set(tmp_path / "clean", [11, 1, 0, 9]))}
    write_layer(tmp_path / "clean", "spoken", lambda i: f"said of {i}" if i % 3 else None)
    data = plain if kind == "plain" else write_mixture(tmp_path)
    path = write_recipe(tmp_path / "recipe.yaml", model=TINY_MODEL, **data)
    overrides = ("model.config.vision_cfg.patch_dropout=0", "checkpoint.every=2")  # ranks draw their own dropout
    whole, run = (Run(path, tmp_path / name, *overrides) for name in ("whole", "run"))
    whole.start(1, "data.workers=0")
    whole.finish()
    for world, workers in ((1, 3), (2, 1), (4, 2), (2, 0)):
        before = run.checkpoints()
        run.start(world, f"data.workers={workers}")
        run.kill_when(lambda before=before: not run.checkpoints() <= before)
    run.start(1, "data.workers=2")
    run.finish()
    assert_repeats(run, whole, bitwise=False)
    rows = [row for step in range(STEPS) for row in whole.whole_batches(0)[step]]
    if kind == "plain":
        assert epochs_of(rows, 21) == [[f"{i:06d}" for i in range(21)]] * (STEPS * BATCH // 21)
    else:
        of_a, of_b = ([row for row in rows if (int(row[0]) < 100) == first] for first in (True, False))
        assert epochs_of(of_a, 16) == [[f"{i:06d}" for i in range(16)]] * (len(of_a) // 16)
        assert epochs_of(of_b, 7) == [[f"{i:06d}" for i in range(103, 110)]] * (len(of_b) // 7)
        assert abs(len(of_a) - 2 * len(of_b)) < 0.2 * len(rows)


# ---- One run, one process group


def test_ranks_that_outlive_their_launcher_keep_others_out(recipe: Path, tmp_path: Path) -> None:
    run, second = Run(recipe, tmp_path / "run", "train.steps=10000"), Run(recipe, tmp_path / "second")
    run.start(2)
    run.wait_for(2)
    run._leader.kill()  # as torchrun, whose ranks have sessions of their own
    second.start(2, f"run_dir={run.run_dir}", "train.steps=10000")
    assert second.wait() != 0
    assert f"vlp: {run.run_dir} is being trained in by process" in second.said()
    run.kill()
    run.start(1)
    run.wait_for(1)
    run.kill()


@pytest.mark.slow
def test_torchrun_killed_with_its_ranks(recipe: Path, uninterrupted: Callable[[int], Any], tmp_path: Path) -> None:
    run = Run(recipe, tmp_path / "run")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, "-m", "vlp", "train", str(recipe), f"run_dir={run.run_dir}", "data.workers=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while len(run.checkpoints()) < 2:
        assert process.poll() is None
        time.sleep(0.001)
    for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        each.kill()
    process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "going on from step" in done.stderr
    (weights, state, losses), expected = run.result(), uninterrupted(2).result()
    assert (state, losses) == expected[1:]
    assert all(torch.equal(value, expected[0][name]) for name, value in weights.items())


# ---- The same data


def started(path: Path, *overrides: str) -> Path:
    """A run of two steps in this process."""
    return train(recipes.load(str(path), ("train.steps=2", "data.workers=0", *overrides))).run_dir


def test_a_run_goes_on_with_the_same_shards_in_another_place(shards: Path, recipe: Path, tmp_path: Path) -> None:
    whole = started(recipe, f"run_dir={tmp_path / 'whole'}", "checkpoint.every=1")
    run_dir = shutil.copytree(whole, tmp_path / "run", symlinks=True)
    shutil.rmtree(run_dir / "checkpoints" / "step-0000002")
    (run_dir / "checkpoints" / "latest").unlink()
    local = shutil.copytree(shards, tmp_path / "local")
    write_index([str(local)])
    started(recipe, f"run_dir={run_dir}", "checkpoint.every=1", f"data.train=[{{shards: {local}}}]")
    files = [f"checkpoints/latest/{name}" for name in ("open_clip_model.safetensors", "optimizer.safetensors")]
    assert all((run_dir / name).read_bytes() == (whole / name).read_bytes() for name in files)
    assert recipes.load(str(run_dir / "recipe.yaml")).data.sources[0].shards == str(local)


def rename(folder: Path) -> None:
    (folder / "00004.tar").rename(folder / "00005.tar")
    (folder / "layers/spoken/00004.parquet").rename(folder / "layers/spoken/00005.parquet")


def move_samples(folder: Path) -> None:
    write_tar(folder / "00003.tar", range(12, 20))
    write_tar(folder / "00004.tar", range(20, 30))


def write_anew(folder: Path) -> None:
    write_set(folder, [11, 1, 0, 9, 9], first=50)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (rename, "has other names of shards now than when this run was saved"),
        (move_samples, "has other numbers of samples in its shards now than when this run was saved"),
        (write_anew, r"has a 0000\d\.tar of [\d,]+ bytes now, but of [\d,]+ when this run was saved"),
        (lambda folder: (folder / "00001.tar").unlink(), "has 29 samples now, but 30 when this run was saved"),
    ],
)
def test_a_run_does_not_go_on_with_other_shards(
    shards: Path, recipe: Path, tmp_path: Path, change: Callable[[Path], None], sentence: str
) -> None:
    run_dir = started(recipe, f"run_dir={tmp_path / 'run'}")
    stored = (run_dir / "recipe.yaml").read_text()
    other = shutil.copytree(shards, tmp_path / "other")
    change(other)
    shutil.rmtree(other / "layers")
    write_layer(other, "spoken", lambda i: f"said of {i}" if i % 3 else None)
    with pytest.raises(UserError, match=f"data.train {sentence}: bring the shards and layers back") as raised:
        started(recipe, f"run_dir={run_dir}", f"data.train={other}", "track.every=2")
    assert "\n" not in str(raised.value)
    assert (run_dir / "recipe.yaml").read_text() == stored, "a run keeps the recipe it was trained with"


def test_a_run_does_not_go_on_with_other_weights_or_another_layer_to_filter_by(tmp_path: Path) -> None:
    data = write_mixture(tmp_path)
    path = write_recipe(tmp_path / "recipe.yaml", model=TINY_MODEL, **data)
    run_dir = started(path, f"run_dir={tmp_path / 'run'}")
    with pytest.raises(UserError, match=r"other weights or kinds of draws of its sources now"):
        started(path, f"run_dir={run_dir}", "data.train.0.weight=3")
    with pytest.raises(UserError, match=r"different: data\.filter"):
        started(path, f"run_dir={run_dir}", "data.filter=score > 103 or score < 17")
    shutil.rmtree(tmp_path / "a/layers/score")
    write_layer(tmp_path / "a", "score", lambda i: 23.0 - i)  # as many pass, of each shard
    with pytest.raises(UserError, match=r"other samples that pass data\.filter now than"):
        started(path, f"run_dir={run_dir}")
