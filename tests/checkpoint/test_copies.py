"""Copies in a real S3 server on loopback, which dies, answers 500, keeps silent and comes back."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vlp.checkpoint import CheckpointOptions, Writer, newest, place, read
from vlp.encoders.source import checkpoints, latest_checkpoint
from vlp.types import UserError

KEEP_ONE = CheckpointOptions(keep=1, copy_to="s3://copies/team")
KEEP_TWO = CheckpointOptions(keep=2, copy_to="s3://copies/team")


def keys(s3: Any) -> dict[str, list[str]]:
    """Checkpoint -> its files in the bucket."""
    found: dict[str, list[str]] = {}
    for item in s3.bucket.objects.all():
        if item.key.endswith(".can-be-written"):
            continue
        folder, run, root, checkpoint, name = item.key.split("/", 4)
        assert (folder, run, root) == ("team", "run", "checkpoints")
        found.setdefault(checkpoint, []).append(name)
    return found


def is_whole(s3: Any, checkpoint: str) -> bool:
    return "checksums.json" in keys(s3).get(checkpoint, [])


def fetched(run_dir: Path, options: CheckpointOptions) -> int | None:
    """The step that a machine without anything gets."""
    other = run_dir.parent / "other" / run_dir.name
    shutil.rmtree(other, ignore_errors=True)
    found = newest(other, options)
    return int(read(found, "open_clip_model.safetensors")["scale"]) if found else None


class Said:
    """What stands on stderr, also of other threads."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def __contains__(self, words: str) -> bool:
        self._text += self._capsys.readouterr().err
        return words in self._text


@pytest.fixture
def said(capsys) -> Said:
    return Said(capsys)


def test_copies_are_those_that_stay_and_a_new_machine_goes_on(s3, run_dir, snapshot, until):
    with Writer(run_dir, KEEP_TWO) as writer:
        for step in (1, 2, 3):
            writer.save(snapshot(step))
            until(lambda step=step: is_whole(s3, f"step-000000{step}"))
    here = {
        path.name: sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        for path in checkpoints(run_dir)
    }
    assert {name: sorted(files) for name, files in keys(s3).items()} == here
    assert list(here) == ["step-0000002", "step-0000003"]
    assert fetched(run_dir, KEEP_TWO) == 3


def test_a_store_that_dies_in_mid_upload_costs_a_line(s3, run_dir, snapshot, until, said, impatient):
    with Writer(run_dir, KEEP_ONE) as writer:
        writer.save(snapshot(1))
        until(lambda: is_whole(s3, "step-0000001"))
        s3.dies_after = 1_000_000
        writer.save(snapshot(2, numbers=400_000))  # two files of 1.6 and 3.2 MB
        until(
            lambda: (
                "warning: step-0000002 was not copied, the run goes on (checkpoint.copy_to: s3://copies/team/run"
                in said
            )
        )
        writer.check()
        s3.reopen()
        assert not is_whole(s3, "step-0000002")
        assert fetched(run_dir, KEEP_ONE) == 1
        writer.save(snapshot(3))
    assert list(keys(s3)) == ["step-0000003"], "rests of what did not arrive are taken away"
    assert fetched(run_dir, KEEP_ONE) == 3


@pytest.mark.parametrize("trouble", ["is_dead", "errors", "silent"])
def test_a_store_that_stays_away_is_an_error_at_the_end_and_the_same_command_copies(
    s3, run_dir, snapshot, said, impatient, monkeypatch, trouble
):
    monkeypatch.setattr(place, "SILENCE", 0.3)
    with Writer(run_dir, KEEP_ONE) as writer:
        writer.save(snapshot(1))
    setattr(s3, trouble, True)
    writer = Writer(run_dir, KEEP_ONE)
    writer.save(snapshot(2))
    with pytest.raises(UserError, match=r"newest checkpoint did not reach s3://.*step-0000002 is whole: .*start again"):
        writer.close()
    assert "warning: step-0000002 was not copied" in said
    assert latest_checkpoint(run_dir).name == "step-0000002"
    s3.reopen()
    assert fetched(run_dir, KEEP_ONE) == 1
    Writer(run_dir, KEEP_ONE).close()
    assert fetched(run_dir, KEEP_ONE) == 2


def test_a_store_that_is_back_at_the_end_is_tried_again(s3, run_dir, snapshot, until, said, impatient):
    with Writer(run_dir, KEEP_ONE) as writer:
        s3.is_dead = True
        writer.save(snapshot(1))
        until(lambda: "warning: step-0000001 was not copied" in said)
        s3.reopen()
    assert is_whole(s3, "step-0000001")


def test_what_is_there_is_not_copied_again(s3, run_dir, snapshot):
    with Writer(run_dir, KEEP_ONE) as writer:
        writer.save(snapshot(1))
    before = {item.key: item.last_modified for item in s3.bucket.objects.all()}
    left = s3.dies_after = 1_000_000
    Writer(run_dir, KEEP_ONE).close()
    assert left - s3.dies_after < 20_000, "asking takes less than sending"
    assert {item.key: item.last_modified for item in s3.bucket.objects.all()} == before


def test_the_same_step_with_other_weights_is_copied_again(s3, run_dir, snapshot):
    for numbers in (3, 4):
        with Writer(run_dir, KEEP_ONE) as writer:
            writer.save(snapshot(1, numbers=numbers))
    shutil.rmtree(run_dir)
    assert len(read(newest(run_dir, KEEP_ONE), "open_clip_model.safetensors")["weight"]) == 4


def test_where_nothing_may_be_deleted_old_copies_stay_and_that_is_said_once(s3, run_dir, snapshot, until, capsys):
    s3.keeps_all = True
    assert newest(run_dir, KEEP_ONE) is None
    with Writer(run_dir, KEEP_ONE) as writer:
        for step in (1, 2, 3):
            writer.save(snapshot(step))
            until(lambda step=step: is_whole(s3, f"step-000000{step}"))
    assert capsys.readouterr().err.count("warning: old copies stay (checkpoint.copy_to: s3://copies/team/run") == 1
    assert [is_whole(s3, f"step-000000{step}") for step in (1, 2, 3)] == [True] * 3
    assert fetched(run_dir, KEEP_ONE) == 3


# ---- At the start


def test_a_new_run_says_where_it_looked(s3, run_dir, said):
    assert newest(run_dir, KEEP_ONE) is None
    assert "no copies of checkpoints in s3://copies/team/run/checkpoints yet" in said
    assert keys(s3) == {}


def test_without_its_store_a_run_goes_on_from_what_is_here_but_does_not_start_anew(
    s3, run_dir, snapshot, said, impatient
):
    with Writer(run_dir, KEEP_ONE) as writer:
        writer.save(snapshot(1))
    s3.errors = True
    assert newest(run_dir, KEEP_ONE) == run_dir / "checkpoints" / "step-0000001"
    assert "warning: going on without the copies of checkpoints (checkpoint.copy_to: s3://copies/team/run" in said
    shutil.rmtree(run_dir)
    with pytest.raises(UserError, match=r"copy_to: s3://copies/team/run.*: see that it can be written to, or remove"):
        newest(run_dir, KEEP_ONE)


def test_a_store_that_dies_in_mid_download_is_an_error(s3, run_dir, snapshot, impatient):
    with Writer(run_dir, KEEP_ONE) as writer:
        writer.save(snapshot(1, numbers=400_000))
    shutil.rmtree(run_dir)
    s3.cuts = [1_000_000] * 20
    with pytest.raises(UserError, match=r"checkpoint\.copy_to: s3://copies/team/run"):
        newest(run_dir, KEEP_ONE)
    s3.cuts = []
    assert list((run_dir / "checkpoints").iterdir()) == []
    assert newest(run_dir, KEEP_ONE).name == "step-0000001"


def test_a_bucket_that_is_not_there_is_said_at_once(s3, run_dir, snapshot):
    with Writer(run_dir, CheckpointOptions()) as writer:
        writer.save(snapshot(1))
    options = CheckpointOptions(copy_to="s3://typo/team")
    with pytest.raises(UserError, match=r"s3://typo/team/run/checkpoints: FileNotFoundError.*bucket does not exist"):
        newest(run_dir, options)


def test_missing_keys_are_said_at_once(s3, run_dir, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"s3://copies/team/run.*[Cc]redentials"):
        newest(run_dir, KEEP_ONE)


# ---- Slow and full places


class Gated(MemoryFileSystem):
    """A store in memory that lets nothing in while its gate is shut."""

    protocol = "gated"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    gate: ClassVar[threading.Event]
    waiting: ClassVar[threading.Event]

    def put_file(self, *arguments: Any, **options: Any) -> None:
        self.waiting.set()
        assert self.gate.wait(60)
        super().put_file(*arguments, **options)


@pytest.fixture
def gated() -> Iterator[type[Gated]]:
    fsspec.register_implementation("gated", Gated, clobber=True)
    Gated.gate, Gated.waiting = threading.Event(), threading.Event()
    yield Gated
    Gated.gate.set()


def test_a_slow_place_gets_the_newest_and_what_it_reads_stays(run_dir, snapshot, gated):
    writer = Writer(run_dir, CheckpointOptions(keep=1, copy_to="gated://folder"))
    writer.save(snapshot(1))
    assert gated.waiting.wait(60)
    for step in (2, 3):
        writer.save(snapshot(step))
        writer.wait()
    assert [path.name for path in checkpoints(run_dir)] == ["step-0000001", "step-0000003"]
    gated.gate.set()
    writer.close()
    assert [path.name for path in checkpoints(run_dir)] == ["step-0000003"]
    whole = [path for path in gated.store if path.endswith("checksums.json")]
    assert len(whole) == 1
    assert whole[0].endswith("folder/run/checkpoints/step-0000003/checksums.json")


def test_a_full_place_is_said_and_not_asked_again_and_again(run_dir, snapshot, small_disk, said, monkeypatch):
    monkeypatch.setattr(place, "FIRST_WAIT", 3600.0)
    writer = Writer(run_dir, CheckpointOptions(copy_to=str(small_disk)))
    writer.save(snapshot(1, numbers=400_000))
    with pytest.raises(UserError, match=r"did not reach .*disk/run/checkpoints"):
        writer.close()
    assert "No space left on device" in said
