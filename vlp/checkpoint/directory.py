"""Directories of checkpoints: written beside their place and renamed, so that none is seen half made or half gone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from vlp.checkpoint import checksums
from vlp.checkpoint.checksums import STATE_FILE
from vlp.checkpoint.snapshot import Snapshot
from vlp.types import UserError


def place_of(root: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies; `source.step_of` is the inverse."""
    return root / f"step-{step:07d}"


def write(root: Path, snapshot: Snapshot) -> Path:
    """Write ``step-NNNNNNN`` below ``root`` and point ``latest`` at it.

    Raises:
        UserError: it cannot be written; the checkpoints before stay as they are.
    """
    final = place_of(root, snapshot.step)
    partial = partial_of(final)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        snapshot.describe(partial, final)
        for name, tensors in snapshot.files.items():
            if tensors:
                save_file(dict(tensors), partial / name, metadata={"format": "pt"})  # open_clip wants to know
        state = {"step": snapshot.step, **snapshot.state}
        (partial / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        checksums.write(partial)
        put_in_place(partial, final)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {final} cannot be written ({error}): the one before stays; free the disk and start again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # where it still is there, it takes room that others need
    return final


def partial_of(final: Path) -> Path:
    """Where a checkpoint is made."""
    return final.with_name(f".{final.name}.partial")


def put_in_place(partial: Path, final: Path) -> None:
    """Rename a directory that is complete, once it has reached the disk; one of the same name goes."""
    _flush_to_disk(partial)
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)
    point_at(final)
    _flush(final.parent)


def point_at(checkpoint: Path, name: str = "latest") -> None:
    """Make ``name`` a symbolic link to ``checkpoint``, in one step."""
    link = checkpoint.with_name(name)
    partial = checkpoint.with_name(f".{name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(checkpoint.name)
    partial.replace(link)


def remove(checkpoint: Path) -> None:
    """Take a checkpoint away; nobody finds one of which a part is gone already.

    Raises:
        UserError: it stays.
    """
    removed = checkpoint.with_name(f".{checkpoint.name}.removed")
    try:
        checkpoint.rename(removed)
    except OSError as error:
        raise UserError(f"old checkpoint {checkpoint} cannot be removed: {error}") from error
    shutil.rmtree(removed, ignore_errors=True)  # what others still have open goes with the next start


def set_aside(checkpoint: Path) -> Path:
    """Give a damaged checkpoint a name by which it is none, for somebody to look at."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)


def tidy(root: Path) -> None:
    """Take away what a killed run has left; to be called by the one process that writes there, before it does."""
    for path in sorted(root.glob(".step-*")):
        final = root / path.name[1:].rpartition(".")[0]
        if path.suffix == ".replaced" and not final.exists():
            path.rename(final)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _flush_to_disk(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
