"""Layers: columns that live beside the shards, a Parquet file a shard, joined to its samples by key.

``ROOT/NAME/00000.parquet`` belongs to ``00000.tar``. ROOT is ``layers`` in the folder of the shard, or another
folder or URL. A row is a key (column ``key``); any other column is of one of five kinds: ``text``, ``texts`` (a
list of text), ``float``, ``int``, ``bool``. Rows may be missing: the layer does not cover those samples.

Files of `LayerWriter` record, as JSON under ``vlp`` in the metadata of the Parquet schema, for which samples they were
written: ``{"format": 1, "shard", "samples", "keys_sha256", "provenance"}``. A shard that holds other samples makes the
file stale: keys are often used again, so its values could be those of other pictures, and it covers nothing.
A Parquet file of another writer is a layer too if it has a text column ``key``; whether it is stale cannot be told.
"""

from __future__ import annotations

import json
import keyword
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.layer_files import (
    ARROW,
    FORMAT,
    METADATA,
    UNREADABLE,
    byte_keys,
    find_keys,
    is_stale,
    keys_digest,
    kind_of,
    kinds_of,
    layer_path,
    parquet_file,
    read_schema,
    record_of,
)
from vlp.data.shards import LOCAL, Shard, stem
from vlp.data.store import Store, is_remote
from vlp.data.text_lists import TextLists
from vlp.types import Skipped, UserError

KEPT_SHARDS = 8

_NOT_CONVERTIBLE = (pa.ArrowException, UnicodeError, OverflowError, TypeError)


Column = np.ndarray | TextLists


@dataclass(frozen=True)
class _Joined:
    columns: dict[str, Column]
    defect: Skipped | None


class LayerReader:
    """The values of one layer, aligned to the samples of a shard.

    Args:
        root: where the layers lie, see `layers_root`; None for beside each shard.
        columns: column -> kind, as `layer_columns` tells, or a part of that.

        kept_shards: files last used that stay in memory: some 3 MB for ten thousand samples of five rewrites.

    Pickling leaves what it has read behind. Threads may share it.
    """

    def __init__(
        self,
        root: str | Path | None,
        name: str,
        columns: Mapping[str, str],
        store: Store = LOCAL,
        kept_shards: int = KEPT_SHARDS,
    ) -> None:
        self.root, self.name, self.columns = root, name, dict(columns)
        self._store = store
        self._kept_shards = kept_shards
        self._cache: OrderedDict[str, _Joined] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def columns_of(self, shard: Shard) -> dict[str, Column]:
        """Column -> the value of each sample of ``shard``, in the order of its rows.

        ``float``, ``int`` and ``bool`` come as float64 with NaN, ``text`` as an object array with None, ``texts``
        as a `TextLists` with None, where the layer does not cover the sample. Without a file nothing is covered,
        nor if it has a defect (`defect_of`).
        """
        return self._joined(shard).columns

    def defect_of(self, shard: Shard) -> Skipped | None:
        """Why the file of this shard is not used: "stale layer" or "unreadable layer"; None if it is, or there is none.

        To be counted and logged by whoever asks for the columns.
        """
        return self._joined(shard).defect

    def values_of(self, shard: Shard) -> tuple[dict[str, Column], Skipped | None]:
        """`columns_of` and `defect_of` in one, for who asks at each sample."""
        joined = self._joined(shard)
        return joined.columns, joined.defect

    def _joined(self, shard: Shard) -> _Joined:
        with self._lock:
            if shard.path in self._cache:
                self._cache.move_to_end(shard.path)
                return self._cache[shard.path]
        joined = self._read(shard)
        with self._lock:
            while len(self._cache) >= self._kept_shards:
                self._cache.popitem(last=False)
            self._cache[shard.path] = joined
        return joined

    def _read(self, shard: Shard) -> _Joined:
        path = layer_path(shard.path, self.name, self.root)
        defect = None
        try:
            if self._store.exists(path, optional=True):
                file = parquet_file(self._store.read_all(path))
                absent = [name for name in ("key", *self.columns) if name not in file.schema_arrow.names]
                if absent:
                    defect = Skipped("unreadable layer", f"{path} (no column '{absent[0]}')")
                elif is_stale(record_of(file.schema_arrow), shard):
                    defect = Skipped("stale layer", path)
                else:
                    # No threads: a forked worker has none of its parent's.
                    table = file.read(["key", *self.columns], use_threads=False)
                    return _Joined(self._align(table, shard), None)
        except UNREADABLE as error:
            defect = Skipped("unreadable layer", f"{path} ({_first_line(error)})")
        nothing = pa.nulls(len(shard))
        return _Joined({name: _values(nothing, kind) for name, kind in self.columns.items()}, defect)

    def _align(self, table: pa.Table, shard: Shard) -> dict[str, Column]:
        keys = byte_keys(table["key"])
        if np.array_equal(keys, shard.keys):
            return {name: _values(table[name].combine_chunks(), kind) for name, kind in self.columns.items()}
        rows, found = find_keys(shard.keys, keys)
        taken = pa.array(rows, mask=~found)
        return {name: _values(table[name].combine_chunks().take(taken), kind) for name, kind in self.columns.items()}


@dataclass(frozen=True)
class LayerCheck:
    """What a layer file says against its shard; ``unknown`` are keys that the shard lacks, the first few of them."""

    path: str
    samples: int
    covered: int = 0
    stale: bool = False
    num_unknown: int = 0
    unknown: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] | None = None
    unreadable: str = ""


def check_layer(shard: Shard, name: str, root: str | Path | None = None, store: Store = LOCAL) -> LayerCheck | None:
    """Hold the file of one layer against its shard; None if there is no file."""
    path = layer_path(shard.path, name, root)
    if not store.exists(path, optional=True):
        return None
    try:
        file = parquet_file(store.read_all(path))
        keys = byte_keys(file.read(["key"], use_threads=False)["key"])
    except (KeyError, *UNREADABLE) as error:
        return LayerCheck(path, len(shard), unreadable=_first_line(error))
    _, known = find_keys(keys, shard.keys)
    unknown = keys[~known]
    record = record_of(file.schema_arrow)
    return LayerCheck(
        path,
        samples=len(shard),
        covered=len(np.unique(keys[known])),
        stale=is_stale(record, shard),
        num_unknown=len(unknown),
        unknown=tuple(key.decode("utf-8", "replace") for key in unknown[:3]),
        columns=kinds_of(file.schema_arrow),
        provenance=record and record.get("provenance"),
        unreadable="a key comes twice" if len(np.unique(keys)) < len(keys) else "",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _values(array: pa.Array, kind: str) -> Column:
    if kind in ("text", "texts"):
        array = array.cast(ARROW[kind])
        array.validate(full=True)  # Parquet does not say whether text is UTF-8
        return TextLists(array) if kind == "texts" else array.to_numpy(zero_copy_only=False)
    return array.cast(pa.float64()).to_numpy(zero_copy_only=False)


class LayerWriter:
    """Writes one layer, a shard at a time; a tool that was interrupted goes on with the shards that `has` denies.

    Args:
        root: a folder or an address; None for ``layers`` beside each shard.
        name: a name that a filter can use (letters, digits, underscores).
        provenance: tool, options, model ... as JSON can hold them; another provenance is another layer content.
        types: column -> kind, for columns whose first shard may be all empty; else told by the first shard's values.

    Raises:
        UserError: a name that cannot be used.
    """

    def __init__(
        self,
        root: str | Path | None,
        name: str,
        provenance: Mapping[str, Any],
        types: Mapping[str, str] | None = None,
        store: Store = LOCAL,
    ) -> None:
        _check_name("layer", name)
        self.root, self.name = root, name
        self.provenance = json.loads(json.dumps(provenance, sort_keys=True))
        assert set((types or {}).values()) <= ARROW.keys(), types
        self._types = dict(types) if types else None
        self._store = store
        self._schemas: dict[str, dict[str, str]] = {}  # by folder

    def path(self, shard: Shard) -> str:
        """The file that holds, or will hold, this layer for ``shard``."""
        return layer_path(shard.path, self.name, self.root)

    def has(self, shard: Shard) -> bool:
        """Whether the whole file exists, for just the samples of ``shard`` and of this provenance."""
        path = self.path(shard)
        try:
            there = self._store.exists(path, optional=True)
            record = record_of(read_schema(path, self._store)) if there else None
        except UNREADABLE:
            return False
        return record is not None and not is_stale(record, shard) and record.get("provenance") == self.provenance

    def write(self, shard: Shard, keys: Sequence[str], columns: Mapping[str, Sequence[Any] | np.ndarray]) -> str:
        """Write the values of some samples of ``shard``, all or none too; the same input gives the same bytes.

        ``columns`` hold a value a key, None where there is none. Rows are put in the order of the shard.

        Raises:
            UserError: an unknown or repeated key, unequal lengths, a value of another kind, other columns than the
                layer has in other shards.
        """
        path = self.path(shard)
        for name, values in columns.items():
            _check_name("column", name)
            if len(values) != len(keys):
                raise UserError(f"layer {self.name}: column '{name}' has {len(values)} values for {len(keys)} keys")
        order = self._order(shard, keys)
        kinds = self._kinds_for(path, columns)
        table = {"key": _key_column([keys[i] for i in order])}
        table |= {name: self._array(name, columns[name], kind).take(order) for name, kind in kinds.items()}
        record = {
            "format": FORMAT,
            "shard": stem(shard.path),
            "samples": len(shard),
            "keys_sha256": keys_digest(shard),
            "provenance": self.provenance,
        }
        text = json.dumps(record, ensure_ascii=False, sort_keys=True)
        buffer = pa.BufferOutputStream()
        content = pa.table(table).replace_schema_metadata({METADATA: text})
        pq.write_table(content, buffer, compression="zstd", write_page_checksum=True)
        self._store.write(path, buffer.getvalue().to_pybytes())
        return path

    def _order(self, shard: Shard, keys: Sequence[str]) -> pa.Array:
        wanted = np.array([key.encode("utf-8", "surrogateescape") for key in keys], dtype=np.bytes_)
        rows, found = find_keys(wanted, shard.keys)
        if not found.all():
            unknown = keys[int(np.argmin(found))]
            raise UserError(f"layer {self.name}: {shard.path} has no sample '{unknown}': write the keys of this shard")
        order = np.argsort(rows, kind="stable")
        repeated = np.flatnonzero(np.diff(rows[order]) == 0)
        if len(repeated):
            twice = keys[int(order[repeated[0]])]
            raise UserError(f"layer {self.name}: the key '{twice}' of {shard.path} comes twice: give each key one row")
        return order

    def _kinds_for(self, path: str, columns: Mapping[str, Any]) -> dict[str, str]:
        """The kinds that the layer has already, or else those of ``columns``."""
        folder = path.rpartition("/")[0]
        known = self._schemas.get(folder) or _kinds_of_another(path, self._store)
        kinds = self._types or known or {name: self._inferred(name, values) for name, values in columns.items()}
        for other in (known, dict.fromkeys(columns)):
            if other and other.keys() != kinds.keys():
                raise UserError(self._differs(path, other, kinds))
        if known and known != kinds:
            raise UserError(self._differs(path, known, kinds))
        self._schemas[folder] = kinds
        return kinds

    def _differs(self, path: str, one: Mapping[str, str | None], other: Mapping[str, str]) -> str:
        def named(columns: Mapping[str, str | None]) -> str:
            return ", ".join(f"{name} ({kind})" if kind else name for name, kind in sorted(columns.items()))

        return (
            f"layer {self.name}: the columns {named(one)} and {named(other)} cannot both be those of "
            f"{path.rpartition('/')[0]}: remove it or choose another name"
        )

    def _inferred(self, name: str, values: Sequence[Any] | np.ndarray) -> str:
        try:
            found = pa.array(values).type
        except _NOT_CONVERTIBLE as error:
            raise self._not_a_kind(name, error) from error
        if pa.types.is_null(found):
            return "text"
        if pa.types.is_list(found) and pa.types.is_null(found.value_type):
            return "texts"
        kind = kind_of(found)
        if kind is None:
            raise self._not_a_kind(name, found)
        return kind

    def _array(self, name: str, values: Sequence[Any] | np.ndarray, kind: str) -> pa.Array:
        try:
            return pa.array(values, ARROW[kind])
        except _NOT_CONVERTIBLE as error:
            raise self._not_a_kind(name, error, kind) from error

    def _not_a_kind(self, name: str, problem: object, kind: str = "") -> UserError:
        wanted = kind or ", ".join(ARROW)
        return UserError(f"layer {self.name}: column '{name}' must be {wanted} ({problem}): convert its values")


def _check_name(noun: str, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or keyword.iskeyword(name) or (noun, name) == ("column", "key"):
        raise UserError(f"'{name}' cannot name a {noun}: use letters, digits and underscores, such as clip_score")


def _key_column(keys: list[str]) -> pa.Array:
    """Text, as other readers expect; binary if a key is not UTF-8."""
    data = pa.array([key.encode("utf-8", "surrogateescape") for key in keys], pa.binary())
    try:
        return data.cast(pa.string())
    except pa.ArrowInvalid:
        return data


def _kinds_of_another(path: str, store: Store) -> dict[str, str] | None:
    """The columns in any other file of the layer."""
    folder = path.rpartition("/")[0]
    try:
        others = store.expand(f"{folder}/*.parquet") if is_remote(path) else map(str, Path(folder).glob("*.parquet"))
    except UserError:  # there is none yet
        return None
    for other in others:
        if other.rpartition("/")[2] != path.rpartition("/")[2]:
            try:
                return kinds_of(read_schema(other, store))
            except UNREADABLE:
                continue
    return None
