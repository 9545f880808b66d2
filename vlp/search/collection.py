"""A directory of embeddings, opened: its rows without the vectors, and the vectors when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.digest import hash64
from vlp.search.files import PICTURES, TEXTS, read_feature, read_features, records
from vlp.search.job import read_meta
from vlp.types import UserError


@dataclass(frozen=True)
class Row:
    """One picture or text: its number among its kind, and where the bytes of the picture stand, if it has one.

    ``size`` is None for a whole file, ``shard / key``; a text of a file of texts has no picture.
    """

    kind: str
    number: int
    key: str
    text: str | None
    shard: str
    offset: int | None
    size: int | None

    @property
    def has_picture(self) -> bool:
        return self.kind == PICTURES or self.size is not None

    @property
    def path(self) -> str:
        """Where people find it."""
        return f"{self.shard}/{self.key}" if self.kind == PICTURES and self.size is None else self.shard


class Rows:
    """All rows of one kind (pictures or texts), numbered through the files in the order of their names."""

    def __init__(self, directory: Path, kind: str, names: list[str], dimension: int) -> None:
        self.kind = kind
        self._paths = [directory / f"{name}.parquet" for name in names]
        text = "caption" if kind == PICTURES else "text"
        tables = [_table(path, ["key", text, "shard", "offset", "size"], dimension) for path in self._paths]
        self._ends = np.cumsum([len(table) for table in tables], dtype=np.int64)
        self._table = pa.concat_tables(tables).rename_columns(["key", "text", "shard", "offset", "size"])

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> Row:
        """
        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= number < len(self):
            raise IndexError(number)
        return Row(self.kind, number, **self._table.slice(number, 1).to_pylist()[0])

    def feature(self, number: int) -> np.ndarray:
        """fp32 D, of length 1."""
        file = int(np.searchsorted(self._ends, number, side="right"))
        first = int(self._ends[file - 1]) if file else 0
        return read_feature(self._paths[file], number - first)

    def blocks(self) -> Iterator[np.ndarray]:
        """The features ND of each file in turn; together those of all rows in order."""
        for path in self._paths:
            yield read_features(path)

    def captioned(self) -> np.ndarray:
        """Numbers of the rows that have a text."""
        return np.flatnonzero(self._table["text"].is_valid().to_numpy())

    @cached_property
    def digest(self) -> str:
        """Changes when any of the files is another one."""
        states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self._paths]
        return f"{hash64(repr(states).encode()):016x}"


def _table(path: Path, columns: list[str], dimension: int) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        stored = file.schema_arrow.field("embedding").type
        if not pa.types.is_fixed_size_list(stored) or stored.list_size != dimension:
            raise ValueError(f"its embeddings are {stored}, where {dimension} numbers a row are wanted")
        return file.read(columns=columns).select(columns)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it and run vlp embed again") from error


class Collection:
    """The embeddings of a directory.

    Raises:
        UserError: it holds none, or such as cannot be searched.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.meta: dict[str, Any] = read_meta(directory)
        if self.meta["files"] != "parquet":
            raise UserError(f"{directory} holds .npy files, which keep no places: embed into Parquet to search")
        found = records(directory, "parquet")
        broken = next((p for p in sorted(directory.glob("[!.]*.parquet")) if p.stem not in found), None)
        if broken is not None:
            raise UserError(
                f"{broken} is broken, or was not made by vlp embed: remove it, and embed again what it held"
            )
        strange = next((name for name, one in found.items() if one.digest != self.meta["digest"]), None)
        if strange is not None:
            raise UserError(f"{directory}/{strange}.parquet is of another model than the others: remove it")
        self.rows = {
            kind: Rows(directory, kind, names, self.meta["dimension"])
            for kind in (PICTURES, TEXTS)
            if (names := [name for name, record in found.items() if record.kind == kind and record.rows])
        }
        if not self.rows:
            raise UserError(f"{directory} holds no embeddings yet: run vlp embed to its end")

    def of(self, kind: str) -> Rows:
        """
        Raises:
            UserError: there are none of that kind.
        """
        if kind not in self.rows:
            cure = (
                "embed files of texts, or shards with --texts" if kind == TEXTS else "embed shards or folders of them"
            )
            raise UserError(f"{self.directory} holds no embeddings of {kind}: {cure} into it")
        return self.rows[kind]
