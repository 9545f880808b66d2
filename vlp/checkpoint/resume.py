"""The checkpoint to go on from, and what is in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlp import distributed
from vlp.checkpoint import checksums, directory
from vlp.checkpoint.checksums import STATE_FILE
from vlp.checkpoint.options import CheckpointOptions
from vlp.checkpoint.place import Place, PlaceError
from vlp.encoders.source import checkpoints, step_of
from vlp.types import UserError

_COUNTERS = ("step", "samples", "num_samples", "data", "bad_samples", "scaler")


def newest(run_dir: Path, options: CheckpointOptions) -> Path | None:
    """The newest checkpoint that is as it was written; every process calls it, before any writes, and rank zero looks.

    It comes from ``checkpoint.copy_to`` where that has a newer one. A damaged one is named and set aside. What a killed
    run has left is taken away.

    Raises:
        UserError: there are checkpoints, but none is whole; or the place of the copies cannot be used.
    """
    found = None
    with distributed.failing_together():
        if distributed.rank() == 0:
            try:
                found = _newest(run_dir, options)
            except OSError as error:
                raise UserError(f"the checkpoints of {run_dir} cannot be looked through: {error}") from error
    return distributed.from_all_ranks(found)[0]


def read(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """The tensors of the file ``name``, on the CPU.

    Raises:
        UserError: it is missing or broken.
    """
    with resuming(checkpoint):
        return load_file(checkpoint / name)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The counters that a run goes on with, and ``step``.

    Raises:
        UserError: they are missing or broken.
    """
    with resuming(checkpoint):
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        if missing := [name for name in _COUNTERS if name not in state]:
            raise ValueError(f"{STATE_FILE} lacks {', '.join(missing)}")
        return state


@contextmanager
def resuming(checkpoint: Path) -> Iterator[None]:
    """Whatever does not fit in the body is a UserError that names ``checkpoint``."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {checkpoint} cannot be resumed ({error}); remove it to go on from the one before"
        ) from error


def _newest(run_dir: Path, options: CheckpointOptions) -> Path | None:
    root = run_dir / "checkpoints"
    directory.tidy(root)
    here = {step: path for path in checkpoints(run_dir) if (step := step_of(path)) is not None}
    place = Place(options.copy_to, run_dir) if options.copy_to else None
    copies = _copies(place, has_others=bool(here)) if place else []
    for step in sorted({*here, *copies}, reverse=True):
        if step in here:
            if not (defect := checksums.defect(here[step])):
                directory.point_at(here[step])
                return here[step]
            aside = directory.set_aside(here[step])
            distributed.say(f"checkpoint {here[step]} is damaged ({defect}): set aside as {aside.name}")
        if place and step in copies and (fetched := _fetched(place, step, root)):
            return fetched
    if here or copies or any(root.glob("step-*.damaged")):
        raise UserError(
            f"no checkpoint of {run_dir} is whole: bring one back into {root}, or remove that directory to start anew"
        )
    return None


def _copies(place: Place, has_others: bool) -> list[int]:
    """Steps of the copies, after a try whether there can be more of them."""
    try:
        steps = place.steps()
        place.check()
    except PlaceError as error:
        if error.hopeless or not has_others:
            raise UserError(f"{error}: see that it can be written to, or remove checkpoint.copy_to") from error
        distributed.say(f"warning: going on without the copies of checkpoints ({error})")
        return []
    if not steps:
        distributed.say(f"no copies of checkpoints in {place.name} yet")
    return steps


def _fetched(place: Place, step: int, root: Path) -> Path | None:
    """The copy of ``step``, brought here; None if it is damaged."""
    final = directory.place_of(root, step)
    partial = directory.partial_of(final)
    distributed.say(f"fetching {final.name} from {place.name}")
    try:
        partial.mkdir(parents=True)
        place.download(step, partial)
        if not (defect := checksums.defect(partial)):
            directory.put_in_place(partial, final)
            return final
    except PlaceError as error:
        if not error.missing:
            raise
        defect = "a file is missing"
    except ValueError:
        defect = f"{checksums.CHECKSUMS_FILE} cannot be read"
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    distributed.say(f"checkpoint {final.name} in {place.name} is damaged ({defect}): passed over")
    return None
