"""What commands print."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import subprocess
from collections.abc import Iterator

from vlp.data.transports import Identity, NoRangesError, ReadError, Transport

_PIECE = 256 << 10


class Pipe(Transport):
    """``pipe:COMMAND``: what a shell command prints, from the beginning; the command does its own retries."""

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self._timeout = timeout

    def identity(self, path: str) -> Identity:
        return Identity(None, "")

    def pieces(self, path: str, start: int, stop: int | None, skip: bool) -> Iterator[bytes]:
        if not skip:
            raise NoRangesError
        assert (start, stop) == (0, None), "a command is read as a whole"
        process = subprocess.Popen(
            path.removeprefix("pipe:"),
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        number = process.stdout.fileno()
        try:
            with selectors.DefaultSelector() as ready:
                ready.register(number, selectors.EVENT_READ)
                while True:
                    if not ready.select(self._timeout):
                        raise ReadError(errno.ETIMEDOUT, f"the command was silent for {self._timeout:.0f} s", path)
                    piece = os.read(number, _PIECE)
                    if not piece:
                        break
                    yield piece
            if status := process.wait():
                raise ReadError(errno.EIO, f"the command ended with status {status}", path)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The shell and all that it started; without effect on one that has ended."""
    assert process.stdout is not None
    process.stdout.close()
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
