"""Signals that ask a run to save and stop."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from types import FrameType
from typing import Any

from vlp import distributed

# A scheduler that signals every process of a job, and a launcher that hands its own signal on, make two of one.
_ONE_S = 3.0


class Signals:
    """Ctrl-C, SIGTERM and SIGUSR1 ask the loop to save and stop; a second Ctrl-C or SIGTERM stops at once.

    SIGUSR1 is what SLURM is told to send ahead of its limit (``--signal``): it may come again, and SIGTERM once after
    it, without an end to the save that is under way. The loop looks at ``received`` after each step, so that a run ends
    within a step and a save.
    """

    def __init__(self) -> None:
        self.received = False
        self._first_s: float | None = None  # when SIGINT or SIGTERM came first
        self._process = os.getpid()
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if os.getpid() != self._process:
            return  # its forks live on until it has saved: launchers signal whole process groups
        if number == signal.SIGUSR1:
            self._ask("saving, then stopping")
        elif self._first_s is None:
            self._first_s = now
            self._ask("saving, then stopping; a second signal stops at once")
        elif now - self._first_s > _ONE_S:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)

    def _ask(self, message: str) -> None:
        if not self.received and distributed.rank() == 0:
            with suppress(OSError):  # a terminal that is gone
                os.write(2, f"{message}\n".encode())  # print may be what the signal interrupted, and is not reentrant
        self.received = True
