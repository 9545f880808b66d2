"""``vlp train`` in real processes that can be killed, and what they took from the data.

They are forked from the tests, which have the libraries imported already.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

import vlp.trainer  # noqa: F401 - imported once, before the forks
from vlp import cli
from vlp.data.batches import TrainingData
from vlp.track import read_metrics
from vlp.types import Batch

FORK = multiprocessing.get_context("fork")
Row = tuple[str, str, str]  # key, caption, digest of the pixels and ids
TINY_MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 24,
        "patch_size": 8,
        "layers": 1,
        "width": 32,
        "head_width": 16,
        "patch_dropout": 0.25,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def record_batches(log: Path) -> None:
    """Write a line for each batch that the trainer takes, before it is computed with."""
    original = TrainingData.batches

    def batches(self: TrainingData, start_step: int, stop_step: int, *shape: Any) -> Iterator[Batch]:
        with log.open("ab", buffering=0) as lines:
            for step, batch in enumerate(original(self, start_step, stop_step, *shape), start_step):
                lines.write(json.dumps([step, rows_of(batch)]).encode() + b"\n")
                yield batch

    TrainingData.batches = batches  # type: ignore[method-assign]


def rows_of(batch: Batch) -> list[Row]:
    parts = zip(batch.keys, batch.captions, batch.image_VNCHW.unbind(1), batch.text_NL, strict=True)
    return [
        (key, caption, hashlib.sha256(pixels.numpy().tobytes() + ids.numpy().tobytes()).hexdigest()[:16])
        for key, caption, pixels, ids in parts
    ]


def killed_at_file_operation(number: int, below: Path) -> None:
    """This process kills itself when it does its ``number``-th operation on a file below a folder."""
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event.startswith(("open", "os.", "shutil.")) and any(str(below) in str(a) for a in arguments):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


class Run:
    """``vlp train`` of one recipe, started again and again in new process groups."""

    def __init__(self, recipe: Path, run_dir: Path, *overrides: str) -> None:
        self.run_dir = run_dir
        self.logs = run_dir.with_name(f"{run_dir.name}-logs")
        self.logs.mkdir()
        self.attempts = 0
        self._arguments = ["train", str(recipe), f"run_dir={run_dir}", *overrides]
        self._leader: Any = None

    def start(self, world: int = 1, *overrides: str, before: Callable[[], None] | None = None) -> None:
        arguments = [*self._arguments, *overrides]
        self._leader = FORK.Process(target=_lead, args=(world, self.logs / f"{self.attempts}", arguments, before))
        self._leader.start()
        self.attempts += 1

    def wait(self) -> int:
        """Its exit code."""
        self._leader.join(60)
        if self._leader.is_alive():
            self.kill()
            pytest.fail(f"hung: {self.said()}")
        return self._leader.exitcode

    def finish(self) -> None:
        assert self.wait() == 0, self.said()

    def kill(self) -> None:
        """SIGKILL to the whole group, at once."""
        try:
            os.killpg(self._leader.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has just ended, or leads no group yet
            self._leader.kill()
        self._leader.join()
        while any(_lives_in(self._leader.pid, process) for process in psutil.process_iter()):
            time.sleep(0.001)

    def kill_when(self, moment: Callable[[], bool]) -> None:
        """Kill it at this moment, or see it end before."""
        while self._leader.is_alive() and not moment():
            time.sleep(0.0005)
        self.kill()

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.logs.glob(f"{self.attempts - 1}-*.txt")))

    def taken(self, attempt: int) -> list[dict[int, list[Row]]]:
        """For each rank of an attempt: step -> rows. A line cut off by the kill does not count."""
        ranks = []
        for path in sorted(self.logs.glob(f"{attempt}-*.jsonl")):
            lines = path.read_text().split("\n")[:-1]
            ranks.append({step: [tuple(row) for row in rows] for step, rows in map(json.loads, lines)})
        return ranks

    def num_taken(self) -> int:
        """Batches that rank zero has taken since the last start."""
        path = self.logs / f"{self.attempts - 1}-0.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_for(self, num_taken: int) -> None:
        """Until rank zero has taken so many batches."""
        while self.num_taken() < num_taken:
            assert self._leader.is_alive(), f"it ended before: {self.said()}"
            time.sleep(0.001)

    def whole_batches(self, attempt: int) -> dict[int, list[Row]]:
        """The global batches of the steps that every rank has taken."""
        ranks = self.taken(attempt)
        steps = set.intersection(*(set(rank) for rank in ranks)) if ranks else set()
        return {s: [row for rows in zip(*(rank[s] for rank in ranks), strict=True) for row in rows] for s in steps}

    def checkpoints(self) -> set[str]:
        return {path.name for path in self.run_dir.glob("checkpoints/step-*")}

    def result(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[tuple[float, float]]]:
        """(weights, average and optimiser; counters; step and loss of each row)."""
        latest = self.run_dir / "checkpoints" / "latest"
        tensors = {f"{p.stem}/{k}": v for p in latest.glob("*.safetensors") for k, v in load_file(p).items()}
        rows = read_metrics(self.run_dir / "metrics.jsonl")
        return (
            tensors,
            json.loads((latest / "state.json").read_text()),
            [(row["step"], row["train/loss"]) for row in rows],
        )


def _lives_in(group: int, process: psutil.Process) -> bool:
    """Also where only threads of it are left, which still hold its files and its lock."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        gone = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
        return os.getpgid(process.pid) == group and not gone
    return False


def _lead(world: int, log: Path, arguments: list[str], before: Callable[[], None] | None) -> None:
    os.setsid()
    if world == 1:
        _train(0, 1, log, arguments, before)
    ranks = [FORK.Process(target=_train, args=(rank, world, log, arguments, before)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in ranks))


def _train(rank: int, world: int, log: Path, arguments: list[str], before: Callable[[], None] | None) -> None:
    status = 1
    try:
        with open(f"{log}-{rank}.txt", "w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - not pytest's
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        if world > 1:
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "localhost"}
            os.environ.update({name: str(value) for name, value in ranks.items()})
            dist.init_process_group("gloo", store=dist.FileStore(f"{log}-store", world), rank=rank, world_size=world)
        record_batches(Path(f"{log}-{rank}.jsonl"))
        if before is not None:
            before()
        cli.main(arguments)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)
