"""One file of embeddings: Parquet with its rows and a record, or a matrix with the names of its rows beside it."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.shards import LOCAL
from vlp.types import UserError

PICTURES, TEXTS = "pictures", "texts"
RECORD = b"vlp"
ROWS_A_GROUP = 1000  # so that a single row is had for a megabyte or two


@dataclass(frozen=True)
class Record:
    """What a file was made of: it is whole if this is as wanted. ``skipped``: (kind, name, samples) of what it lacks.

    ``signature`` changes with the content of ``source`` and with what was asked for.
    """

    digest: str
    dtype: str
    kind: str
    source: str
    signature: str
    rows: int
    skipped: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True)
class Rows:
    """The rows of one file: a key each, a text (None: there is none), where the picture's bytes stand in the source.

    ``offset`` and ``size`` are None for whole files, which the key names, and for texts of no picture.
    """

    keys: Sequence[str]
    texts: Sequence[str | None]
    places: Sequence[tuple[int, int] | None]
    feature_ND: np.ndarray


def write(directory: Path, name: str, files: str, rows: Rows, record: Record) -> None:
    """Write a file of embeddings; it has its name only when it is whole."""
    (_write_parquet if files == "parquet" else _write_npy)(directory, name, rows, record)


def read_record(directory: Path, name: str, files: str) -> Record | None:
    """What a file says of itself; None if there is none, or a broken one."""
    try:
        if files == "parquet":
            content = json.loads(pq.read_schema(directory / f"{name}.parquet").metadata[RECORD])
        else:
            content = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
            rows = np.load(directory / f"{name}.npy", mmap_mode="r").shape[0]
            if rows != content["rows"] or not (directory / f"{name}.keys.txt").exists():
                return None
        return _record(content)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def records(directory: Path, files: str) -> dict[str, Record]:
    """All files of a directory by name, sorted; what is broken or being written is left out."""
    ending = ".parquet" if files == "parquet" else ".npy"
    names = sorted(p.name.removesuffix(ending) for p in directory.glob(f"*{ending}"))
    found = {name: read_record(directory, name, files) for name in names}
    return {name: record for name, record in found.items() if record is not None}


def remove(directory: Path, name: str) -> None:
    for ending in (".parquet", ".npy", ".keys.txt", ".json"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(directory / f"{name}{ending}")


def read_features(path: Path) -> np.ndarray:
    """fp32 features ND of a Parquet file, of length 1 also where they were stored rounded.

    Raises:
        UserError: the file is broken.
    """
    try:
        column = pq.ParquetFile(path).read(columns=["embedding"])["embedding"]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it and run vlp embed again") from error
    return _unit(column)


def read_feature(path: Path, row: int) -> np.ndarray:
    """The fp32 feature D of one row, of length 1."""
    column = pq.ParquetFile(path).read_row_group(row // ROWS_A_GROUP, columns=["embedding"])["embedding"]
    return np.asarray(_unit(column.slice(row % ROWS_A_GROUP, 1))[0])


def _unit(column: Any) -> np.ndarray:
    width = column.type.list_size
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    feature_ND = flat.astype(np.float32).reshape(-1, width)
    return np.asarray(feature_ND / np.linalg.norm(feature_ND, axis=1, keepdims=True))


def _write_parquet(directory: Path, name: str, rows: Rows, record: Record) -> None:
    flat = pa.array(rows.feature_ND.astype(record.dtype).ravel())
    columns = {
        "key": pa.array(rows.keys, pa.string()),
        ("caption" if record.kind == PICTURES else "text"): pa.array(rows.texts, pa.string()),
        "shard": pa.DictionaryArray.from_arrays(np.zeros(len(rows.keys), np.int32), pa.array([record.source])),
        "offset": pa.array([place and place[0] for place in rows.places], pa.int64()),
        "size": pa.array([place and place[1] for place in rows.places], pa.int64()),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, rows.feature_ND.shape[1]),
    }
    table = pa.table(columns).replace_schema_metadata({RECORD: json.dumps(asdict(record)).encode()})
    buffer = io.BytesIO()
    # Directions in space do not compress; the rest does.
    pq.write_table(table, buffer, row_group_size=ROWS_A_GROUP, compression="zstd", use_dictionary=["shard"])
    LOCAL.write(str(directory / f"{name}.parquet"), buffer.getvalue())


def _write_npy(directory: Path, name: str, rows: Rows, record: Record) -> None:
    """The matrix is last: where it is, the rest is."""
    remove(directory, name)
    keys = "".join(f"{key}\n" for key in rows.keys).encode()
    LOCAL.write(str(directory / f"{name}.keys.txt"), keys)
    LOCAL.write(str(directory / f"{name}.json"), json.dumps(asdict(record)).encode())
    buffer = io.BytesIO()
    np.save(buffer, rows.feature_ND.astype(record.dtype))
    LOCAL.write(str(directory / f"{name}.npy"), buffer.getvalue())


def _record(content: dict[str, Any]) -> Record:
    return Record(**{**content, "skipped": tuple(tuple(one) for one in content["skipped"])})
