"""The temporary folder for copies: it goes with those who use it, and not before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import multiprocessing, os, sys, time
from vlp.data.store import Store
fork = multiprocessing.get_context("fork").Process
store = Store()
def read():
    assert store.read_at("pipe:printf 0123456789", 3, 2) == b"34"
def copies():
    return [name for name in os.listdir(store._cache._folder) if name.endswith("-pipe")]
def say(text):
    print(text, flush=True)
    sys.stdin.readline()
"""


def start(folder: Path, code: str) -> subprocess.Popen[str]:
    """A process with this temporary folder, once it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", START + code],
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("go on\n", timeout=20)
    assert process.returncode == 0


def test_what_a_killed_process_left_goes_when_another_needs_room(tmp_path: Path) -> None:
    killed = start(tmp_path, "read(); say('ready')")
    (left,) = tmp_path.iterdir()
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert left.exists()
    (tmp_path / "vlp-shards-being-made").mkdir()
    another = start(tmp_path, "read(); say('ready')")
    assert not left.exists()
    end(another)
    assert [path.name for path in tmp_path.iterdir()] == ["vlp-shards-being-made"]


@pytest.mark.parametrize(
    "code",
    [
        "read(); say('ready')",
        # Its workers end in both ways, and take nothing with them.
        "read()\nworker = fork(target=read); worker.start(); worker.join()\n"
        "if not (child := os.fork()): read(); sys.exit()\n"
        "os.waitpid(child, 0); say('ready')",
        # Only a worker has used it yet.
        "go = multiprocessing.get_context('fork').Event()\n"
        "worker = fork(target=lambda: (read(), print('ready', flush=True), go.wait(), read()))\n"
        "worker.start(); sys.stdin.readline(); go.set(); worker.join(); assert worker.exitcode == 0",
    ],
)
def test_a_folder_in_use_is_left_alone(tmp_path: Path, code: str) -> None:
    using = start(tmp_path, code + "\nassert len(copies()) == 1; read()")
    (used,) = tmp_path.iterdir()
    before = sorted(used.rglob("*"))
    end(start(tmp_path, "read(); say('ready')"))
    assert sorted(used.rglob("*")) == before
    end(using)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_cure(tmp_path: Path) -> None:
    """A limit to the size of files stands for the disk."""
    code = """
import resource, signal
from vlp.types import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    store.read_at("pipe:head -c 100000 /dev/zero", 0, 10)
except UserError as error:
    assert str(error).startswith("the temporary folder " + os.environ["TMPDIR"]), error
    assert "set data.cache.folder to a folder on a disk with room, or index the shards" in str(error), error
    say("ready")
"""
    end(start(tmp_path, code))
