"""The temporary folder for copies of remote shards: it goes with the last process that uses it, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from multiprocessing.util import Finalize
from pathlib import Path

_PREFIX = "vlp-shards-"
_HELD = "held"  # locked, shared, by each process that uses the folder
_COPIES = "copies"

_folders: dict[int, Path] = {}  # by process
_held: set[tuple[int, Path]] = set()  # (process, folder)


def temporary_folder() -> Path:
    """Where copies shall lie: one a process, and of the processes forked from it; removed when the process ends.

    It does not exist before `hold`.
    """
    if os.getpid() not in _folders:
        folder = Path(tempfile.gettempdir()) / f"{_PREFIX}{uuid.uuid4().hex}"
        _folders[os.getpid()] = folder
        Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)  # after its workers have ended
    return _folders[os.getpid()] / _COPIES


def hold(copies: Path) -> None:
    """Make the folder, keep it until this process ends, and remove those whose processes were killed.

    To be called by each process that uses it: between two workers, one that no other process has used may go, and its
    copies come again.

    Raises:
        OSError: it cannot be made.
    """
    folder = copies.parent
    if (os.getpid(), folder) in _held:
        return
    while not _lock(folder):
        pass
    copies.mkdir(exist_ok=True)
    _held.add((os.getpid(), folder))
    for other in folder.parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # others tidy up at the same time
            _remove_if_left(other)


def _lock(folder: Path) -> bool:
    """Whether ``folder`` is locked now; not if another process, which thought it left, was about to remove it."""
    with contextlib.suppress(FileNotFoundError):
        folder.mkdir(mode=0o700, exist_ok=True)
        # Never closed: a forked process has the same lock, and the system drops it with the last of them.
        number = os.open(folder / _HELD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(number, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(number), os.stat(folder / _HELD)):
                return True
        os.close(number)
    return False


def _remove_if_left(folder: Path) -> None:
    if folder.lstat().st_uid != os.getuid():
        return
    number = os.open(folder / _HELD, os.O_RDWR)  # one without it is being made
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder / _COPIES, ignore_errors=True)  # before the lock, or a kill would leave them for good
        shutil.rmtree(folder)
    finally:
        os.close(number)
