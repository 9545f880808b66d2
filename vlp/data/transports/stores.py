"""Files in the stores that fsspec knows."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.asyn import sync

from vlp.data.transports import Identity, NotFoundError, ReadError, RefusedError, TransientError, Transport
from vlp.types import UserError

BLOCK = 4 << 20  # what a cut can cost
_SLOW = 64 << 10  # bytes a second; a store below that is as good as dead
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_VERSIONS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")


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
            self.check_version(path, identity)
            if identity.length is None:
                raise ReadError(errno.EIO, "has no known length", path)
            stop = identity.length
        for at in range(start, stop, BLOCK):
            end = min(at + BLOCK, stop)
            block = self._call("cat_file", path, start=at, end=end, size=end - at)
            if len(block) != end - at:
                self._explain_short(path, end, len(block))
            yield block
        if whole:
            self.check_version(path, self.identity(path))

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
            if isinstance(error, PermissionError):
                raise RefusedError(errno.EACCES, reason, path) from error
            hopeless = isinstance(error, (NotADirectoryError, ValueError, TypeError, ImportError))
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
