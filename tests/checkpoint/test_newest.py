"""The checkpoint to go on from: the newest that is whole, from here or from its copies; never silently none."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from vlp.checkpoint import CheckpointOptions, Writer, newest, read, read_state
from vlp.encoders.source import latest_checkpoint
from vlp.types import UserError

FORK = multiprocessing.get_context("fork")
HERE_ALONE = CheckpointOptions()


@pytest.fixture
def options(tmp_path) -> CheckpointOptions:
    """With copies in a directory."""
    return CheckpointOptions(copy_to=str(tmp_path / "elsewhere"))


@pytest.fixture
def copies(tmp_path) -> Path:
    return tmp_path / "elsewhere" / "run" / "checkpoints"


@pytest.fixture
def here(run_dir, options, copies, snapshot, until) -> Path:
    """Steps 1, 2 and 3, saved and copied."""
    with Writer(run_dir, options) as writer:
        for number in (1, 2, 3):
            writer.save(snapshot(number))
            until((copies / f"step-000000{number}" / "checksums.json").exists)
    return run_dir / "checkpoints"


def step(checkpoint: Path | None) -> int | None:
    """Of its weights, not of its name."""
    return int(read(checkpoint, "open_clip_model.safetensors")["scale"]) if checkpoint else None


def spoil(checkpoint: Path) -> None:
    path = checkpoint / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- Here


def test_a_new_run_has_none(run_dir):
    assert newest(run_dir, HERE_ALONE) is None
    assert latest_checkpoint(run_dir) is None


def test_a_damaged_one_is_named_and_set_aside(run_dir, here, capsys):
    spoil(here / "step-0000003")
    assert step(newest(run_dir, HERE_ALONE)) == 2
    said = capsys.readouterr().err
    assert said.endswith(
        "step-0000003 is damaged (optimizer.safetensors is not what was written): set aside as step-0000003.damaged\n"
    )
    assert names(here) == ["latest", "step-0000001", "step-0000002", "step-0000003.damaged"]
    assert (here / "latest").resolve().name == "step-0000002"
    assert step(latest_checkpoint(run_dir)) == 2
    assert step(newest(run_dir, HERE_ALONE)) == 2
    assert capsys.readouterr().err == ""


def test_if_none_is_whole_a_run_does_not_start_anew(run_dir, here):
    for number in (1, 2, 3):
        spoil(here / f"step-000000{number}")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no checkpoint of .*run is whole: bring one back into .* to start anew"):
            newest(run_dir, HERE_ALONE)
    shutil.rmtree(here)
    assert newest(run_dir, HERE_ALONE) is None


def test_one_of_an_earlier_version_will_do_unless_it_is_cut_short(run_dir, here):
    (here / "step-0000003" / "checksums.json").unlink()
    assert step(newest(run_dir, HERE_ALONE)) == 3
    path = here / "step-0000003" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert step(newest(run_dir, HERE_ALONE)) == 2


def test_what_a_killed_run_left_is_taken_away(run_dir, here):
    for name in (".step-0000004.partial", ".step-0000001.removed", ".step-0000003.replaced"):
        shutil.copytree(here / "step-0000003", here / name)
    (here / "step-0000002").rename(here / ".step-0000002.replaced")  # before its successor came to its place
    assert step(newest(run_dir, HERE_ALONE)) == 3
    assert names(here) == ["latest", "step-0000001", "step-0000002", "step-0000003"]


def test_what_cannot_be_looked_through_is_named(small_disk, snapshot):
    with Writer(small_disk, HERE_ALONE) as writer:
        writer.save(snapshot(1))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"the checkpoints of .*disk cannot be looked through: .*Read-only file system"):
        newest(small_disk, HERE_ALONE)


@pytest.mark.parametrize(
    ("name", "content"),
    [("open_clip_model.safetensors", b"12345678"), ("state.json", b"{"), ("state.json", b"[]"), ("state.json", None)],
)
def test_what_cannot_be_read_is_named(here, name, content):
    path = here / "step-0000003" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"step-0000003 cannot be resumed \(.*\); remove it") as raised:
        read_state(path.parent) if name == "state.json" else read(path.parent, name)
    assert "\n" not in str(raised.value)


def newest_of_rank(rank: int, world: int, run_dir: Path) -> Path | str | None:
    try:
        return newest(run_dir, HERE_ALONE)
    except UserError as error:
        return str(error)


def test_all_processes_get_what_one_found(run_dir, here, run_ranks):
    spoil(here / "step-0000003")
    assert run_ranks(newest_of_rank, 2, run_dir) == [here / "step-0000002"] * 2
    for number in (1, 2):
        spoil(here / f"step-000000{number}")
    one, other = run_ranks(newest_of_rank, 2, run_dir)
    assert one == other
    assert one.startswith(f"no checkpoint of {run_dir} is whole")


# ---- From the copies


def test_a_machine_without_any_fetches_the_newest(run_dir, here, options, copies, capsys):
    shutil.rmtree(run_dir)
    found = newest(run_dir, options)
    assert (found, step(found)) == (here / "step-0000003", 3)
    assert capsys.readouterr().err == f"fetching step-0000003 from {copies}\n"
    assert names(here) == ["latest", "step-0000003"]
    files = {path.relative_to(found) for path in found.rglob("*")}
    assert files == {path.relative_to(copies / found.name) for path in (copies / found.name).rglob("*")}
    assert (found / "recipe.yaml").read_text() == "name: test\n"
    assert step(newest(run_dir, options)) == 3
    assert capsys.readouterr().err == "", "it is here now"


def test_a_newer_copy_wins_over_what_is_here(run_dir, here, options):
    for number in (2, 3):
        shutil.rmtree(here / f"step-000000{number}")
    assert step(newest(run_dir, options)) == 3
    assert names(here) == ["latest", "step-0000001", "step-0000003"]


def test_what_is_here_wins_over_older_copies(run_dir, here, options, copies, capsys):
    shutil.rmtree(copies / "step-0000003")
    assert step(newest(run_dir, options)) == 3
    assert "fetching" not in capsys.readouterr().err


def test_a_copy_replaces_the_damaged_one_here(run_dir, here, options):
    spoil(here / "step-0000003")
    assert step(newest(run_dir, options)) == 3
    assert names(here)[-2:] == ["step-0000003", "step-0000003.damaged"]


def test_a_damaged_copy_is_passed_over(run_dir, here, options, copies, capsys):
    shutil.rmtree(run_dir)
    spoil(copies / "step-0000003")
    (copies / "step-0000002" / "checksums.json").write_text("{}")
    assert step(newest(run_dir, options)) == 1
    said = capsys.readouterr().err
    assert f"checkpoint step-0000003 in {copies} is damaged (optimizer.safetensors is not what was written)" in said
    assert f"checkpoint step-0000002 in {copies} is damaged (checksums.json cannot be read): passed over" in said
    assert names(here) == ["latest", "step-0000001"]
    shutil.rmtree(run_dir)
    (copies / "step-0000001" / "optimizer.safetensors").unlink()
    with pytest.raises(UserError, match=r"no checkpoint of .* is whole"):
        newest(run_dir, options)


def test_one_that_is_only_partly_copied_is_none(run_dir, here, options, copies):
    shutil.rmtree(run_dir)
    (copies / "step-0000003" / "checksums.json").unlink()
    assert step(newest(run_dir, options)) == 2


def test_killed_at_file_operations_it_finds_the_same(run_dir, here, options, tmp_path, resume_runs):
    """With a damaged one to set aside, and a copy to fetch."""
    spoil(here / "step-0000003")
    shutil.copytree(here / "step-0000002", here / ".step-0000004.partial")

    def child(number: int) -> None:
        resume_runs.killed_at_file_operation(number, run_dir)
        newest(run_dir, options)
        os._exit(0)

    shutil.copytree(run_dir, tmp_path / "before", symlinks=True)
    for number in range(1, 200, 3):
        shutil.rmtree(run_dir)
        shutil.copytree(tmp_path / "before", run_dir, symlinks=True)
        process = FORK.Process(target=child, args=(number,))
        process.start()
        process.join()
        assert step(newest(run_dir, options)) == 3
        assert names(here) == ["latest", "step-0000001", "step-0000002", "step-0000003", "step-0000003.damaged"]
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert 20 < number < 200


# ---- Options


@pytest.mark.parametrize("place", ["http://host/folder", "https://host/folder", "pipe:cat", ""])
def test_places_that_take_nothing_are_refused(place):
    with pytest.raises(ValidationError, match="copy_to"):
        CheckpointOptions(copy_to=place)


@pytest.mark.parametrize(
    ("place", "sentence"),
    [("nowhere://bucket", "nowhere://bucket cannot be written to: Protocol not known: nowhere")],
)
def test_unknown_kinds_of_stores_are_named(run_dir, place, sentence):
    for use in (newest, Writer):
        with pytest.raises(UserError, match=sentence):
            use(run_dir, CheckpointOptions(copy_to=place))


def test_a_run_is_no_copy_of_itself(run_dir):
    with pytest.raises(UserError, match="is where the run itself lies"):
        newest(run_dir, CheckpointOptions(copy_to=str(run_dir.parent)))


def test_a_place_that_cannot_be_written_to_is_said_before_the_run_begins(run_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/copies/run.*: see that it can be written to, or remove checkpoint\."):
        newest(run_dir, CheckpointOptions(copy_to=str(tmp_path / "file" / "copies")))
