"""The directory of a run: one process at a time, one recipe, the same data when it goes on."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlp import distributed
from vlp.data.batches import TrainingData
from vlp.recipe import Recipe, difference
from vlp.types import UserError

RECIPE_FILE = "recipe.yaml"
# What may change when a run goes on, because it does not change what the run computes.
FREE_TO_CHANGE = (
    *("run_dir", "track.", "checkpoint.", "evaluate.", "train.engine", "train.hang_timeout", "train.nonfinite"),
    "train.gradient_checkpointing",
    *("data.workers", "data.max_bad_fraction", "data.cache", "data.read_ahead_mb"),
    "data.train",  # the same shards may have another path; that they are the same, their digest tells
)
DECIDE_WHEN_IT_ENDS = ("evaluate.sets", "evaluate.every")  # with early stopping, so that they are not free then
# Of the digest of the data: what people call it.
_OF_THE_ORDER = {
    "names": "names of shards",
    "counts": "numbers of samples in its shards",
    "weights": "weights or kinds of draws of its sources",
    "filter": "samples that pass data.filter",
    "layers": "folders of layers",
    "version": "rules of shuffling (those of another version of vlp)",
}


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Create ``run_dir`` and keep other runs out of it: ranks whose torchrun was killed, for one, train on.

    The lock is one of POSIX: it ends with the process, however that ends, and its forks do not inherit it.

    Raises:
        UserError: another process trains there.
    """
    file, occupant = None, ""
    if distributed.rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):  # others come from file systems without locks
                file.seek(0)
                occupant = file.read().strip() or "another process"
    try:
        if found := distributed.from_all_ranks(occupant)[0]:
            raise UserError(f"{run_dir} is being trained in by {found}: stop that first, or choose another run_dir")
        yield
    finally:
        if file is not None:
            file.close()


def check_same_recipe(checkpoint: Path, recipe: Recipe) -> None:
    """Refuse to go on from the checkpoint of a run that computed something else."""
    bound = DECIDE_WHEN_IT_ENDS if recipe.train.early_stopping is not None else ()
    changed = [
        key
        for key in difference(checkpoint / RECIPE_FILE, recipe.to_yaml())
        if not key.startswith(FREE_TO_CHANGE) or key.startswith(bound)
    ]
    if changed:
        raise UserError(
            f"{recipe.run_dir} holds a run of another recipe (different: {', '.join(changed[:5])}): "
            "choose another run_dir, or remove that one"
        )


def check_same_data(data: TrainingData, state: dict[str, Any]) -> None:
    """Other shards mean another order: what was seen would come again, and some would never come."""
    now, before = data.digest, state["data"]
    changed = [what for key, what in _OF_THE_ORDER.items() if now[key] != before.get(key)]
    lengths = [name for name, length in now["bytes"].items() if before["bytes"].get(name, length) != length]
    if data.num_samples != state["num_samples"]:
        difference = f"has {data.num_samples:,} samples now, but {state['num_samples']:,}"
    elif changed:
        difference = f"has other {' and '.join(changed)} now than"
    elif lengths:
        name = lengths[0]
        difference = f"has a {name}.tar of {now['bytes'][name]:,} bytes now, but of {before['bytes'][name]:,}"
    else:
        return
    raise UserError(
        f"data.train {difference} when this run was saved: bring the shards and layers back (or take away an index "
        "that counts them otherwise), or choose another run_dir"
    )


def write_recipe(recipe: Recipe) -> None:
    """Not before all checks: a run keeps the recipe that it was trained with."""
    distributed.barrier()  # the others may still be comparing with the one that lies there
    if distributed.rank() == 0:
        stored = Path(recipe.run_dir) / RECIPE_FILE
        partial = stored.with_suffix(".partial")
        partial.write_text(recipe.to_yaml(), encoding="utf-8")
        partial.replace(stored)
    distributed.barrier()
