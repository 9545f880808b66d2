"""Processes that a launcher starts, and starts again, find each other."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from vlp import rendezvous
from vlp.types import UserError

# Each start but the last loses a rank, once the ranks have met; the other is still about to learn of it.
PROGRAM = """
import os, signal
from datetime import timedelta
import torch, torch.distributed as dist
from vlp import rendezvous

start, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
rendezvous.join(timedelta(seconds=60))
dist.all_reduce(torch.ones(1))
os.write(1, f"start {start} rank {rank} met\\n".encode())  # a line at once, though two write
if start < 4 and rank == start % 2:
    os.kill(os.getpid(), signal.SIGKILL)
dist.all_reduce(torch.ones(1))
dist.destroy_process_group()  # else its threads abort the process now and then
"""
SHARED = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
    "GROUP_WORLD_SIZE": "2",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["--standalone"], ["--rdzv_backend", "static", "--master_port", "29683"]])
def test_every_start_meets(tmp_path: Path, launcher: list[str]) -> None:
    """Also with the rendezvous of `accelerate launch`, which is static."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "--nproc_per_node", "2", "--max_restarts", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(tmp_path / "program.py")], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split("\n")[:-1]) == {f"start {s} rank {r} met" for s in range(5) for r in range(2)}


def test_restarts_of_several_nodes_are_refused_where_they_would_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHARED.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^--max_restarts: .*: export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on"):
        rendezvous.join(timedelta(seconds=1))


@pytest.mark.parametrize(("name", "value"), [("GROUP_WORLD_SIZE", "1"), ("TORCHELASTIC_MAX_RESTARTS", "0")])
def test_others_are_not(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for key, given in {**SHARED, name: value}.items():
        monkeypatch.setenv(key, given)
    rendezvous._check_restarts()


def test_without_a_launcher_there_is_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SHARED:
        monkeypatch.delenv(name, raising=False)
    rendezvous.join(timedelta(seconds=1))
    assert not dist.is_initialized()
