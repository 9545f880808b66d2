"""An index of tar shards, so that runs start, and go on after an interruption, without looking at a tar.

Writes ``index/00000.parquet`` beside the shards: a row a sample with its key and the offset and size of each
member, and ``index/shards.json`` with the samples and bytes of every shard. Run it again after shards were added
or changed. A remote shard of the same length as before is taken for unchanged.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from data_tools._map_shards import add_engine_arguments, map_shards

if TYPE_CHECKING:
    from vlp.types import Skipped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="as data.train: tars, directories, patterns, URLs")
    parser.add_argument(
        "--to",
        metavar="DIR",
        help="folder of the index, for shards that cannot be written beside (default: index beside the shards); "
        "name it in the recipe as the source's `index`",
    )
    add_engine_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    counts, defects = write_index(arguments.shards, arguments.to, arguments.workers, arguments.ray)
    for folder, samples in counts.items():
        print(f"wrote {folder}: {sum(samples.values()):,} samples in {len(samples):,} shards")
    from vlp.data.bad_samples import BadSamples

    bad = BadSamples(1, 1)
    bad.add(defects, seen=1)
    for line in bad.summary():
        print(f"  {line}")


def write_index(
    shards: Sequence[str], to: str | None = None, workers: int = 1, ray: str | None = None
) -> tuple[dict[str, dict[str, int]], list[Skipped]]:
    """Index all shards; returns the samples of each by folder of the index, and what had to be left out.

    Raises:
        UserError: nothing to index, or two shards of one name that would share an index file.
    """
    import json

    from filelock import FileLock

    from vlp.data.index import SUMMARY, index_root
    from vlp.data.shards import LOCAL, find_shards, stem
    from vlp.data.store import is_remote

    paths = find_shards(list(shards), LOCAL, "SHARDS")
    _check_names(paths, to)
    summaries: dict[str, dict[str, Any]] = defaultdict(dict)
    defects: list[Skipped] = []
    for path, (samples, length, found) in map_shards(partial(_index, root=to), paths, "indexing", workers, ray):
        defects += found
        if samples is not None:
            summaries[index_root(path, to)][stem(path)] = {"samples": samples, "bytes": length}
    for folder, summary in summaries.items():
        name = f"{folder}/{SUMMARY}"
        others: dict[str, Any] = {}
        # Jobs that index parts of a folder at the same time add to one list.
        with nullcontext() if is_remote(name) else FileLock(f"{name}.lock"):
            content = LOCAL.read_all(name) if LOCAL.exists(name, optional=True) else b"{}"
            with suppress(ValueError, TypeError):  # a broken one is written anew
                others = dict(json.loads(content))
            LOCAL.write(name, (json.dumps({**others, **summary}, indent=1, sort_keys=True) + "\n").encode())
    counts = {folder: {name: s["samples"] for name, s in summary.items()} for folder, summary in summaries.items()}
    return counts, defects


def _index(path: str, root: str | None) -> tuple[int | None, int, list[Skipped]]:
    """(samples, bytes, defects) of one shard, whose index file lies there afterwards."""
    from vlp.data import index
    from vlp.data.shards import LOCAL
    from vlp.data.store import is_remote
    from vlp.types import UserError

    there = None
    if is_remote(path):  # one on disk is scanned anew: it may have changed without changing its length
        with suppress(UserError):  # stale or broken: it is what this tool is run for
            there = index.load(path, root)
    shard, defects = there or index.scan(path)
    if any(bad.kind in ("missing shard", "unreadable shard", "not a tar") for bad in defects):
        return None, 0, defects
    if not there:
        index.save(shard, defects, root)
    return len(shard), LOCAL.length(path), defects


def _check_names(paths: Sequence[str], to: str | None) -> None:
    from vlp.data.index import index_root
    from vlp.data.shards import stem
    from vlp.types import UserError

    places: dict[str, str] = {}
    for path in paths:
        place = f"{index_root(path, to)}/{stem(path)}"
        if place in places:
            raise UserError(
                f"--to: {places[place]} and {path} have the same name and would share an index file: "
                "index each folder on its own, with a --to of its own"
            )
        places[place] = path
