"""Where layer files lie, what they are called and what they say of themselves; `vlp.data.layers` has the values."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.shards import LOCAL, Shard, folder, stem
from vlp.data.store import Store, is_remote
from vlp.types import UserError

FORMAT = 1
METADATA = b"vlp"
ARROW = {
    "text": pa.string(),
    "texts": pa.list_(pa.string()),
    "float": pa.float64(),
    "int": pa.int64(),
    "bool": pa.bool_(),
}
UNREADABLE = (OSError, UnicodeError, pa.ArrowException)  # what broken Parquet files raise
_PROBED_REMOTE = 100  # shards asked for a layer where each question is a request


def layers_root(shard_path: str, root: str | Path | None = None) -> str:
    """The folder or URL that holds a folder a layer: ``root``, or ``layers`` beside the shard."""
    return f"{folder(shard_path)}/layers" if root is None else str(root).rstrip("/")


def layer_path(shard_path: str, name: str, root: str | Path | None = None) -> str:
    """The Parquet file of layer ``name`` for a shard."""
    return f"{layers_root(shard_path, root)}/{name}/{stem(shard_path)}.parquet"


def check_file_names(shard_paths: Sequence[str], root: str | Path | None = None) -> None:
    """Refuse shards that would share one layer file: those of equal names, with one root for all folders.

    Raises:
        UserError: it names two such shards.
    """
    owners: dict[str, str] = {}
    for path in shard_paths:
        other = owners.setdefault(layer_path(path, "NAME", root), path)
        if other != path:
            raise UserError(
                f"{other} and {path} would share the layer files {stem(path)}.parquet of one root: "
                "keep the layers beside the shards, or give the shards different names"
            )


def parquet_file(content: bytes) -> pq.ParquetFile:
    """A layer's file, whose pages are held against their checksums when they are read.

    Raises:
        UNREADABLE: now or then, it is no Parquet file, or a damaged one.
    """
    return pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)


def keys_digest(shard: Shard) -> str:
    """SHA-256 of the keys of a shard, in their order."""
    return hashlib.sha256(b"\0".join(shard.keys.tolist())).hexdigest()


def kind_of(arrow_type: pa.DataType) -> str | None:
    """The kind of a column by its type in the file; None for what layers have no use for."""
    if pa.types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    if pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type):
        return "texts" if kind_of(arrow_type.value_type) == "text" else None
    tests = {
        "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        "float": (pa.types.is_floating,),
        "int": (pa.types.is_integer,),
        "bool": (pa.types.is_boolean,),
    }
    return next((kind for kind, are in tests.items() if any(is_it(arrow_type) for is_it in are)), None)


def kinds_of(schema: pa.Schema) -> dict[str, str]:
    kinds = {field.name: kind_of(field.type) for field in schema if field.name != "key"}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def record_of(schema: pa.Schema) -> dict[str, Any] | None:
    """What `LayerWriter` recorded; None in files of other writers."""
    try:
        record = json.loads((schema.metadata or {}).get(METADATA, b"null"))
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def is_stale(record: dict[str, Any] | None, shard: Shard) -> bool:
    written_for = record and (record.get("samples"), record.get("keys_sha256"))
    return bool(written_for) and written_for != (len(shard), keys_digest(shard))


def list_layers(shard_paths: Iterable[str], root: str | Path | None = None, store: Store = LOCAL) -> list[str]:
    """Names of the layers that have a file, sorted; none where a store has no listing (plain HTTP)."""
    names: set[str] = set()
    for where in {layers_root(path, root) for path in shard_paths}:
        if not is_remote(where):
            names |= {path.parent.name for path in Path(where).glob("*/*.parquet")}
            continue
        with suppress(UserError):
            names |= {path.split("/")[-2] for path in store.expand(f"{where}/*/*.parquet")}
    return sorted(names)


def layer_columns(
    name: str, shard_paths: Sequence[str], root: str | Path | None = None, store: Store = LOCAL
) -> dict[str, str] | None:
    """Column -> kind of a layer, from its first readable file; None if there is no file for these shards."""
    remote = is_remote(layers_root(shard_paths[0], root))
    step = max(1, len(shard_paths) // _PROBED_REMOTE) if remote else 1
    for path in shard_paths[::step]:
        file = layer_path(path, name, root)
        try:
            if store.exists(file, optional=True):
                return kinds_of(parquet_file(store.read_all(file)).schema_arrow)
        except UNREADABLE:  # counted when it is read for its samples
            continue
    return None


def refuse_layers_of_others(
    shard_paths: Iterable[str], name: str, root: str | Path | None, tool: str, store: Store = LOCAL
) -> None:
    """Leave files of a layer alone that another tool wrote: they may have cost days.

    Raises:
        UserError: it names the first such file and what wrote it.
    """
    for path in shard_paths:
        file = layer_path(path, name, root)
        if not store.exists(file, optional=True):
            continue
        with suppress(*UNREADABLE):  # a broken file is nobody's, and is written anew
            record = record_of(read_schema(file, store)) or {}
            owner = (record.get("provenance") or {}).get("tool", "another program")
            if owner != tool:
                raise UserError(f"{file} was written by {owner}: choose another --name, or remove that layer")


def read_schema(file: str, store: Store = LOCAL) -> pa.Schema:
    """The schema of a layer's file, with its metadata."""
    return pq.read_schema(pa.BufferReader(store.read_all(file)) if is_remote(file) else file)


def no_layer(where: str, name: str, known: Iterable[str], folder: str = "") -> UserError:
    """The sentence for a layer that does not exist; the ``known`` ones are named, nearest first."""
    names = ", ".join(nearest_first(name, known))
    there = f"the layers there are: {names}" if names else "there are no layers yet, tools of vlp data write them"
    return UserError(f"{where}: no layer '{name}'{f' in {folder}' if folder else ''}: {there}")


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    return sorted(known, key=lambda other: (-difflib.SequenceMatcher(None, name, other).ratio(), other))


def pick_column(where: str, layer: str, columns: Mapping[str, str], column: str | None, kinds: Sequence[str]) -> str:
    """The column that ``layer.COLUMN`` names, or the only one of ``kinds`` that the layer has.

    Raises:
        UserError: no such column, one of another kind, or none or several to choose from.
    """
    having = f"it has {', '.join(f'{n} ({k})' for n, k in columns.items()) or 'no columns'}"
    if column is None:
        fitting = [name for name, kind in columns.items() if kind in kinds]
        if len(fitting) != 1:
            problem = f"several columns, write {layer}.COLUMN" if fitting else f"no column of {' or '.join(kinds)}"
            raise UserError(f"{where}: layer '{layer}' has {problem}: {having}")
        return fitting[0]
    if column not in columns:
        raise UserError(f"{where}: layer '{layer}' has no column '{column}': {having}")
    if columns[column] not in kinds:
        raise UserError(f"{where}: column '{column}' of layer '{layer}' is not {' or '.join(kinds)}: {having}")
    return column


def byte_keys(column: pa.ChunkedArray) -> np.ndarray:
    return np.array([key or b"" for key in column.cast(pa.binary()).to_pylist()], dtype=np.bytes_)


def find_keys(wanted: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``wanted`` its first place in ``keys`` (0 if it has none), and whether it has one."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    order = np.argsort(keys, kind="stable")
    places = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    rows = order[places]
    found = keys[rows] == wanted
    return np.where(found, rows, 0), found
