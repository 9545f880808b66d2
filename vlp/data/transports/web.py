"""Files on web servers."""

from __future__ import annotations

import errno
import re
import time
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import urllib3

from vlp.data.transports import (
    Identity,
    NoRangesError,
    NotFoundError,
    ReadError,
    RefusedError,
    TransientError,
    Transport,
)

_PIECE = 256 << 10
_SLOWEST = 1024  # bytes a second; a server below that is as good as dead


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
            self.check_version(path, identity)
            if identity.length is not None and identity.length < max(start, stop or 0):
                raise ReadError(errno.EIO, f"has only {identity.length} bytes", path)
            if response.status == 416:  # nothing lies at or behind ``start``
                return
            if response.status == 206 and not _part(response):
                raise ReadError(errno.EPROTO, "the server sends a part without saying which (no Content-Range)", path)
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
        kind = RefusedError if status in (401, 403) else ReadError
        raise kind(errno.EACCES, f"the server refuses it (HTTP {status})", path)

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
    length = (
        headers.get("Content-Length") if response.status == 200 else headers.get("Content-Range", "").rpartition("/")[2]
    )
    tag = headers.get("ETag", "").removeprefix("W/") or headers.get("Last-Modified", "")
    return Identity(int(length) if length and length.isdigit() else None, tag)


def _range(response: urllib3.BaseHTTPResponse) -> tuple[int, int | None]:
    """(first byte, number of bytes) that the answer promises."""
    found = _part(response)
    if response.status == 206 and found:
        return int(found[1]), int(found[2]) - int(found[1]) + 1
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _part(response: urllib3.BaseHTTPResponse) -> re.Match[str] | None:
    return re.match(r"bytes (\d+)-(\d+)/", response.headers.get("Content-Range", ""))


def _reason(error: Exception) -> str:
    """What the library says, without its own objects."""
    while isinstance(getattr(error, "reason", None), Exception):
        error = error.reason  # type: ignore[attr-defined]
    said = str(error.args[-1] if len(error.args) > 1 and isinstance(error.args[-1], str) else error)
    return re.sub(r"^\w*(Connection|Pool)\w*\(.*?\): ", "", said) or type(error).__name__
