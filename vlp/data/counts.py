"""How many samples each shard holds, where that is known without reading a tar."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from vlp.data.index import SUMMARY, index_root
from vlp.data.shards import LOCAL, folder, stem
from vlp.data.store import Store, is_remote
from vlp.types import UserError

Result = TypeVar("Result")

_THREADS = 16  # small files, one after another: threads hide the latency
_WIDS = ("index.json", "wids.json", "shardindex.json")


def known_counts(paths: Sequence[str], root: str | None = None, store: Store = LOCAL) -> dict[str, tuple[int, str]]:
    """Shard -> (its samples, the name of what says so), for the shards of which something does.

    Asked in turn: our index, webdataset's ``sizes.json``, a wids file, img2dataset's ``00000_stats.json`` (successes).

    Raises:
        UserError: a file is broken, or an index is of another tar than the one that lies there.
    """
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_folder[folder(path)].append(path)
    counts: dict[str, tuple[int, str]] = {}
    for place, members in by_folder.items():
        counts |= _from_index(members, root, store)
        counts |= _from_one_file(place, [path for path in members if path not in counts], store)
    rest = [path for path in paths if path not in counts and not path.startswith("pipe:")]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda path: _successes(path, store), rest)
        counts |= {path: (count, "_stats.json") for path, count in zip(rest, found, strict=True) if count is not None}
    return counts


def _from_index(paths: Sequence[str], root: str | None, store: Store) -> dict[str, tuple[int, str]]:
    name = f"{index_root(paths[0], root)}/{SUMMARY}"
    summary = _read(name, store, _indexed) or {}
    counts = {}
    for path in paths:
        if stem(path) not in summary:
            continue
        samples, length = summary[stem(path)]
        if not is_remote(path) and os.path.exists(path) and os.path.getsize(path) != length:
            raise UserError(
                f"{name} is stale: {path} has {os.path.getsize(path):,} bytes, but {length:,} when it was "
                "indexed: run vlp data index again"
            )
        counts[path] = samples, "index"
    return counts


def _from_one_file(place: str, paths: Sequence[str], store: Store) -> dict[str, tuple[int, str]]:
    """From the file that lists the shards of a folder: webdataset's, or that of a wids index."""
    if not paths or paths[0].startswith("pipe:"):
        return {}
    by_name = {path.partition("?")[0].rpartition("/")[2]: path for path in paths}
    for origin in ("sizes.json", *_WIDS):
        sizes = _read(f"{place}/{origin}", store, _sizes if origin == "sizes.json" else _wids)
        if sizes is not None:
            return {by_name[name]: (count, origin) for name, count in sizes.items() if name in by_name}
    return {}


def _successes(path: str, store: Store) -> int | None:
    return _read(f"{folder(path)}/{stem(path)}_stats.json", store, _stats)


def _read(name: str, store: Store, parse: Callable[[Any], Result]) -> Result | None:
    """What ``parse`` finds in a JSON file; None if there is no such file."""
    if not store.exists(name, optional=True):
        return None
    try:
        tree = json.loads(store.read_all(name))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON ({error}): mend or remove it") from error
    try:
        return parse(tree)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{name} does not count the samples of shards ({reason}): mend or remove it") from error


def _indexed(tree: Any) -> dict[str, tuple[int, int]]:
    return {name: (_count(entry["samples"]), _count(entry["bytes"])) for name, entry in _table(tree).items()}


def _sizes(tree: Any) -> dict[str, int]:
    return {name: _count(count) for name, count in _table(tree).items()}


def _wids(tree: Any) -> dict[str, int] | None:
    """None for another file of this name."""
    if not isinstance(tree, dict) or not isinstance(tree.get("shardlist"), list):
        return None
    return {str(shard["url"]).rpartition("/")[2]: _count(shard["nsamples"]) for shard in tree["shardlist"]}


def _stats(tree: Any) -> int | None:
    return _count(tree["successes"]) if "successes" in _table(tree) else None


def _table(tree: Any) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise TypeError(f"{str(tree)[:20]!r} is no table")
    return tree


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
