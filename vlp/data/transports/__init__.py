"""One attempt at the bytes of a file elsewhere, and what can come of it. Retries are ``remote.py``'s."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple


class ReadError(OSError):
    """A file that cannot be read, however often one asks: ``ReadError(errno, reason, path)``."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class NotFoundError(ReadError):
    """There is no such file."""


class RefusedError(ReadError):
    """The server forbids it; buckets that keep their list to themselves say so of files that are not there too."""


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

    Every method may raise TransientError, ReadError (NotFoundError, RefusedError) and UserError.
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

    def check_version(self, path: str, identity: Identity) -> None:
        if identity.differs(self._seen.setdefault(path, identity)):
            raise ReadError(errno.ESTALE, "changed while it was being read", path)
