"""Files elsewhere, read with patience: retried with backoff, going on at the byte reached, given up in bounded time."""

from __future__ import annotations

import errno
import io
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from vlp.data.transports import (
    Identity,
    NoRangesError,
    NotFoundError,
    ReadError,
    RefusedError,
    TransientError,
    Transport,
)
from vlp.data.transports.commands import Pipe
from vlp.data.transports.stores import Fsspec
from vlp.data.transports.web import Http
from vlp.types import UserError

Result = TypeVar("Result")

_PROGRESS = 64 << 10  # bytes after which a connection that breaks has been a good one
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 16.0  # seconds
_PROBE = 5.0  # first waits between the end of an attempt at a dead server and the next
_ANSWERS = (NotFoundError, RefusedError, NoRangesError)
_jitter = random.SystemRandom()  # the draws of the training stay as they are


class Remote:
    """Remote files of every protocol, in one process; several threads may share it.

    Args:
        retries: attempts after the first, while nothing comes; what has brought 64 KiB does not count.
        timeout: seconds of silence (or of less than 1 KiB/s) after which an attempt has failed.
        first_wait: seconds before the first retry; doubled for each further one, up to 16.

    A server that is dead takes the time of all retries once: with six of them, waits of 1 to 16 s and a timeout of
    10 s, about a minute if it refuses connections and about two if it is silent. Then its reads fail at once, but for
    one every ``5 * first_wait`` seconds that tries it: once that succeeds, the server is used as before. A file that
    fails on a server that answers is tried once for each read.
    """

    def __init__(self, retries: int, timeout: float, first_wait: float = _FIRST_WAIT) -> None:
        self.retries = retries
        self.timeout = timeout
        self.first_wait = first_wait
        self.probe_wait = _PROBE * first_wait
        self._http = Http(timeout)
        self._stores = Fsspec(timeout)
        self._pipe = Pipe(timeout * (retries + 1))
        self.given_up: set[str] = set()  # files that get one attempt a read until they answer
        self.dead_hosts: dict[str, DeadHost] = {}
        self.lock = threading.Lock()
        self.answered_at: dict[str, float] = {}

    def identity(self, path: str) -> Identity:
        """Which version of the file lies there now: its length and tag.

        Raises:
            ReadError: NotFoundError if it is not there.
        """
        transport = self._transport(path)
        return self._retried(path, lambda: transport.identity(path))

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Just these bytes.

        Raises:
            NoRangesError: the store sends files only as a whole.
            ReadError: it cannot be read.
        """
        return b"".join(self._pieces(path, offset, offset + size, skip=False)) if size else b""

    def stream(self, path: str, start: int = 0, expected: Identity | None = None) -> Iterator[bytes]:
        """All bytes from ``start`` on, as they come, of the version ``expected``; a ReadError may come between them."""
        self._transport(path).expect(path, expected)
        return self._pieces(path, start, None, skip=True)

    def write(self, path: str, data: bytes) -> None:
        """Put ``data`` there as a whole."""
        stores = self._listing(path, "cannot be written to: name a folder or a store such as s3://")
        self._retried(path, lambda: stores.write(path, data))

    def list_tars(self, folder: str) -> list[str]:
        """The ``*.tar`` of a folder, sorted; what is no folder comes back as it is."""
        stores = self._listing(folder, "has no listing: name the shards with braces, {00000..00099}.tar")
        if not self._retried(folder, lambda: stores.is_folder(folder)):
            return [folder]
        return self._retried(folder, lambda: stores.list(folder, "*.tar"))

    def glob(self, pattern: str) -> list[str]:
        """The files that match, sorted."""
        stores = self._listing(pattern, "has no listing: name the shards with braces, {00000..00099}.tar")
        return self._retried(pattern, lambda: stores.list(pattern, ""))

    def _transport(self, path: str) -> Transport:
        if path.startswith("pipe:"):
            return self._pipe
        return self._http if path.startswith(("http://", "https://")) else self._stores

    def _listing(self, path: str, otherwise: str) -> Fsspec:
        if self._transport(path) is not self._stores:
            raise UserError(f"{path} {otherwise}")
        return self._stores

    def _pieces(self, path: str, start: int, stop: int | None, skip: bool) -> Iterator[bytes]:
        transport = self._transport(path)
        patience, good = _Patience(self, path), start
        while True:
            try:
                patience.begin()
                for piece in transport.pieces(path, start, stop, skip):
                    start += len(piece)
                    yield piece
                return self.answered(path)
            except _ANSWERS:
                self.answered(path)
                raise
            except TransientError as error:
                if start - good >= _PROGRESS:
                    self.answered(path)
                    patience, good = _Patience(self, path), start
                patience.wait(error)

    def _retried(self, path: str, attempt: Callable[[], Result]) -> Result:
        patience = _Patience(self, path)
        while True:
            try:
                patience.begin()
                result = attempt()
                self.answered(path)
                return result
            except _ANSWERS:
                self.answered(path)
                raise
            except TransientError as error:
                patience.wait(error)

    def answered(self, path: str) -> None:
        """The file has come, or word that it is not to be had: neither it nor its server is dead."""
        with self.lock:
            self.answered_at[_host(path)] = time.monotonic()
            self.given_up.discard(path)
            self.dead_hosts.pop(_host(path), None)


@dataclass
class DeadHost:
    """A server that was given up: when it may be tried again, by the monotonic clock, and what was wrong last."""

    next_probe: float
    reason: str


class _Patience:
    """The attempts at one read, since the last that brought something."""

    def __init__(self, remote: Remote, path: str) -> None:
        self._remote = remote
        self._path = path
        self._began = time.monotonic()
        self._failures = 0

    def begin(self) -> None:
        """Before each attempt.

        Raises:
            ReadError: the server is dead, and it is not yet time to try it again.
        """
        remote = self._remote
        with remote.lock:
            dead = remote.dead_hosts.get(_host(self._path))
            if dead is None:
                return
            if time.monotonic() < dead.next_probe:
                raise ReadError(errno.EIO, f"{dead.reason} (its server was given up)", self._path)
            dead.next_probe = time.monotonic() + remote.timeout + remote.probe_wait  # until this attempt has ended

    def wait(self, error: TransientError) -> None:
        """Sleep before the next attempt, or give up."""
        remote, path, host = self._remote, self._path, _host(self._path)
        self._failures += 1
        with remote.lock:
            is_over = self._failures > remote.retries or path in remote.given_up or host in remote.dead_hosts
            if is_over:
                remote.given_up.add(path)
                if remote.answered_at.get(host, -math.inf) < self._began:  # or it is this file alone
                    remote.dead_hosts[host] = DeadHost(time.monotonic() + remote.probe_wait, str(error))
        if is_over:
            tried = f" (gave up after {self._failures} attempts)" if self._failures > 1 else ""
            raise ReadError(errno.EIO, f"{error}{tried}", path) from error
        wait = min(remote.first_wait * 2 ** (self._failures - 1), _LONGEST_WAIT)
        time.sleep(wait * _jitter.uniform(0.75, 1.25))


def _host(path: str) -> str:
    parts = urlsplit(path)
    return f"{parts.scheme}://{parts.netloc}"


class RemoteStream(io.BufferedIOBase):
    """Pieces as a file that is read forward: ``read``, ``tell``, ``seek`` to a later byte."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._position = 0
        self._rest = memoryview(next(pieces, b""))  # a missing file is an error here, not at the first read

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        """``size`` bytes, fewer only at the end of the file."""
        return b"".join(self._parts(size))

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._position:
            raise io.UnsupportedOperation("a stream is read forward only")
        for _ in self._parts(offset - self._position):
            pass
        return self._position

    def close(self) -> None:
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
        super().close()

    def _parts(self, size: int | None) -> Iterator[memoryview]:
        missing = float("inf") if size is None or size < 0 else size
        while missing > 0:
            if not self._rest:
                self._rest = memoryview(next(self._pieces, b""))
                if not self._rest:
                    return
            part = self._rest[: min(len(self._rest), int(min(missing, 1 << 62)))]
            self._rest = self._rest[len(part) :]
            self._position += len(part)
            missing -= len(part)
            yield part
