"""How many samples each shard holds, where that is known without reading a tar."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vlp.data.index import SUMMARY, index_root
from vlp.data.shards import LOCAL, folder, stem
from vlp.data.store import Store, is_remote
from vlp.types import UserError

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
    summary = _json(name, store) or {}
    counts = {}
    for path in paths:
        if (entry := summary.get(stem(path))) is None:
            continue
        if not is_remote(path) and os.path.exists(path) and os.path.getsize(path) != entry["bytes"]:
            raise UserError(
                f"{name} is stale: {path} has {os.path.getsize(path):,} bytes, but {entry['bytes']:,} when it was "
                "indexed: run vlp data index again"
            )
        counts[path] = int(entry["samples"]), "index"
    return counts


def _from_one_file(place: str, paths: Sequence[str], store: Store) -> dict[str, tuple[int, str]]:
    """From the file that lists the shards of a folder: webdataset's, or that of a wids index."""
    if not paths or paths[0].startswith("pipe:"):
        return {}
    sizes = _json(f"{place}/sizes.json", store)
    origin = "sizes.json"
    if sizes is None:
        for name in _WIDS:
            listed = _json(f"{place}/{name}", store)
            if isinstance(listed, dict) and isinstance(listed.get("shardlist"), list):
                sizes, origin = {str(s["url"]).rpartition("/")[2]: s["nsamples"] for s in listed["shardlist"]}, name
                break
    by_name = {path.partition("?")[0].rpartition("/")[2]: path for path in paths}
    return {by_name[name]: (int(count), origin) for name, count in (sizes or {}).items() if name in by_name}


def _successes(path: str, store: Store) -> int | None:
    stats = _json(f"{folder(path)}/{stem(path)}_stats.json", store)
    return None if stats is None or "successes" not in stats else int(stats["successes"])


def _json(name: str, store: Store) -> Any:
    if not store.exists(name):
        return None
    try:
        return json.loads(store.read_all(name))
    except ValueError as error:
        raise UserError(f"{name} is not JSON ({error}): mend or remove it") from error
