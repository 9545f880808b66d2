"""Local copies of remote shards: one a machine, shared by all its processes, below a limit."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field

from vlp.data.remote import Remote
from vlp.data.temporary import hold, temporary_folder
from vlp.data.transports import Identity, ReadError
from vlp.types import UserError

_POLL = 0.1  # seconds between two looks whether others have made room
_TOUCH = 60.0  # seconds between two marks that a copy is in use
_STEP = 64 << 20  # room taken at a time for a file of unknown length


class CacheOptions(BaseModel, frozen=True, extra="forbid"):
    """Whether remote shards are kept on a local disk."""

    folder: str | None = Field(
        default=None,
        description="local folder that keeps remote shards for all runs of this machine; null: none is kept",
    )
    gigabytes: float = Field(default=50.0, gt=0, description="size of that folder; the shards unused longest go first")


class Cache:
    """Whole remote files as local ones. Without a folder they lie in a temporary one that goes when the process ends.

    The name of a copy holds the address and the version, so a file never changes under those who read it. Beside it
    lies ``NAME.json``: of what it is a copy, and the room it takes. The holder of ``locks/NAME`` may write or remove
    it, the holder of ``locks/room`` may grant room.
    """

    def __init__(self, options: CacheOptions) -> None:
        self.is_lasting = options.folder is not None
        self._folder = Path(os.path.expanduser(options.folder)) if options.folder else temporary_folder()
        self._limit = int(options.gigabytes * 1e9)
        self._known: dict[tuple[int, str], tuple[Path, float]] = {}  # (process, path) -> copy, when its use was marked

    def local_copy(self, path: str, remote: Remote) -> str:
        """The local file with the bytes of ``path``, which is downloaded if need be.

        Once in each process, the remote file is asked for its length and its ETag or date: a copy of another version
        does not serve. (A command has none of these: its copy in a lasting folder is taken for good.) Another
        process may remove the copy at any time; who has it open reads on.

        Raises:
            ReadError: the remote file cannot be read.
            UserError: it is larger than the whole cache, or the disk is full.
        """
        now = time.monotonic()
        copy, marked = self._known.get((os.getpid(), path), (None, -math.inf))
        if copy is None or not copy.exists():
            copy, marked = self._bring(path, remote), -math.inf
        if now - marked > _TOUCH:
            with contextlib.suppress(FileNotFoundError):
                os.utime(copy)
            self._known[os.getpid(), path] = copy, now
        return str(copy)

    def forget(self, path: str) -> None:
        """Ask again which version of ``path`` is the one, before its copy is used next."""
        self._known.pop((os.getpid(), path), None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}

    def _bring(self, path: str, remote: Remote) -> Path:
        identity = remote.identity(path)
        asked = time.time()
        copy = self._folder / _name(path, identity)
        try:
            if not self.is_lasting:
                hold(self._folder)
            (self._folder / "locks").mkdir(parents=True, exist_ok=True)
            with FileLock(self._lock(copy)):
                note = _read_note(copy)
                if note.get("failed", 0.0) >= asked:  # others waited for the same server: it need not die for each anew
                    raise ReadError(errno.EIO, note["reason"], path)
                if not copy.exists():
                    self._download(path, copy, identity, remote)
        except ReadError:
            raise
        except OSError as error:
            raise UserError(self._cannot_keep(path, error)) from error
        return copy

    def _cannot_keep(self, path: str, error: OSError) -> str:
        reason = f"{self._folder} cannot keep {path}: {error.strerror or error}"
        if self.is_lasting:
            return f"data.cache.folder {reason}"
        return (
            f"the temporary folder {reason}: set data.cache.folder to a folder on a disk with room, or index the "
            "shards (vlp data index)"
        )

    def _download(self, path: str, copy: Path, identity: Identity, remote: Remote) -> None:
        partial = _partial(copy)
        if not identity.tag:
            partial.unlink(missing_ok=True)  # nothing says that the rest would be of the same version
        is_known = identity.length is not None
        room = self._take_room(path, copy, identity.length or 0, wait=True)
        try:
            with open(partial, "ab") as file:
                for piece in remote.stream(path, file.tell(), identity):
                    if file.tell() + len(piece) > room:
                        needed = file.tell() + len(piece) + (0 if is_known else _STEP)
                        room = self._take_room(path, copy, needed, wait=False)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            size = partial.stat().st_size
            if identity.length not in (None, size):
                raise ReadError(errno.EIO, f"sent {size} of {identity.length} bytes", path)
        except ReadError as error:
            _write_note(copy, path=path, failed=time.time(), reason=error.strerror)
            raise
        _write_note(copy, path=path)
        os.replace(partial, copy)

    def _take_room(self, path: str, copy: Path, size: int, wait: bool) -> int:
        """Reserve ``size`` bytes for ``copy``.

        With ``wait``, as soon as the downloads of others leave them. Who holds room already must not wait for
        others, who may wait for its.
        """
        limit = f"the cache {self._limit / 1e9:.3g} GB: raise data.cache.gigabytes"
        if size > self._limit:
            raise UserError(f"{path} has {size / 1e9:.3g} GB and {limit}")
        while True:
            with FileLock(self._lock(None)):
                if self._make_room(copy, size):
                    _write_note(copy, path=path, room=size)
                    _partial(copy).touch()
                    return size
            if not wait:
                raise UserError(f"{path} and other shards that are downloaded now have more GB together than {limit}")
            time.sleep(_POLL)

    def _make_room(self, but: Path, size: int) -> bool:
        """Remove what was unused longest and is not being downloaded, until ``size`` bytes are left."""
        others = sorted(entry for entry in self._entries() if entry[2] != but)
        used = sum(room for _, room, _ in others)
        for _, room, copy in others:
            if used + size <= self._limit:
                break
            with contextlib.suppress(Timeout), FileLock(self._lock(copy), timeout=0):
                for file in (copy, _partial(copy), _note(copy)):
                    file.unlink(missing_ok=True)
                used -= room
        return used + size <= self._limit

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes, place) of each copy, whole or under way."""
        for note in self._folder.glob("*.json"):
            copy = note.with_suffix("")
            for file in (copy, _partial(copy)):
                with contextlib.suppress(FileNotFoundError):
                    status = file.stat()
                    reserved = 0 if file == copy else int(_read_note(copy).get("room", 0))
                    yield status.st_mtime, max(status.st_size, reserved), copy
                    break

    def _lock(self, copy: Path | None) -> str:
        return str(self._folder / "locks" / (copy.name if copy else "room"))


def _name(path: str, identity: Identity) -> str:
    """Readable where possible, and another one for each path and version."""
    stem = "pipe" if path.startswith("pipe:") else os.path.basename(path.partition("?")[0])[-80:]
    return f"{hashlib.sha256(repr((path, *identity)).encode()).hexdigest()[:20]}-{stem}"


def _partial(copy: Path) -> Path:
    return copy.with_name(copy.name + ".partial")


def _note(copy: Path) -> Path:
    return copy.with_name(copy.name + ".json")


def _read_note(copy: Path) -> dict:
    try:
        return json.loads(_note(copy).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):  # none, or the process died while writing it
        return {}


def _write_note(copy: Path, **note: object) -> None:
    _note(copy).write_text(json.dumps(note), encoding="utf-8")
