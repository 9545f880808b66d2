"""Copies of checkpoints elsewhere, made in a thread; a place that fails costs the run nothing but a line."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

from vlp import distributed
from vlp.checkpoint.place import Place, PlaceError
from vlp.types import UserError


class Copies:
    """Copies the newest checkpoint; those that are older by the time the place is free are passed over.

    Args:
        keep: newest copies that stay.
    """

    def __init__(self, place: Place, keep: int) -> None:
        self._place = place
        self._keep = keep
        self._offered: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._newest: Path | None = None
        self._in_use: Path | None = None
        self._arrived: Path | None = None
        self._cannot_drop = False
        self._thread = threading.Thread(target=self._copy_all, name="checkpoint copies", daemon=True)
        self._thread.start()

    def offer(self, checkpoint: Path) -> None:
        """From now on ``checkpoint`` is the newest."""
        with self._lock:
            self._newest, self._arrived = checkpoint, None
        self._offered.put(checkpoint)

    def uses(self, checkpoint: Path) -> bool:
        """Whether it is being read now; of older ones than the newest, no other will be."""
        with self._lock:
            return self._in_use == checkpoint

    def close(self) -> None:
        """Wait for the newest to arrive.

        Raises:
            UserError: it did not.
        """
        self._offered.put(None)
        self._thread.join()
        if self._newest is not None and self._arrived is None:
            self._copy(self._newest)  # the place may be back since
        if self._newest is not None and self._arrived is None:
            raise UserError(
                f"the newest checkpoint did not reach {self._place.name}, but {self._newest} is whole: see that the "
                "place can be written to and start again, which copies it"
            )

    def _copy_all(self) -> None:
        while (checkpoint := self._offered.get()) is not None:
            self._copy(checkpoint)

    def _copy(self, checkpoint: Path) -> None:
        with self._lock:
            if checkpoint != self._newest:
                return
            self._in_use = checkpoint
        try:
            self._place.upload(checkpoint)
            with self._lock:
                self._arrived = checkpoint if checkpoint == self._newest else None
        except (PlaceError, OSError) as error:
            distributed.say(f"warning: {checkpoint.name} was not copied, the run goes on ({error})")
        else:
            self._drop()
        finally:
            with self._lock:
                self._in_use = None

    def _drop(self) -> None:
        try:
            self._place.drop_all_but(self._keep)
        except PlaceError as error:
            if not self._cannot_drop:
                distributed.say(f"warning: old copies stay ({error})")
            self._cannot_drop = True
