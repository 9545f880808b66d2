"""Signals: what asks for a save, what stops at once, and what counts as one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vlp import signals
from vlp.signals import Signals

FORK = multiprocessing.get_context("fork")
ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.mark.parametrize("number", ALL)
def test_each_asks_the_loop_and_the_old_handlers_come_back(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(other) for other in ALL]
    with Signals() as asked:
        assert not asked.received
        signal.raise_signal(number)
        assert asked.received
    assert [signal.getsignal(other) for other in ALL] == before
    assert capfd.readouterr().err.startswith("saving, then stopping")


def exit_code(body: Callable[[Signals], None]) -> int | None:
    """Of a process that catches signals; 0 where it ends by itself."""

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with Signals() as asked:
                body(asked)
                os._exit(0)
        except KeyboardInterrupt:
            os._exit(130)

    process = FORK.Process(target=run)
    process.start()
    process.join(30)
    return process.exitcode


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any second signal counts as a second one."""
    monkeypatch.setattr(signals, "_ONE_S", 0.0)


@pytest.mark.usefixtures("_at_once")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_second_one_stops_at_once(number: int, code: int) -> None:
    def body(asked: Signals) -> None:
        signal.raise_signal(number)
        assert asked.received
        time.sleep(0.01)
        signal.raise_signal(number)

    assert exit_code(body) == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_at_nearly_the_same_time_are_one(number: int) -> None:
    """A launcher hands on what the scheduler sent to every process anyway."""

    def body(asked: Signals) -> None:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)

    assert exit_code(body) == 0


@pytest.mark.usefixtures("_at_once")
def test_usr1_may_come_again_and_sigterm_after_it() -> None:
    """SLURM's limit comes while the save that it had announced goes on."""

    def body(asked: Signals) -> None:
        for _ in range(3):
            signal.raise_signal(signal.SIGUSR1)
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.01)
        signal.raise_signal(signal.SIGUSR1)

    assert exit_code(body) == 0


def test_a_signal_in_the_midst_of_a_print_does_no_harm(tmp_path: Path) -> None:
    def body(asked: Signals) -> None:
        log = (tmp_path / "log").open("w")
        os.dup2(log.fileno(), 2)
        sys.stderr = log
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            for _ in range(1000):
                os.kill(parent, signal.SIGUSR1)
                time.sleep(0.0002)
            os._exit(0)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            asked.received = False  # so that each says so
            print("x" * 200, file=sys.stderr, flush=True)

    assert exit_code(body) == 0
    assert (tmp_path / "log").read_text().count("saving, then stopping\n") > 100


@pytest.mark.usefixtures("_at_once")
@pytest.mark.parametrize("number", ALL)
def test_forks_live_on_and_keep_silent(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Those that load data while the run saves."""

    def body(asked: Signals) -> None:
        child = os.fork()
        if child == 0:
            for _ in range(2):
                os.kill(os.getpid(), number)
                time.sleep(0.01)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert not asked.received

    assert exit_code(body) == 0
    assert capfd.readouterr().err == ""


def test_without_a_terminal_it_is_received_all_the_same() -> None:
    def body(asked: Signals) -> None:
        os.close(2)
        signal.raise_signal(signal.SIGUSR1)
        assert asked.received

    assert exit_code(body) == 0
