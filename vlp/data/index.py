"""The index of a shard: what it holds and where, found by a scan of its headers or read from a small file.

``vlp data index`` writes the files: ``index/00000.parquet`` beside the shards (or under another root), a row a sample
with its key and the offset and size of each member, and ``index/shards.json`` with the samples and bytes of every
shard. With them a run starts, or goes on, without looking at a tar.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data import tar
from vlp.data.samples import IMAGE_EXTENSIONS
from vlp.data.shards import LOCAL, Shard, folder, stem
from vlp.data.store import Store, is_remote
from vlp.data.transports import ReadError
from vlp.types import Skipped, UserError

SUMMARY = "shards.json"
_VERSION = 2
_METADATA = b"vlp"


def index_root(path: str, root: str | None = None) -> str:
    """The folder of the index of the shard ``path``: ``root``, or ``index`` beside it."""
    return root if root is not None else f"{folder(path)}/index"


def open_shard(path: str, root: str | None = None, store: Store = LOCAL) -> tuple[Shard, list[Skipped]]:
    """What a shard holds: from its index where there is one, else by a scan; also what had to be left out.

    Kinds: "missing shard", "unreadable shard", "not a tar", "empty shard", "truncated shard" (its whole samples are
    kept), "duplicate key" (the first is kept), "no picture".

    Raises:
        UserError: the index is of another file than the one that lies there now, or the server is dead.
    """
    return load(path, root, store) or scan(path, store)


def scan(path: str, store: Store = LOCAL) -> tuple[Shard, list[Skipped]]:
    """Index one tar by its headers. A remote one is read from its start to its end."""
    if not store.exists(path):
        return _table(path, {}, store), [Skipped("missing shard", path)]
    try:
        with store.open_stream(path) as stream:
            members, length, whole = tar.members(stream, seekable=not is_remote(path))
    except ReadError as error:
        return _table(path, {}, store), [Skipped("unreadable shard", str(error))]
    except (tarfile.TarError, OSError) as error:
        return _table(path, {}, store), [Skipped("not a tar", f"{path} ({error})")]
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    last_key, cut_key = "", ""
    copies: dict[str, Counter[str]] = defaultdict(Counter)  # key -> further members of an extension
    for name, offset, size in members:
        key, extension = _split(name)
        if offset + size > length:
            cut_key, whole = key, False
        elif extension:
            sample = samples.setdefault(key, {})
            if extension in sample:
                copies[key][extension] += 1
            else:
                sample[extension] = (offset, size)
                last_key = key
    defects: list[Skipped] = []
    if not whole:
        defects.append(Skipped("truncated shard", path))
        # A cut between two members may have taken some of the last sample: it is whole if it has what the first has.
        first_key = next(iter(samples), "")
        if not cut_key and (last_key == first_key or _kinds(samples[last_key]) != _kinds(samples[first_key])):
            cut_key = last_key
        samples.pop(cut_key, None)
    elif not samples:
        defects.append(Skipped("empty shard", path))
    defects += [Skipped("duplicate key", f"{path}: {key}", max(copies[key].values())) for key in sorted(copies)]
    pictured = {key: members for key, members in samples.items() if not members.keys().isdisjoint(IMAGE_EXTENSIONS)}
    defects += [Skipped("no picture", f"{path}: {key}") for key in samples if key not in pictured]
    return _table(path, pictured, store), defects


def save(shard: Shard, defects: Iterable[Skipped], root: str | None = None) -> None:
    """Write the index of ``shard``; the same shard gives the same bytes."""
    columns: dict[str, Any] = {"key": pa.array(shard.keys.tolist(), pa.binary())}
    for column, extension in enumerate(shard.extensions):
        absent = shard.size[:, column] < 0
        columns[f"{extension}.offset"] = pa.array(shard.offset[:, column], pa.int64(), mask=absent)
        columns[f"{extension}.size"] = pa.array(shard.size[:, column], pa.int64(), mask=absent)
    record = {
        "version": _VERSION,
        "bytes": shard.store.length(shard.path),
        "defects": [[d.kind, d.where.removeprefix(shard.path), d.samples] for d in defects],
        "digest": _digest(shard.keys, shard.extensions, shard.offset, shard.size),
    }
    table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(record).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    shard.store.write(f"{index_root(shard.path, root)}/{stem(shard.path)}.parquet", buffer.getvalue())


def load(path: str, root: str | None = None, store: Store = LOCAL) -> tuple[Shard, list[Skipped]] | None:
    """The index of the shard ``path``, or None if there is none.

    Raises:
        UserError: it cannot be read or was damaged, or the shard has another length now.
    """
    name = f"{index_root(path, root)}/{stem(path)}.parquet"
    if not store.exists(name, optional=True):
        return None
    content = store.read_all(name)
    try:
        # No threads: a forked worker has none of its parent's, and a short program may end before they do.
        table = pq.ParquetFile(io.BytesIO(content)).read(use_threads=False)
        record = json.loads(table.schema.metadata[_METADATA])
        extensions = tuple(c.removesuffix(".size") for c in table.column_names if c.endswith(".size"))
        keys = np.array(table["key"].to_pylist(), dtype=np.bytes_)
        offset, size = (_matrix(table, extensions, field) for field in ("offset", "size"))
        length = int(record["bytes"])
        defects = [Skipped(kind, f"{path}{where}", samples) for kind, where, samples in record["defects"]]
        if record["digest"] != _digest(keys, extensions, offset, size):
            raise ValueError("its values have changed since it was written")
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} is no index of a shard ({reason}): remove it, or run vlp data index again") from error
    if path.startswith("pipe:"):
        return Shard(path, keys, extensions, offset, size, store), defects
    try:
        length_now = store.length(path)
    except UserError:
        if store.exists(path):
            raise
        return _table(path, {}, store), [Skipped("missing shard", path)]
    if length_now != length:
        raise UserError(
            f"{name} is stale: {path} has {length_now:,} bytes, but {length:,} when it was indexed: "
            "run vlp data index again"
        )
    return Shard(path, keys, extensions, offset, size, store), defects


def _digest(keys: np.ndarray, extensions: tuple[str, ...], offset: np.ndarray, size: np.ndarray) -> str:
    """Damage to an index would give pictures the captions of others."""
    parts = repr(extensions).encode(), b"\0".join(keys.tolist()), offset.tobytes(), size.tobytes()
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()


def _matrix(table: Any, extensions: tuple[str, ...], field: str) -> np.ndarray:
    columns = [table[f"{extension}.{field}"].fill_null(-1).to_numpy() for extension in extensions]
    return np.stack(columns, axis=1) if columns else np.zeros((len(table), 0), np.int64)


def _split(name: str) -> tuple[str, str]:
    """``a/b.c.jpg`` -> (``a/b``, ``c.jpg``), as webdataset splits; hidden files have no key."""
    directory, slash, base = name.removeprefix("./").rpartition("/")
    first, _, extension = base.partition(".")
    return (directory + slash + first, extension.lower()) if first else ("", "")


def _kinds(members: Iterable[str]) -> set[str]:
    return {"picture" if extension in IMAGE_EXTENSIONS else extension for extension in members}


def _table(path: str, samples: dict[str, dict[str, tuple[int, int]]], store: Store) -> Shard:
    extensions = tuple(sorted({extension for members in samples.values() for extension in members}))
    places = np.full((2, len(samples), len(extensions)), -1, dtype=np.int64)
    columns = {extension: column for column, extension in enumerate(extensions)}
    for row, members in enumerate(samples.values()):
        for extension, place in members.items():
            places[:, row, columns[extension]] = place
    keys = np.array([key.encode("utf-8", "surrogateescape") for key in samples], dtype=np.bytes_)
    return Shard(path, keys, extensions, places[0].copy(), places[1].copy(), store)
