"""A run that hangs is noticed, the rank to blame named, and the process ended, so that a launcher starts it again."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist
from pydantic import BaseModel, Field

from vlp import distributed

EXIT_CODE = 75  # "try again" of sysexits.h: the run is not at fault, as it is with 1 and 2
PHASES = ("start", "data", "step", "save", "evaluation")  # in the order in which a step goes through them
# What takes longer than a step by nature: reading a checkpoint, compiling, writing, the evaluation of a set.
_LONG = ("start", "save", "evaluation")
_PATIENCE = 4
_BEAT_S = 3.0  # from one look, and one sign of life, to the next
_SILENT_BEATS = 4  # without a sign of life a rank counts as gone


class WatchdogOptions(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """When a run counts as hung."""

    hang_timeout: float = Field(
        1800,
        ge=0,
        description="seconds without progress after which the run names the rank to blame and ends, to be started "
        f"again; {_PATIENCE} times as many at the start, while saving and evaluating; 0: never",
    )


def process_group_timeout(hang_timeout: float) -> timedelta:
    """What a process group's own timeout must be so that it does not fire before the watchdog.

    It would name nobody. Accelerate's default is ten minutes under NCCL, less than many an evaluation takes.
    """
    return timedelta(seconds=_PATIENCE * hang_timeout + 300) if hang_timeout else timedelta(days=7)


class Row(NamedTuple):
    """What is known of a rank; ``silent`` if it has given no sign of life for a while."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    waited_s: float
    where: str
    silent: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (pid {self.pid}) {self.place()}"

    def place(self) -> str:
        """Where it stands, in words."""
        return f"in step {self.step}, phase {self.phase}, at {self.where}"

    def standing(self) -> tuple[int, int, bool]:
        """The lower, the further behind: last come those who wait in a collective of ours."""
        return self.step, PHASES.index(self.phase), self.where.startswith("vlp/distributed.py")


class Watchdog:
    """Watches the main thread of this process, and tells the others about it through the process group's store.

    A run hangs when no rank makes progress any more: one that evaluates for hours lets the others wait, as long as it
    calls `at` now and then. Time in which the process itself was stopped (Ctrl-Z, a suspended job) does not count.

    Args:
        limit_s: seconds without progress; 0 or None watches nothing.
        run_dir: gets stack traces, in its folder ``hangs``.
    """

    def __init__(self, limit_s: float | None, run_dir: Path) -> None:
        self._limit_s, self._folder = limit_s, run_dir / "hangs"
        self._beat_s = min(_BEAT_S, (limit_s or 0) / 10)
        self._main = threading.get_ident()
        self._progress = (0, "start")
        self._waited_s = 0.0
        self._beat = self._answered = 0  # the answered one is that of the last look at the others' rows
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def at(self, step: int, phase: str) -> None:
        """The main thread begins ``phase`` of ``step``, or goes on in it: any call is progress."""
        assert phase in PHASES, phase
        self._progress = (step, phase)

    def __enter__(self) -> Watchdog:
        if not self._limit_s:
            return self
        targets = [self._watch]
        if distributed.world_size() > 1:
            store = dist.distributed_c10d._get_default_store()
            # A connection of its own (since torch 2.8), so that it neither blocks nor waits for the main thread.
            self._store = dist.PrefixStore("vlp_watchdog", store.clone() if hasattr(store, "clone") else store)
            self._publish()  # before the others can read it, which would wait for it
            targets.append(self._correspond)
        places = distributed.from_all_ranks((socket.gethostname(), os.getpid()))
        self._rows = [Row(rank, host, pid, 0, "start", 0.0, "?") for rank, (host, pid) in enumerate(places)]
        self._heard = [(-1, 0)] * len(places)  # of each rank its last beat, and at which of ours it came
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(2 * self._beat_s)  # the store of a process that is gone may never answer

    def _watch(self) -> None:
        last, before = self._progress, time.monotonic()
        while not self._ended.wait(self._beat_s):
            self._beat += 1
            now, progress = time.monotonic(), self._progress
            if progress is not last:
                last, self._waited_s = progress, 0.0
            else:
                self._waited_s += min(now - before, 2 * self._beat_s)
            before = now
            if self._waited_s >= self._limit(progress[1]):
                rows = self._rows_now()
                if all(row.silent or row.waited_s >= self._limit(row.phase) - 3 * self._beat_s for row in rows):
                    self._end(rows)

    def _limit(self, phase: str) -> float:
        assert self._limit_s
        return self._limit_s * (_PATIENCE if phase in _LONG else 1)

    # ---- The others

    def _correspond(self) -> None:
        """Publish a row every beat; read everybody's when it begins to look bad. Blocks where the store does."""
        try:
            while not self._ended.wait(self._beat_s):
                self._publish()
                if self._waited_s > self._limit(self._progress[1]) / 2:
                    self._read()
        except RuntimeError:
            pass  # the process that holds the store is gone

    def _publish(self) -> None:
        row = (self._beat, *self._progress, self._waited_s, self._where())
        self._store.set(str(distributed.rank()), json.dumps(row))

    def _read(self) -> None:
        texts = self._store.multi_get([str(rank) for rank in range(len(self._rows))])
        for rank, (beat, step, phase, waited_s, where) in enumerate(map(json.loads, texts)):
            if self._heard[rank][0] != beat:
                self._heard[rank] = (beat, self._beat)
            silent = self._beat - self._heard[rank][1] >= _SILENT_BEATS
            _, host, pid, *_ = self._rows[rank]
            self._rows[rank] = Row(rank, host, pid, step, phase, waited_s, where, silent)
        self._answered = self._beat

    def _rows_now(self) -> list[Row]:
        """Everybody's, this process's own from itself. A store that no longer answers is gone with its rank zero."""
        own = distributed.rank()
        step, phase = self._progress
        rows = [*self._rows]
        rows[own] = Row(*rows[own][:3], step, phase, self._waited_s, self._where())
        if self._beat - self._answered < _SILENT_BEATS:
            return rows
        return [rows[0]._replace(silent=True), rows[own]] if own else [rows[own]]

    def _where(self) -> str:
        """The innermost line of vlp that the main thread is in."""
        root, frame = f"{Path(__file__).parent.parent}/", sys._current_frames().get(self._main)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(f"{root}vlp/"):
                return f"{file.removeprefix(root)}:{frame.f_lineno} ({frame.f_code.co_name})"
            frame = frame.f_back
        return "a place outside vlp"

    # ---- The end

    def _end(self, rows: Sequence[Row]) -> None:
        sentence, rank = verdict(rows, self._waited_s, self._folder), distributed.rank()
        if rank == next(row.rank for row in rows if not row.silent):
            print(f"vlp: {sentence}", file=sys.stderr, flush=True)
        # In a thread, because a file system that hangs may be what is wrong.
        threading.Thread(target=self._write_stacks, args=(sentence,), daemon=True).start()
        time.sleep(4 * self._beat_s)  # the end of this process breaks the others' connections: they write theirs first
        os._exit(EXIT_CODE)

    def _write_stacks(self, sentence: str) -> None:
        rank = distributed.rank()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / f"rank-{rank}.txt").open("w", encoding="utf-8") as file:
                print(sentence, file=file, flush=True)
                faulthandler.dump_traceback(file)
        except OSError as error:
            print(f"vlp: rank {rank} cannot write its stack traces: {error}", file=sys.stderr, flush=True)


def verdict(rows: Sequence[Row], waited_s: float, folder: Path) -> str:
    """One sentence that says which of ``rows`` is to blame: who is silent, else who is furthest behind.

    Where all are in the same phase of the same step, a collective itself hangs, and it says where each stands.
    """
    silent, live = [row for row in rows if row.silent], [row for row in rows if not row.silent]
    least, most = min(live, key=Row.standing), max(live, key=Row.standing)
    behind = [row for row in live if row.standing() == least.standing()]
    waiting = f"the others wait {most.place()}"
    if silent:
        blame = f"{_listed(silent)} gives no sign of life, its process is stopped or its machine gone, and {waiting}"
    elif len(rows) == 1:
        blame = f"{least} does not go on"
    elif len(behind) < len(live):
        blame = f"{_listed(behind)} is behind, and {waiting}"
    else:
        blame = f"no rank is behind, so that a collective itself hangs (network, driver): {_listed(rows)}"
    return (
        f"hung, no progress for {waited_s:.0f} s: {blame}; stack traces are in {folder}; "
        f"ending with exit code {EXIT_CODE}, to be started again from the last checkpoint (train.hang_timeout)"
    )


def _listed(rows: Sequence[Row]) -> str:
    more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
    return ", ".join(map(str, rows[:4])) + more
