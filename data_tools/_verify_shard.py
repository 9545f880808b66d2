"""One shard, read once from its start to its end."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from data_tools._verify_files import count_defects, expected_samples
from data_tools._verify_sample import check_sample
from data_tools.verify import Defect
from vlp.data.cache import CacheOptions
from vlp.data.index import load, scan
from vlp.data.samples import BadSample
from vlp.data.shards import LOCAL, Shard
from vlp.data.store import Store, is_remote
from vlp.types import Skipped, UserError

_COPY_GIGABYTES = 1000.0  # the disk is the limit of one shard, not the cache


@dataclass(frozen=True)
class ShardCheck:
    """What one shard holds; ``keys`` are 64-bit digests of the keys of its samples, in their order."""

    num_samples: int
    num_bytes: int
    keys: np.ndarray
    defects: list[Defect]


@contextmanager
def scanned(path: str) -> Iterator[tuple[Shard, list[Skipped]]]:
    """The shard by its headers, whatever an index says; a remote one is fetched once, as all its bytes are wanted."""
    if not is_remote(path):
        yield scan(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield scan(path, Store(CacheOptions(folder=folder, gigabytes=_COPY_GIGABYTES)))


def num_bytes(shard: Shard) -> int:
    """Bytes of the members of all samples."""
    return int(shard.size.clip(min=0).sum())


def check_shard(path: str, captions: Sequence[str]) -> ShardCheck:
    """Every defect of one shard and of the files that belong to it; nothing in it raises."""
    try:
        with scanned(path) as (shard, skipped):
            found = _members(shard, captions)
    except (UserError, BadSample) as error:  # a server that has died: the other shards go on
        return ShardCheck(0, 0, digests(()), [Defect("unreadable shard", path, detail=str(error))])
    of_shard = [of_skipped(path, one.kind, one.where) for one in skipped]
    num_samples = len(shard) + sum(one.kind == "no picture" for one in skipped)
    kinds = {one.kind for one in skipped}
    if "truncated shard" in kinds:
        expected = expected_samples(path)
        detail = f"{num_samples:,} of {expected:,} samples are whole" if expected else f"{num_samples:,} whole samples"
        of_shard = [Defect(d.kind, path, detail=detail) if d.kind == "truncated shard" else d for d in of_shard]
    elif not kinds & {"not a tar", "missing shard"}:
        found += count_defects(path, num_samples)
    found += _index_defects(path, shard)
    return ShardCheck(num_samples, num_bytes(shard), digests(shard.keys.tolist()), of_shard + found)


def _members(shard: Shard, captions: Sequence[str]) -> list[Defect]:
    defects = []
    for row in range(len(shard)):
        try:
            found = check_sample(shard.read(row, shard.extensions), captions).defects
        except BadSample as bad:
            found = [(bad.kind, bad.detail)]
        defects += [Defect(kind, shard.path, shard.key(row), detail) for kind, detail in found]
    return defects


def _index_defects(path: str, shard: Shard) -> list[Defect]:
    """Training believes an index, so it must say what the tar says."""
    try:
        loaded = load(path, store=LOCAL)
    except UserError as error:
        return [Defect("stale index", path, detail=str(error))]
    if loaded is None:
        return []
    indexed = loaded[0]
    pairs = [(indexed.keys, shard.keys), (indexed.offset, shard.offset), (indexed.size, shard.size)]
    same = indexed.extensions == shard.extensions and all(np.array_equal(one, other) for one, other in pairs)
    return [] if same else [Defect("stale index", path, detail="it lists other members than the tar holds")]


def of_skipped(path: str, kind: str, where: str) -> Defect:
    """What a scan of ``path`` left out: ``where`` is ``PATH``, ``PATH: KEY`` or ``PATH (DETAIL)``."""
    rest = where.removeprefix(path)
    if rest.startswith(": "):
        return Defect(kind, path, rest[2:])
    return Defect(kind, path, detail=rest.strip().removeprefix("(").removesuffix(")"))


def digests(keys: Iterable[bytes]) -> np.ndarray:
    """64 bits of each key: enough to find candidates, which are then compared in full."""
    return np.frombuffer(b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys), dtype=np.uint64)


def keys_in_two_shards(paths: Sequence[str], digests_of: Sequence[np.ndarray]) -> list[Defect]:
    """Each further shard of a key that more than one has; their headers are read again to name the keys.

    A shard that cannot be read again, or has changed since, is named as unreadable.
    """
    in_order = np.sort(np.concatenate(digests_of))
    twice = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
    defects = []
    first: dict[str, str] = {}
    for path, own in zip(paths, digests_of, strict=True):
        rows = np.flatnonzero(np.isin(own, twice))
        if len(rows):
            try:
                shard, _ = scan(path)
            except UserError as error:
                defects.append(Defect("unreadable shard", path, detail=str(error)))
                continue
            again = digests(shard.keys.tolist())
            same = [row for row in rows.tolist() if row < len(again) and again[row] == own[row]]
            if len(same) < len(rows):
                detail = "it was read well once, but not when its keys were compared with those of other shards"
                defects.append(Defect("unreadable shard", path, detail=detail))
            for key in map(shard.key, same):
                if first.setdefault(key, path) != path:
                    defects.append(Defect("key in two shards", path, key, f"also in {first[key]}"))
    return defects
