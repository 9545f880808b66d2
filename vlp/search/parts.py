"""What is embedded, cut into parts of which each becomes a file: a shard, or some thousand pictures or texts.

A part is written as a string, so that it can travel and be named: the path of a shard, or ``PATH#3``, the fourth part
of a folder of pictures or of a file of texts.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.picture_files import is_shards, pictures_in
from vlp.data.shards import find_shards, stem
from vlp.data.store import is_remote
from vlp.types import UserError

ROWS = 10_000  # of a part of a folder or of a file of texts
TEXT_ENDINGS = ("txt", "csv", "tsv", "parquet")
_COLUMNS = ("text", "caption")


def parts_of(inputs: Sequence[str], column: str | None = None) -> list[str]:
    """All parts of the inputs, in order, with absolute paths.

    Raises:
        UserError: an input is missing, is of no known kind, holds nothing or is named twice.
    """
    _pictures.cache_clear()
    texts_in.cache_clear()
    shards, others = [], []
    for name in inputs:
        if not is_texts(name) and is_shards(name):
            shards.append(name)
        else:
            others.append(os.path.abspath(Path(name).expanduser()))
    if column is not None and not any(name.endswith((".csv", ".tsv", ".parquet")) for name in others):
        raise UserError(f"--column {column} has no effect here: it is for .csv, .tsv and .parquet files of texts")
    found = [absolute(path) for path in find_shards(shards, named="INPUT")] if shards else []
    for name in others:
        number = len(texts_in(name, column)) if is_texts(name) else len(_pictures(name))
        found += [f"{name}#{i}" for i in range(-(-number // ROWS))]
    seen: set[str] = set()
    for part in found:
        if part in seen:
            raise UserError(f"INPUT names {source_of(part)} twice: name it once")
        seen.add(part)
    strange = next((part for part in found if part.encode("utf-8", "replace").decode() != part), None)
    if strange is not None:
        raise UserError(f"the name of {strange!r} is not UTF-8, so no file can say where its rows come from: rename it")
    return found


def is_texts(name: str) -> bool:
    return not is_remote(name) and name.rpartition(".")[2].lower() in TEXT_ENDINGS and not os.path.isdir(name)


def absolute(path: str) -> str:
    return path if is_remote(path) else os.path.abspath(path)


def source_of(part: str) -> str:
    """The shard, folder or file of texts that a part belongs to."""
    head, _, number = part.rpartition("#")
    return head if number.isdecimal() and head else part


def number_of(part: str) -> int:
    """Which part of its source it is, counted from 0."""
    return 0 if source_of(part) == part else int(part.rpartition("#")[2])


def name_of(part: str) -> str:
    """The name of its file, without ending: the source's own, a digest of its path, and the number of the part."""
    source = source_of(part)
    own = stem(source) if source == part else Path(source).name.rpartition(".")[0] or Path(source).name
    own = "".join(c if c.isalnum() or c in "-_." else "_" for c in own)[:80]
    digest = hashlib.blake2b(source.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return f"{own}-{digest}" + ("" if source == part else f"-{number_of(part):05d}")


def pictures_of(part: str) -> list[Path]:
    """The pictures of a part of a folder, relative to it."""
    return _pictures(source_of(part))[number_of(part) * ROWS :][:ROWS]


def texts_of(part: str, column: str | None) -> list[str]:
    """The texts of a part of a file, stripped; empty ones keep their place."""
    return texts_in(source_of(part), column)[number_of(part) * ROWS :][:ROWS]


@lru_cache(maxsize=1)
def _pictures(folder: str) -> list[Path]:
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{folder} is a single file: name the folder of the pictures, shards, or a file of texts")
    found = pictures_in(path)
    if not found:
        raise UserError(f"{folder} holds neither shards (.tar) nor pictures: check the path")
    return found


@lru_cache(maxsize=1)
def texts_in(file: str, column: str | None = None) -> list[str]:
    """The texts of a file: lines of a .txt, else the values of a column.

    Without ``column`` it is the only one, or the one called text or caption.

    Raises:
        UserError: the file cannot be read, has no such column, or holds no text.
    """
    ending = file.rpartition(".")[2].lower()
    if not os.path.exists(file):
        raise UserError(f"{file} does not exist: name a file of texts, shards, or a folder of pictures")
    try:
        if ending == "txt":
            with open(file, encoding="utf-8-sig") as lines:
                texts: Iterable[str | None] = list(lines)
        else:
            texts = _parquet(file, column) if ending == "parquet" else _table(file, ending, column)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error}): convert it") from error
    except (csv.Error, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read as .{ending} ({error}): check the file") from error
    found = [(text or "").strip() for text in texts]
    if not any(found):
        raise UserError(f"{file} holds no text: write one a line, or a column of them")
    return found


def _parquet(file: str, column: str | None) -> list[str]:
    table = pq.ParquetFile(file)
    schema = table.schema_arrow
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    name = _chosen(file, texts, column)
    return list(table.read(columns=[name])[name].to_pylist())


def _table(file: str, ending: str, column: str | None) -> list[str]:
    csv.field_size_limit(1 << 30)
    with open(file, encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, delimiter="\t" if ending == "tsv" else ",")
        header = next(rows, [])
        place = header.index(_chosen(file, header, column))
        return [row[place] if place < len(row) else "" for row in rows]


def _chosen(file: str, columns: Sequence[str], column: str | None) -> str:
    candidates = [name for name in _COLUMNS if name in columns] or (list(columns) if len(columns) == 1 else [])
    if column in columns or (column is None and candidates):
        return column or candidates[0]
    listed = ", ".join(columns) or "none of text"
    wanted = f"no column '{column}'" if column is not None else "several columns and none called text or caption"
    raise UserError(f"{file} has {wanted}: name one with --column (there: {listed})")
