"""Bytes from anywhere: local files, ``http(s)://``, ``s3://``, ``gs://`` and what fsspec knows, ``pipe:COMMAND``."""

from __future__ import annotations

import contextlib
import glob
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from vlp.data.cache import Cache, CacheOptions
from vlp.data.remote import Remote, RemoteStream
from vlp.data.samples import BadSample
from vlp.data.transports import NoRangesError, NotFoundError, RefusedError
from vlp.types import UserError

Result = TypeVar("Result")

_ATTEMPTS = 10


class UnreadableError(UserError):
    """A file that is not there or cannot be read: its own class for those who count it instead of ending."""


def is_remote(path: str) -> bool:
    """Whether ``path`` is an address or a command and not a local path."""
    return "://" in path or path.startswith("pipe:")


class Store:
    """Reads shards and the files beside them, wherever they lie.

    It may be pickled and forked: connections belong to a process and are made when first needed. Threads may share it.

    Args:
        cache: where copies of remote shards are kept.
        retries: further attempts while nothing comes; what brings bytes goes on at the byte reached.
        timeout: seconds of silence after which an attempt has failed.
        first_wait: seconds before the first retry, doubled for each further one (16 at most).

    With the defaults a server that refuses connections is given up after about a minute, a silent one after about two;
    then its reads fail at once, but for one every 5 s, so that a server that comes back is used again.
    """

    def __init__(
        self,
        cache: CacheOptions = CacheOptions(),  # noqa: B008 - frozen
        retries: int = 6,
        timeout: float = 10.0,
        first_wait: float = 1.0,
    ) -> None:
        self._patience = retries, timeout, first_wait
        self._cache = Cache(cache)
        self._copied: set[str] = set()  # paths that are read from copies, as parts of them cannot or should not be had
        self._connected: tuple[int, Remote] | None = None

    def exists(self, path: str, optional: bool = False) -> bool:
        """Whether there is such a file; a command counts as one.

        Args:
            optional: a file that a shard may do without: one that the server refuses counts as not there, as
                buckets without the right to list, and signed addresses, refuse what is not there.

        Raises:
            UnreadableError: it cannot be told, because the server is dead or refuses.
        """
        if not is_remote(path):
            return os.path.exists(path)
        try:
            self._remote.identity(path)
        except NotFoundError:
            return False
        except RefusedError as error:
            if optional:
                return False
            raise _unreadable(error) from error
        except OSError as error:
            raise _unreadable(error) from error
        return True

    def length(self, path: str) -> int:
        """Bytes of the file.

        Raises:
            UnreadableError: it is not there or cannot be read.
        """
        try:
            length = self._remote.identity(path).length if is_remote(path) else None
            if length is None:
                length = os.path.getsize(self.local_copy(path))
        except OSError as error:
            raise _unreadable(error) from error
        return length

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        """Just these bytes of the file.

        Raises:
            BadSample: "unreadable shard", after all retries.
            UserError: a package is missing, or the cache cannot hold the shard.
        """
        try:
            if not is_remote(path):
                data = _read_local(path, offset, size)
            elif self._is_copied(path):
                data = self._on_copy(path, lambda copy: _read_local(copy, offset, size))
            else:
                try:
                    data = self._remote.read(path, offset, size)
                except NoRangesError:
                    self.keep_copy(path)
                    data = self._on_copy(path, lambda copy: _read_local(copy, offset, size))
        except OSError as error:
            raise BadSample("unreadable shard", str(error)) from error
        if len(data) < size:
            raise BadSample("unreadable shard", f"{path} is shorter than when it was indexed")
        return data

    def read_all(self, path: str) -> bytes:
        """The whole file, as it is now and never from the cache.

        Raises:
            UnreadableError: it is not there or cannot be read.
        """
        try:
            if is_remote(path):
                return b"".join(self._remote.stream(path))
            return Path(path).read_bytes()
        except OSError as error:
            raise _unreadable(error) from error

    def open_stream(self, path: str) -> BinaryIO:
        """The file from its beginning, to be read forward (``read``, ``tell``, ``seek`` to a later byte).

        It is opened as it is now: what was known of an earlier file of this path is forgotten.

        Raises:
            OSError: now or while it is read; a ReadError for a remote file, which names it.
        """
        forget(path)
        if not is_remote(path):
            return open(path, "rb")
        if self._is_copied(path):
            self._cache.forget(path)
            return self._on_copy(path, lambda copy: open(copy, "rb"))
        return cast(BinaryIO, RemoteStream(self._remote.stream(path)))

    def keep_copy(self, path: str) -> None:
        """From now on read ``path``, if it is remote, from a copy: one for this process and those it forks.

        For what would otherwise be fetched by each of them, to be scanned, and once more in parts.
        """
        self._copied.add(path)

    def _is_copied(self, path: str) -> bool:
        return self._cache.is_lasting or path in self._copied

    def local_copy(self, path: str) -> str:
        """A local file with these bytes: ``path`` itself if it is local, else a copy in the cache.

        Raises:
            OSError: the remote file cannot be read.
            UserError: the cache cannot hold it.
        """
        return self._cache.local_copy(path, self._remote) if is_remote(path) else path

    def expand(self, pattern: str) -> list[str]:
        """The shards that an address names: of a glob or a folder all ``*.tar``, sorted; else the address itself.

        Local paths and commands come back as they are.

        Raises:
            UserError: nothing is found, or the server has no listing.
        """
        if not is_remote(pattern) or pattern.startswith("pipe:"):
            return [pattern]
        on_web = pattern.startswith(("http://", "https://"))
        try:
            # In web addresses "?" begins a query and "[" an IPv6 host.
            if "*" in pattern if on_web else glob.has_magic(pattern):
                found = self._remote.glob(pattern)
            elif pattern.endswith("/") or not (on_web or pattern.endswith(".tar")):
                found = self._remote.list_tars(pattern)
            else:
                found = [pattern]
        except OSError as error:
            raise _unreadable(error) from error
        if not found:
            raise UserError(f"{pattern} has no .tar file: name the folder or the pattern of the shards")
        return found

    def write(self, path: str, data: bytes) -> None:
        """Write a file as a whole: readers see the old one or the new one.

        Raises:
            UserError: nothing can be written there.
        """
        try:
            if is_remote(path):
                self._remote.write(path, data)
            else:
                _write_local(Path(path), data)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from error

    def _on_copy(self, path: str, use: Callable[[str], Result]) -> Result:
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(FileNotFoundError):  # another process needed the room before we had it open
                return use(self.local_copy(path))
        return use(self.local_copy(path))

    @property
    def _remote(self) -> Remote:
        with _connecting:
            if self._connected is None or self._connected[0] != os.getpid():
                self._connected = os.getpid(), Remote(*self._patience)
            return self._connected[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connected": None}


_connecting = threading.Lock()


def _renew_lock() -> None:
    """Another thread of the parent may have held it at the moment of the fork."""
    global _connecting
    _connecting = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def forget(path: str) -> None:
    """Another file may have come to this local path since it was opened."""
    _open.pop(path, None)


class _Descriptor:
    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_OPEN_FILES = 64  # a window touches a handful of shards; a data set may have more than a process may open
_open: OrderedDict[str, _Descriptor] = OrderedDict()


def _read_local(path: str, offset: int, size: int) -> bytes:
    """``os.pread`` keeps no position, so threads and forked workers may share the descriptor."""
    descriptor = _open.get(path)
    if descriptor is None:
        descriptor = _open[path] = _Descriptor(path)
    with contextlib.suppress(KeyError):  # another thread may have closed it; ours stays open as long as we hold it
        _open.move_to_end(path)
        while len(_open) > _OPEN_FILES:
            _open.popitem(last=False)
    return os.pread(descriptor.number, size, offset)


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _unreadable(error: OSError) -> UnreadableError:
    return UnreadableError(f"{error.filename} cannot be read: {error.strerror}: check the address and the server")
