"""The folder elsewhere that has copies of a run's checkpoints, in any store that fsspec can write to."""

from __future__ import annotations

import contextlib
import errno
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import sync

from vlp.checkpoint import checksums
from vlp.checkpoint.checksums import CHECKSUMS_FILE
from vlp.checkpoint.directory import place_of
from vlp.encoders.source import step_of
from vlp.types import UserError

RETRIES, FIRST_WAIT = 5, 1.0  # of what fails; seconds, doubled for each further one
CONNECTING, SILENCE = 10.0, 30.0  # seconds after which an attempt has failed
_SLOW = 256 << 10  # bytes a second; a store below that is as good as dead
_EXTRAS = {"s3": "vlp[s3]", "s3a": "vlp[s3]", "gs": "vlp[gcs]", "gcs": "vlp[gcs]"}
_HOPELESS = (PermissionError, FileNotFoundError, NotADirectoryError, ValueError, TypeError, ImportError)
_NUMBERS = (errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class PlaceError(UserError):
    """The place did not do what was asked, however often.

    Attributes:
        hopeless: asking again is no use: it is not there, forbidden or full.
        missing: it is not there.
    """

    def __init__(self, place: str, cause: Exception) -> None:
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
        super().__init__(f"checkpoint.copy_to: {place}: {reason}")
        hopeless = isinstance(cause, _HOPELESS) or getattr(cause, "errno", None) in _NUMBERS
        self.hopeless = hopeless or "Credential" in reason
        self.missing = isinstance(cause, FileNotFoundError)


class Place:
    """Copies of checkpoints below ``ADDRESS/RUN/checkpoints``: a directory as a run has it.

    A copy is whole if it has ``checksums.json``, the file that comes last and goes first.

    Args:
        address: the option ``checkpoint.copy_to``.
        run_dir: its last part names the run.

    Raises:
        UserError: no such kind of store, or the run itself lies there.
    """

    def __init__(self, address: str, run_dir: Path) -> None:
        self.name = f"{address.rstrip('/')}/{run_dir.absolute().name}/checkpoints"
        self._system = _connect(address)
        self._folder = self._system._strip_protocol(self.name)
        is_local = isinstance(self._system, fsspec.get_filesystem_class("file"))
        if is_local and Path(self._folder).resolve() == (run_dir / "checkpoints").resolve():
            raise UserError(f"checkpoint.copy_to: {address} is where the run itself lies: name another place")

    def check(self) -> None:
        """Write a small file, and take it away if that is allowed.

        Raises:
            PlaceError: nothing can be written.
        """
        probe = f"{self._folder}/.can-be-written"
        self._make_folder(self._folder)
        self._ask("pipe_file", probe, b"")
        with contextlib.suppress(PlaceError):
            self._ask("rm_file", probe)

    def steps(self) -> list[int]:
        """Those of the whole copies, in order.

        Raises:
            PlaceError: the place does not answer.
        """
        self._system.invalidate_cache()
        try:
            found = self._ask("glob", f"{self._folder}/step-*/{CHECKSUMS_FILE}")
        except PlaceError as error:
            if not error.missing:
                raise
            return []
        steps = [step_of(Path(path).parent) for path in found]
        return sorted(step for step in steps if step is not None)

    def upload(self, checkpoint: Path) -> None:
        """Copy a whole checkpoint, unless it is there.

        Raises:
            PlaceError: it did not arrive.
        """
        sums = (checkpoint / CHECKSUMS_FILE).read_bytes()
        target = f"{self._folder}/{checkpoint.name}"
        if step_of(checkpoint) in self.steps():
            if self._ask("cat_file", f"{target}/{CHECKSUMS_FILE}") == sums:
                return
            self._ask("rm_file", f"{target}/{CHECKSUMS_FILE}")
        for name in [*checksums.parse(sums), CHECKSUMS_FILE]:
            path = f"{target}/{name}"
            self._make_folder(path.rpartition("/")[0])
            self._ask("put_file", str(checkpoint / name), path, size=(checkpoint / name).stat().st_size)

    def download(self, step: int, directory: Path) -> None:
        """Fetch a copy into ``directory``, which is new; whether it is what was written is still to be seen.

        Raises:
            PlaceError: it did not come.
            ValueError: its checksums.json is none.
        """
        source = place_of(Path(self._folder), step).as_posix()
        sums = self._ask("cat_file", f"{source}/{CHECKSUMS_FILE}")
        for name, expected in checksums.parse(sums).items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._ask("get_file", f"{source}/{name}", str(path), size=expected.bytes)
        (directory / CHECKSUMS_FILE).write_bytes(sums)

    def drop_all_but(self, keep: int) -> None:
        """Take away what is older than the ``keep`` newest whole copies.

        Raises:
            PlaceError: it stays.
        """
        whole = self.steps()
        for path in self._ask("ls", self._folder, detail=False):
            step = step_of(path)
            if step is not None and whole and step < whole[-keep:][0]:
                if step in whole:
                    self._ask("rm_file", f"{path}/{CHECKSUMS_FILE}")
                self._ask("rm", path, recursive=True)

    def _make_folder(self, path: str) -> None:
        """Object stores have no folders; asked for one, some make a bucket."""
        if not self._system.async_impl:
            self._ask("makedirs", path, exist_ok=True)

    def _ask(self, method: str, *args: Any, size: int = 0, **options: Any) -> Any:
        retries, wait = RETRIES, FIRST_WAIT
        while True:
            try:
                return self._attempt(method, *args, size=size, **options)
            except Exception as error:  # each store has errors of its own
                failure = PlaceError(self.name, error)
                if failure.hopeless or retries == 0:
                    raise failure from error
            time.sleep(wait)
            retries, wait = retries - 1, 2 * wait

    def _attempt(self, method: str, *args: Any, size: int, **options: Any) -> Any:
        if not self._system.async_impl:
            return getattr(self._system, method)(*args, **options)
        limit = CONNECTING + SILENCE + size / _SLOW  # the store's own limits count the silence between two packets
        return sync(self._system.loop, getattr(self._system, f"_{method}"), *args, timeout=limit, **options)


def _connect(address: str) -> fsspec.AbstractFileSystem:
    protocol = address.partition("://")[0] if "://" in address else "file"
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):  # one attempt each: the store's own retries would multiply with ours
        limits = {"connect_timeout": CONNECTING, "read_timeout": SILENCE, "retries": {"max_attempts": 0}}
        options = {"config_kwargs": limits}
    try:
        system, _ = fsspec.core.url_to_fs(address, skip_instance_cache=True, **options)
        if protocol in ("s3", "s3a"):
            system.retries = 1
    except ImportError as error:
        cure = f"pip install '{_EXTRAS[protocol]}'" if protocol in _EXTRAS else f"install what fsspec names ({error})"
        raise UserError(f"checkpoint.copy_to: {protocol}:// needs a package: {cure}") from error
    except ValueError as error:
        raise UserError(f"checkpoint.copy_to: {address} cannot be written to: {error}") from error
    return system
