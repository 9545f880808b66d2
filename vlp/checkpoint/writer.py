"""Checkpoints written while the steps go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType

from vlp import distributed
from vlp.checkpoint import directory
from vlp.checkpoint.checksums import CHECKSUMS_FILE
from vlp.checkpoint.copies import Copies
from vlp.checkpoint.options import CheckpointOptions
from vlp.checkpoint.place import Place
from vlp.checkpoint.snapshot import Snapshot
from vlp.encoders.source import best_checkpoint, checkpoints
from vlp.types import UserError


class Writer:
    """Writes the checkpoints of a run, and their copies, in threads; on rank zero only.

    What fails raises its UserError once, at the next call; the checkpoints before stay as they are. As a context it
    closes itself; where the run ends by a second signal, only what is being written here is still finished.

    Raises:
        UserError: ``checkpoint.copy_to`` names nothing that can be written to.
    """

    def __init__(self, run_dir: Path, options: CheckpointOptions) -> None:
        self._run_dir = run_dir
        self._keep = options.keep
        self._best = best_checkpoint(run_dir)
        self._writing: Future[None] | None = None
        self._copies = Copies(Place(options.copy_to, run_dir), options.keep) if options.copy_to else None
        if self._copies is not None:  # that of an earlier call may not have arrived
            for checkpoint in checkpoints(run_dir)[-1:]:
                if (checkpoint / CHECKSUMS_FILE).is_file():
                    self._copies.offer(checkpoint)

    def save(self, snapshot: Snapshot) -> None:
        """Write ``snapshot`` from now on, after an earlier one that is still being written.

        Raises:
            UserError: an earlier one could not be written.
        """
        self.wait()
        self._writing = _in_background(lambda: self._write(snapshot))

    def wait(self) -> None:
        """Until nothing is being written here: whoever calls it before making a snapshot has one in memory at a time.

        Raises:
            UserError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def keep_best(self, step: int) -> None:
        """Have ``best`` point at the checkpoint of ``step``, which stays until a better one comes.

        Raises:
            UserError: it could not be written.
        """
        self.wait()
        self._best = directory.place_of(self._run_dir / "checkpoints", step)
        directory.point_at(self._best, "best")

    def check(self) -> None:
        """Whether all went well so far, without waiting.

        Raises:
            UserError: a checkpoint could not be written.
        """
        if self._writing is not None and self._writing.done():
            self.wait()

    def close(self) -> None:
        """Until everything is written, and the newest checkpoint copied.

        Raises:
            UserError: one of them was not.
        """
        problems = list(filter(None, map(_problem, (self.wait, self._close_copies))))
        for further in problems[1:]:
            distributed.say(f"vlp: {further}")
        if problems:
            raise problems[0]

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif issubclass(kind, Exception) and (further := _problem(self.close)):
            distributed.say(f"vlp: {further}")

    def _write(self, snapshot: Snapshot) -> None:
        written = directory.write(self._run_dir / "checkpoints", snapshot)
        if self._copies is not None:
            self._copies.offer(written)
        self._remove_old()

    def _close_copies(self) -> None:
        copies, self._copies = self._copies, None
        if copies is not None:
            try:
                copies.close()
            finally:
                self._remove_old()  # one that was still being copied

    def _remove_old(self) -> None:
        for old in checkpoints(self._run_dir)[: -self._keep]:
            if old != self._best and (self._copies is None or not self._copies.uses(old)):
                directory.remove(old)


def _problem(work: Callable[[], None]) -> UserError | None:
    try:
        work()
    except UserError as error:
        return error
    return None


def _in_background(work: Callable[[], None]) -> Future[None]:
    """In a thread that the process waits for when it ends: cut off inside of safetensors, it would abort instead."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="checkpoint").start()
    return future
