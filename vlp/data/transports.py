"""One attempt at the bytes of a file elsewhere: over HTTP, from an fsspec store, from a command (no retries here)."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import selectors
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import fsspec
import urllib3
from fsspec.asyn import sync

from vlp.types import UserError

_PIECE = 256 << 10
_BLOCK = 4 << 20  # what a cut of an fsspec store can cost
_SLOWEST = 1024  # bytes a second; a server below that is as good as dead
_SLOW = 64 << 10  # bytes a second; the same where a cut costs the block
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_VERSIONS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")


class ReadError(OSError):
    """A file that cannot be read, however often one asks: ``ReadError(errno, reason, path)``."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class NotFoundError(ReadError):
    """There is no such file."""


class NoRangesError(Exception):
    """The store sends files only as a whole."""


class TransientError(Exception):
    """This attempt failed; another one may not."""


class Identity(NamedTuple):
    """What tells one version of a file from another: its length in bytes (None: unknown), and an ETag or a date."""

    length: int | None
    tag: str

    def differs(self, other: Identity) -> bool:
        lengths_differ = None not in (self.length, other.length) and self.length != other.length
        return lengths_differ or bool(self.tag and other.tag and self.tag != other.tag)


class Transport:
    """Bytes of remote files, one attempt a call; safe to use from several threads.

    Every method may raise TransientError, ReadError (NotFoundError) and UserError.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Identity] = {}

    def expect(self, path: str, identity: Identity | None) -> None:
        """From now on any other version of ``path`` than this one (None: than the first one met) is an error."""
        if identity is None:
            self._seen.pop(path, None)
        else:
            self._seen[path] = identity

    def identity(self, path: str) -> Identity:
        """Which version of the file lies there now."""
        raise NotImplementedError

    def pieces(self, path: str, start: int, stop: int | None, skip: bool) -> Iterator[bytes]:
        """The bytes ``start`` to ``stop`` (None: the end), as they come.

        Args:
            skip: where the store has no ranges, read from the beginning and drop what lies before ``start``.

        Raises:
            NoRangesError: the store has no ranges, and ``skip`` is False.
        """
        raise NotImplementedError

    def _check_version(self, path: str, identity: Identity) -> None:
        if identity.differs(self._seen.setdefault(path, identity)):
            raise ReadError(errno.ESTALE, "changed while it was being read", path)


class Http(Transport):
    """``http://`` and ``https://``, over connections that are kept; a proxy as the environment says."""

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self._timeout = timeout
        self._pools: dict[str, urllib3.PoolManager] = {}

    def identity(self, path: str) -> Identity:
        response = self._get(path, 0, 1)  # not HEAD: signed addresses allow one method only
        try:
            if response.status == 206:
                response.drain_conn()  # its one byte, so that the connection can be kept
            return _identity(response)
        finally:
            response.close()

    def pieces(self, path: str, start: int, stop: int | None, skip: bool) -> Iterator[bytes]:
        response = self._get(path, start, stop)
        try:
            identity = _identity(response)
            self._check_version(path, identity)
            if identity.length is not None and identity.length < max(start, stop or 0):
                raise ReadError(errno.EIO, f"has only {identity.length} bytes", path)
            if response.status == 416:  # nothing lies at or behind ``start``
                return
            first, promised = _range(response)
            if response.status == 200 and not skip and identity.length != stop:
                raise NoRangesError
            if stop is not None:
                promised = stop - start
            elif promised is not None:
                promised -= start - first
            yield from self._body(response, start - first, promised)
        finally:
            response.close()  # gives the connection back if all was read, and ends it otherwise

    def _body(self, response: urllib3.BaseHTTPResponse, drop: int, promised: int | None) -> Iterator[bytes]:
        """What comes behind ``drop`` bytes, ``promised`` bytes of it (None: to the end)."""
        received, waited = -drop, 0.0
        while promised is None or received < promised:
            began = time.monotonic()
            try:
                piece = response.read1(_PIECE, decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise TransientError(_reason(error)) from error
            waited += time.monotonic() - began
            if not piece:
                if promised is not None:
                    raise TransientError(f"sent {max(received, 0)} of {promised} bytes")
                return
            received += len(piece)
            if received > 0:
                kept = piece[-received:] if received < len(piece) else piece
                yield kept if promised is None else kept[: len(kept) - max(received - promised, 0)]
            if waited > self._timeout and drop + received < waited * _SLOWEST:
                raise TransientError(f"sent {drop + received} bytes in {waited:.0f} s")

    def _get(self, path: str, start: int, stop: int | None) -> urllib3.BaseHTTPResponse:
        wanted = f"bytes={start}-{'' if stop is None else stop - 1}"
        try:
            response = self._pool(path).request(
                "GET",
                path,
                headers={"Range": wanted, "Accept-Encoding": "identity", "User-Agent": "vlp"},
                preload_content=False,
                timeout=urllib3.Timeout(connect=self._timeout, read=self._timeout),
                retries=urllib3.Retry(None, connect=0, read=0, status=0, other=0, redirect=5),
            )
        except urllib3.exceptions.LocationValueError as error:
            raise ReadError(errno.EINVAL, f"is no address ({error})", path) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TransientError(_reason(error)) from error
        status = response.status
        if status in (200, 206) or (status == 416 and "Content-Range" in response.headers):
            return response
        response.close()
        if status in (404, 410):
            raise NotFoundError(errno.ENOENT, "is not there (HTTP 404)", path)
        if status in (408, 425, 429) or status >= 500:
            raise TransientError(f"HTTP {status}")
        raise ReadError(errno.EACCES, f"the server refuses it (HTTP {status})", path)

    def _pool(self, path: str) -> urllib3.PoolManager:
        parts = urlsplit(path)
        host = parts.hostname or ""
        proxy = "" if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme, "")
        if proxy not in self._pools:
            options: dict[str, Any] = {"num_pools": 32, "maxsize": 32}
            self._pools[proxy] = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        return self._pools[proxy]


def _identity(response: urllib3.BaseHTTPResponse) -> Identity:
    headers = response.headers
    length = headers.get("Content-Length") if response.status == 200 else headers["Content-Range"].rpartition("/")[2]
    tag = headers.get("ETag", "").removeprefix("W/") or headers.get("Last-Modified", "")
    return Identity(int(length) if length and length.isdigit() else None, tag)


def _range(response: urllib3.BaseHTTPResponse) -> tuple[int, int | None]:
    """(first byte, number of bytes) that the answer promises."""
    found = re.match(r"bytes (\d+)-(\d+)/", response.headers.get("Content-Range", ""))
    if response.status == 206 and found:
        return int(found[1]), int(found[2]) - int(found[1]) + 1
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _reason(error: Exception) -> str:
    reason = str(getattr(error, "reason", None) or error) or type(error).__name__
    return re.sub(r"^HTTPS?Connection(Pool)?\(.*?\): ", "", reason)


class Fsspec(Transport):
    """Every other protocol that fsspec knows: ``s3://``, ``gs://``, ``abfs://``, ``memory://`` ..., read in blocks."""

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self._timeout = timeout
        self._systems: dict[str, fsspec.AbstractFileSystem] = {}
        self._lock = threading.Lock()

    def identity(self, path: str) -> Identity:
        self._system(path).invalidate_cache()
        info = self._call("info", path)
        if info.get("type") == "directory":
            raise ReadError(errno.EISDIR, "is a folder", path)
        return Identity(info.get("size"), next((str(info[key]) for key in _VERSIONS if info.get(key)), ""))

    def pieces(self, path: str, start: int, stop: int | None, skip: bool) -> Iterator[bytes]:
        whole = stop is None
        if stop is None:
            identity = self.identity(path)
            self._check_version(path, identity)
            if identity.length is None:
                raise ReadError(errno.EIO, "has no known length", path)
            stop = identity.length
        for at in range(start, stop, _BLOCK):
            end = min(at + _BLOCK, stop)
            block = self._call("cat_file", path, start=at, end=end, size=end - at)
            if len(block) != end - at:
                self._explain_short(path, end, len(block))
            yield block
        if whole:
            self._check_version(path, self.identity(path))

    def write(self, path: str, data: bytes) -> None:
        self._call("pipe_file", path, data, size=len(data))

    def list(self, path: str, pattern: str) -> list[str]:
        """What ``pattern`` matches in the folder or behind the glob ``path``; full paths, sorted."""
        system = self._system(path)
        system.invalidate_cache()
        found = self._call("glob", path if not pattern else f"{path.rstrip('/')}/{pattern}")
        protocol = path.partition("://")[0]
        return sorted(f"{protocol}://{name.lstrip('/')}" for name in found)

    def is_folder(self, path: str) -> bool:
        return bool(self._call("isdir", path))

    def _explain_short(self, path: str, end: int, received: int) -> None:
        length = self.identity(path).length
        if length is not None and length < end:
            raise ReadError(errno.EIO, f"has only {length} bytes", path)
        raise TransientError(f"sent a block of {received} bytes")

    def _call(self, method: str, path: str, *args: Any, size: int = 0, **options: Any) -> Any:
        system = self._system(path)
        inner = system._strip_protocol(path)
        try:
            if not system.async_impl:
                return getattr(system, method)(inner, *args, **options)
            # The store's own limits count the silence between two packets; this one ends what trickles.
            limit = self._timeout + size / _SLOW
            return sync(system.loop, getattr(system, "_" + method), inner, *args, timeout=limit, **options)
        except FileNotFoundError as error:
            raise NotFoundError(errno.ENOENT, "is not there", path) from error
        except Exception as error:  # each store has errors of its own
            reason = f"{type(error).__name__}: {error}"
            hopeless = isinstance(error, (PermissionError, NotADirectoryError, ValueError, TypeError, ImportError))
            if hopeless or "Credential" in reason or getattr(error, "errno", None) == errno.EINVAL:
                raise ReadError(errno.EACCES, reason, path) from error
            raise TransientError(reason) from error

    def _system(self, path: str) -> fsspec.AbstractFileSystem:
        place = "/".join(path.split("/", 3)[:3])  # protocol and host
        with self._lock:
            if place not in self._systems:
                self._systems[place] = self._connect(path)
            return self._systems[place]

    def _connect(self, path: str) -> fsspec.AbstractFileSystem:
        protocol = path.partition("://")[0]
        is_s3 = protocol in ("s3", "s3a")
        try:
            system, _ = fsspec.core.url_to_fs(path, skip_instance_cache=True, **(self._s3_options() if is_s3 else {}))
            if is_s3:
                system.retries = 1
                system.connect()  # or each thread would, at its first read
        except ImportError as error:
            cure = f"vlp[{_EXTRAS[protocol]}]" if protocol in _EXTRAS else f"what fsspec names ({error})"
            raise UserError(f"{path}: reading {protocol}:// needs a package: pip install {cure}") from error
        except ValueError as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        return system

    def _s3_options(self) -> dict[str, Any]:
        """One attempt each, and a limit to silence: the store's own retries would multiply with ours."""
        limits = {"connect_timeout": self._timeout, "read_timeout": self._timeout, "retries": {"max_attempts": 0}}
        return {"config_kwargs": {**limits, "max_pool_connections": 64}}


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
