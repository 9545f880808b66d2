"""Checkpoints are written beside the steps; whatever goes wrong, the one before stays."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import resource
import shutil
import signal
import threading
import time
import weakref
from pathlib import Path

import open_clip
import pytest
import torch

from vlp.checkpoint import CheckpointOptions, Writer, checksums, newest, read, read_state
from vlp.encoders.openclip import ModelOptions, build, save_openclip_directory
from vlp.encoders.source import checkpoints, latest_checkpoint
from vlp.types import UserError

FORK = multiprocessing.get_context("fork")
KEEP_ONE = CheckpointOptions(keep=1)


def steps(run_dir: Path) -> list[int]:
    return [int(path.name[5:]) for path in checkpoints(run_dir)]


def assert_is(checkpoint: Path | None, step: int) -> None:
    assert checkpoint is not None
    assert checkpoint.name == f"step-{step:07d}"
    assert set(read(checkpoint, "open_clip_model.safetensors")["weight"].tolist()) == {float(step)}
    assert read_state(checkpoint)["step"] == step


# ---- What is written


def test_everything_comes_back(run_dir, snapshot):
    with Writer(run_dir, KEEP_ONE) as writer:
        writer.save(snapshot(7))
    found = newest(run_dir, KEEP_ONE)
    assert_is(found, 7)
    assert read(found, "optimizer.safetensors")["weight/exp_avg"].tolist() == list(range(7, 23))
    assert read_state(found) == {"step": 7, **snapshot(7).state}
    assert (found / "tokenizer" / "place.txt").read_text() == "step-0000007", "describe was told the final place"
    assert not (found / "ema.safetensors").exists(), "no tensors, no file"


def test_open_clip_loads_it(run_dir, snapshot, tiny_model):
    model = build(ModelOptions(config=tiny_model), seed=0)
    values = snapshot(1, describe=lambda partial, final: save_openclip_directory(model, partial, final=final))
    weights = {name: value + 1 for name, value in model.clip.state_dict().items()}
    with Writer(run_dir, KEEP_ONE) as writer:
        writer.save(type(values)(1, {"open_clip_model.safetensors": weights}, values.state, values.describe))
    loaded, _, _ = open_clip.create_model_and_transforms(f"local-dir:{latest_checkpoint(run_dir)}")
    assert torch.equal(loaded.visual.proj, model.clip.visual.proj + 1)


def test_the_newest_stay_and_latest_points_at_the_last(run_dir, snapshot):
    with Writer(run_dir, CheckpointOptions(keep=2)) as writer:
        for step in (9_999_998, 9_999_999, 10_000_000):
            writer.save(snapshot(step))
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["latest", "step-10000000", "step-9999999"]
    assert (run_dir / "checkpoints" / "latest").resolve().name == "step-10000000"
    assert latest_checkpoint(run_dir) == run_dir / "checkpoints" / "step-10000000"


def test_the_same_step_may_be_saved_twice(run_dir, snapshot):
    with Writer(run_dir, KEEP_ONE) as writer:
        writer.save(snapshot(1, numbers=4))
        writer.save(snapshot(1, numbers=5))
    assert len(read(newest(run_dir, KEEP_ONE), "open_clip_model.safetensors")["weight"]) == 5
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["latest", "step-0000001"]


# ---- Beside the steps


def test_save_returns_at_once_and_the_next_one_waits_for_it(run_dir, snapshot):
    go_on, written = threading.Event(), []

    def describe(partial: Path, final: Path) -> None:
        assert go_on.wait(60)
        written.append(final.name)

    with Writer(run_dir, KEEP_ONE) as writer:
        writer.save(snapshot(1, describe=describe))
        writer.check()
        second = threading.Thread(target=writer.save, args=(snapshot(2, describe=describe),))
        second.start()
        second.join(0.05)
        assert second.is_alive()
        assert (written, steps(run_dir)) == ([], [])
        go_on.set()
        second.join()
    assert written == ["step-0000001", "step-0000002"]
    assert_is(newest(run_dir, KEEP_ONE), 2)


def test_the_memory_of_what_is_written_is_free(run_dir, snapshot):
    with Writer(run_dir, KEEP_ONE) as writer:
        values = snapshot(1)
        kept = weakref.ref(values.files["open_clip_model.safetensors"]["weight"])
        writer.save(values)
        del values
        writer.wait()
        gc.collect()
        assert kept() is None


def test_what_is_wrong_reaches_the_loop_once(run_dir, snapshot, until):
    def describe(partial: Path, final: Path) -> None:
        raise UserError("the tokenizer cannot be written")

    writer = Writer(run_dir, KEEP_ONE)
    for raises in (writer.check, lambda: writer.save(snapshot(2)), writer.wait, writer.close):
        writer.save(snapshot(1, describe=describe))
        until(writer._writing.done)
        with pytest.raises(UserError, match="the tokenizer cannot be written"):
            raises()
        writer.check()
    assert list((run_dir / "checkpoints").iterdir()) == []


def test_an_error_of_ours_is_no_users_error(run_dir, snapshot):
    writer = Writer(run_dir, KEEP_ONE)
    values = snapshot(1)
    writer.save(type(values)(1, {"x.safetensors": {"x": torch.zeros(2, 3).T}}, {}, values.describe))
    with pytest.raises(ValueError, match="non contiguous"):
        writer.close()


def test_a_run_that_fails_still_saves_and_fails_with_its_own_error(run_dir, snapshot, capsys):
    def train(step: int) -> None:
        with Writer(run_dir, KEEP_ONE) as writer:
            writer.save(snapshot(step))
            raise UserError("the loss is nan")

    with pytest.raises(UserError, match="the loss is nan"):
        train(1)
    assert_is(newest(run_dir, KEEP_ONE), 1)
    (run_dir / "checkpoints" / ".step-0000002.partial").write_text("in the way")
    with pytest.raises(UserError, match="the loss is nan"):
        train(2)
    assert "vlp: checkpoint" in capsys.readouterr().err


def test_a_second_signal_ends_the_run_with_what_is_being_written(run_dir, snapshot):
    def child() -> None:
        with Writer(run_dir, KEEP_ONE) as writer:
            writer.save(snapshot(1, numbers=1_000_000))
            raise KeyboardInterrupt

    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 1
    assert_is(newest(run_dir, KEEP_ONE), 1)


# ---- A full disk


def test_a_full_disk_leaves_the_one_before_and_no_rest(small_disk, snapshot):
    run_dir = small_disk / "run"
    options = CheckpointOptions(keep=2)
    with Writer(run_dir, options) as writer:
        writer.save(snapshot(1, numbers=50_000))  # 600 KB
        writer.save(snapshot(2, numbers=50_000))
        writer.save(snapshot(3, numbers=90_000))
        with pytest.raises(UserError, match=r"step-0000003 cannot be written .*No space left.*the one before stays"):
            writer.wait()
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        "latest",
        "step-0000001",
        "step-0000002",
    ]
    assert_is(newest(run_dir, options), 2)
    with Writer(run_dir, options) as writer:
        writer.save(snapshot(3, numbers=10))
    assert_is(newest(run_dir, options), 3)


@pytest.mark.parametrize("limit", [0, 10, 200, 1000])
def test_a_limit_to_the_size_of_files(run_dir, snapshot, limit):
    """Whichever file it is that cannot be written."""

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            with Writer(run_dir, KEEP_ONE) as writer:
                writer.save(snapshot(2, numbers=1000))
        except UserError as error:
            os._exit(3 if "the one before stays" in str(error) else 4)
        os._exit(5)

    with Writer(run_dir, KEEP_ONE) as writer:
        writer.save(snapshot(1))
    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 3
    assert_is(newest(run_dir, KEEP_ONE), 1)


# ---- Killed


def test_killed_at_each_file_operation_it_leaves_the_newest_whole(tmp_path, snapshot, resume_runs):
    """While the step of the newest is saved again, and one that takes the place of the other."""
    done = tmp_path / "done"

    def describe(partial: Path, final: Path) -> None:
        pass

    def child(run_dir: Path, number: int) -> None:
        resume_runs.killed_at_file_operation(number, run_dir)
        with Writer(run_dir, KEEP_ONE) as writer:
            for step in (1, 2):
                writer.save(snapshot(step, describe=describe))
                writer.wait()
                done.write_text(str(step))
        os._exit(0)

    with Writer(tmp_path / "run", KEEP_ONE) as writer:
        writer.save(snapshot(1, describe=describe))
    for number in range(1, 200):
        run_dir = shutil.copytree(tmp_path / "run", tmp_path / f"{number}", symlinks=True)
        done.write_text("1")
        process = FORK.Process(target=child, args=(run_dir, number))
        process.start()
        process.join()
        assert not any(map(checksums.defect, checkpoints(run_dir))), "no reader sees a half one"
        found = newest(run_dir, KEEP_ONE)
        step = int(found.name[5:])
        assert_is(found, step)
        assert step in (int(done.read_text()), int(done.read_text()) + 1)
        assert not list((run_dir / "checkpoints").glob(".*"))
        assert (run_dir / "checkpoints" / "latest").resolve() == found.resolve()
        shutil.rmtree(run_dir)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert 40 < number < 200, "a save has some twenty"


def test_killed_at_random_moments_it_leaves_the_newest_whole(run_dir, snapshot):
    def child(first: int) -> None:
        with Writer(run_dir, KEEP_ONE) as writer:
            for step in range(first, first + 1000):
                writer.save(snapshot(step, numbers=1_000_000))
        os._exit(0)

    dice, last = random.Random(0), 0
    for _ in range(12):
        process = FORK.Process(target=child, args=(last + 1,))
        process.start()
        time.sleep(0.05 + 0.25 * dice.random())
        process.kill()
        process.join()
        found = newest(run_dir, KEEP_ONE)
        step = int(found.name[5:]) if found else 0
        assert step >= last
        if found:
            assert_is(found, step)
        last = step
    assert last > 0
