"""A hung run ends, and names the rank to blame: real processes that sleep, are stopped or die."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from vlp import distributed
from vlp.watchdog import EXIT_CODE, Row, Watchdog, WatchdogOptions, process_group_timeout, verdict

FORK = multiprocessing.get_context("fork")
LIMIT_S = 1.2


# ---- The sentence


def row(rank: int, step: int, phase: str, silent: bool = False, where: str = "vlp/trainer.py:7 (f)") -> Row:
    return Row(rank, f"node{rank // 2}", 100 + rank, step, phase, 60.0, where, silent)


IN_GATHER = "vlp/distributed.py:9 (wait)"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [row(0, 8, "data"), row(1, 7, "evaluation"), row(2, 8, "step")],
            "rank 1 on node0 (pid 101) in step 7, phase evaluation, at vlp/trainer.py:7 (f) is behind, and the others "
            "wait in step 8, phase step, at vlp/trainer.py:7 (f)",
        ),
        (
            [row(0, 8, "step"), row(1, 8, "data"), row(2, 8, "data")],
            "rank 1 on node0 (pid 101) in step 8, phase data, at vlp/trainer.py:7 (f), "
            "rank 2 on node1 (pid 102) in step 8, phase data, at vlp/trainer.py:7 (f) is behind, and",
        ),
        (
            [row(0, 8, "save"), row(1, 8, "save", where=IN_GATHER)],
            "rank 0 on node0 (pid 100) in step 8, phase save, at vlp/trainer.py:7 (f) is behind, and the others wait "
            "in step 8, phase save, at vlp/distributed.py:9 (wait)",
        ),
        (
            [row(0, 9, "data"), row(1, 8, "step"), row(2, 8, "step", silent=True)],
            "rank 2 on node1 (pid 102) in step 8, phase step, at vlp/trainer.py:7 (f) gives no sign of life, its "
            "process is stopped or its machine gone, and the others wait in step 9, phase data",
        ),
        (
            [row(0, 8, "step"), row(1, 8, "step")],
            "no rank is behind, so that a collective itself hangs (network, driver): rank 0 on node0 (pid 100) in "
            "step 8, phase step, at vlp/trainer.py:7 (f), rank 1 on node0",
        ),
        ([row(0, 8, "data")], "rank 0 on node0 (pid 100) in step 8, phase data, at vlp/trainer.py:7 (f) does not go"),
    ],
)
def test_the_sentence_names_who_is_silent_or_behind(rows: list[Row], said: str) -> None:
    sentence = verdict(rows, 61.2, Path("runs/a/hangs"))
    assert sentence.startswith(f"hung, no progress for 61 s: {said}")
    assert sentence.endswith("exit code 75, to be started again from the last checkpoint (train.hang_timeout)")
    assert "runs/a/hangs" in sentence
    assert "\n" not in sentence


def test_of_many_ranks_the_sentence_names_four() -> None:
    sentence = verdict([row(rank, 8, "step", silent=rank > 0) for rank in range(9)], 60, Path("hangs"))
    assert "(pid 104) in step 8" in sentence
    assert "(pid 105)" not in sentence
    assert "and 4 more gives no sign" in sentence


def test_the_process_group_waits_longer_than_the_watchdog() -> None:
    assert WatchdogOptions().hang_timeout == 1800
    for limit_s in (1.0, 1800.0):
        assert process_group_timeout(limit_s).total_seconds() > 4 * limit_s + 20
    assert process_group_timeout(0).days == 7


# ---- Real processes


class Ranks:
    """Forked gloo ranks, each with a watchdog around ``body(rank, watchdog)``, and what became of them."""

    def __init__(self, folder: Path, world: int, body: Callable[[int, Watchdog], None], tcp: bool = False) -> None:
        self.folder = folder
        self.processes = [FORK.Process(target=self._rank, args=(rank, world, body, tcp)) for rank in range(world)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        for process in self.processes:
            process.start()

    def _rank(self, rank: int, world: int, body: Callable[[int, Watchdog], None], tcp: bool) -> None:
        with (self.folder / f"said-{rank}").open("w") as said:
            os.dup2(said.fileno(), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - not pytest's
        if tcp:
            store = dist.TCPStore("127.0.0.1", self._port, world, is_master=rank == 0)
        else:
            store = dist.FileStore(str(self.folder / "store"), world)
        if world > 1:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        with Watchdog(LIMIT_S, self.folder) as dog:
            body(rank, dog)
        os._exit(0)

    def wait_until_ready(self) -> None:
        while len(list(self.folder.glob("ready-*"))) < len(self.processes):
            assert all(process.is_alive() for process in self.processes), self.said()
            time.sleep(0.01)

    def exit_codes(self, kill: int | None = None) -> list[int | None]:
        """When all have ended but rank ``kill``, which is killed then."""
        for rank, process in enumerate(self.processes):
            if rank != kill:
                process.join(30)
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def said(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("said-*")))

    def sentence(self) -> str:
        """The one that was printed, by one of them."""
        (sentence,) = re.findall(r"^vlp: hung, .*$", self.said(), re.MULTILINE)
        return sentence

    def stacks(self) -> dict[int, str]:
        return {int(path.stem.split("-")[1]): path.read_text() for path in self.folder.glob("hangs/rank-*.txt")}


def forever() -> None:
    while True:
        time.sleep(3600)


def test_a_rank_that_never_gets_its_data(tmp_path: Path) -> None:
    def body(rank: int, dog: Watchdog) -> None:
        for step in range(1, 4):
            dog.at(step, "data")
            if rank == 1 and step == 3:
                forever()
            dog.at(step, "step")
            dist.all_reduce(torch.ones(1))

    ranks = Ranks(tmp_path, 3, body)
    assert ranks.exit_codes() == [EXIT_CODE] * 3
    named = f"rank 1 on {socket.gethostname()} (pid {ranks.processes[1].pid}) in step 3, phase data, at "
    assert f": {named}a place outside vlp is behind, and the others wait in step 3, phase step" in ranks.sentence()
    stacks = ranks.stacks()
    assert stacks.keys() == {0, 1, 2}
    assert "in forever" in stacks[1]
    assert "in all_reduce" in stacks[0]
    assert "in all_reduce" in stacks[2]
    assert all(named in text for text in stacks.values())


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_is_stopped(tmp_path: Path, stopped: int) -> None:
    """Of rank zero with the store that it holds: that takes requests but never answers."""

    def body(rank: int, dog: Watchdog) -> None:
        for step in range(1, 1000000):
            dog.at(step, "step")
            (tmp_path / f"ready-{rank}").touch()
            dist.all_reduce(torch.ones(1))

    ranks = Ranks(tmp_path, 2, body, tcp=True)
    ranks.wait_until_ready()
    os.kill(ranks.processes[stopped].pid, signal.SIGSTOP)
    codes = ranks.exit_codes(kill=stopped)
    assert codes[1 - stopped] == EXIT_CODE
    named = f": rank {stopped} on {socket.gethostname()} (pid {ranks.processes[stopped].pid}) in step "
    assert named in ranks.sentence()
    assert "gives no sign of life" in ranks.sentence()
    assert ranks.stacks().keys() == {1 - stopped}


def test_a_rank_that_died_while_the_others_wait_for_it(tmp_path: Path) -> None:
    """As under NCCL, where nothing breaks the wait; gloo's collectives fail at once."""

    def body(rank: int, dog: Watchdog) -> None:
        dog.at(5, "step")
        if rank == 2:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        forever()

    ranks = Ranks(tmp_path, 3, body)
    assert ranks.exit_codes() == [EXIT_CODE, EXIT_CODE, -signal.SIGKILL]
    assert f": rank 2 on {socket.gethostname()} (pid {ranks.processes[2].pid}) in step 5" in ranks.sentence()


def test_one_process_watches_itself_and_says_where_it_stands(tmp_path: Path) -> None:
    def body(rank: int, dog: Watchdog) -> None:
        dog.at(4, "data")
        distributed.seed_of(Hanging())  # type: ignore[arg-type]

    ranks = Ranks(tmp_path, 1, body)
    assert ranks.exit_codes() == [EXIT_CODE]
    assert re.search(
        r": rank 0 on .* in step 4, phase data, at vlp/distributed\.py:\d+ \(seed_of\) does not go on;",
        ranks.sentence(),
    )


class Hanging:
    def __repr__(self) -> str:
        forever()
        return ""


def test_who_makes_progress_while_others_wait_is_no_hang(tmp_path: Path) -> None:
    def body(rank: int, dog: Watchdog) -> None:
        dog.at(1, "step")
        for _ in range(4 if rank == 0 else 0):
            time.sleep(LIMIT_S / 2)
            dog.at(1, "step")
        dist.barrier()

    ranks = Ranks(tmp_path, 2, body)
    assert ranks.exit_codes() == [0, 0], ranks.said()
    assert ranks.stacks() == {}


def test_saving_may_take_longer_than_a_step(tmp_path: Path) -> None:
    def body(rank: int, dog: Watchdog) -> None:
        dog.at(1, "save")
        if rank == 0:
            time.sleep(2 * LIMIT_S)
        dist.barrier()

    assert Ranks(tmp_path, 2, body).exit_codes() == [0, 0]


def test_time_in_which_a_run_was_suspended_does_not_count(tmp_path: Path) -> None:
    def body(rank: int, dog: Watchdog) -> None:
        dog.at(1, "step")
        time.sleep(LIMIT_S / 3)
        (tmp_path / "ready-0").touch()
        time.sleep(1.5 * LIMIT_S)  # in which it is suspended
        time.sleep(LIMIT_S / 3)

    ranks = Ranks(tmp_path, 1, body)
    ranks.wait_until_ready()
    os.kill(ranks.processes[0].pid, signal.SIGSTOP)
    time.sleep(1.5 * LIMIT_S)
    os.kill(ranks.processes[0].pid, signal.SIGCONT)
    assert ranks.exit_codes() == [0]
    assert ranks.said() == ""


@pytest.mark.parametrize("limit_s", [None, 0])
def test_without_a_limit_nothing_watches(tmp_path: Path, limit_s: float | None) -> None:
    with Watchdog(limit_s, tmp_path) as dog:
        dog.at(1, "data")
        assert dog._threads == []
