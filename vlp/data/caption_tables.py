"""Reading pictures with captions from a table: ``image,caption`` or ``filepath,title`` (open_clip's names), CSV or TSV.

A row is a caption; rows of the same picture are captions of one picture. Where there is a column ``split``, only its
rows ``test`` are read. Pictures lie where the table says, from itself on, or in ``images/`` beside it.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vlp.data.benchmark_sets import RetrievalSet
from vlp.data.caption_sets import picture_beside, whole_set
from vlp.types import UserError

ENDINGS = (".csv", ".tsv")
FLICKR8K = "captions.txt"  # a CSV, as Flickr8k is passed on
PICTURE_COLUMNS = ("image", "filepath", "file_name", "filename", "image_name", "path")
CAPTION_COLUMNS = ("caption", "captions", "title", "text", "comment")
SPLIT, TEST = "split", "test"
SEPARATORS = ("\t", "|", ",")  # the first that the header has; Flickr30k is passed on with bars


class _Columns(NamedTuple):
    picture: int
    caption: int
    split: int | None
    number: int
    separator: str


def is_caption_table(path: Path) -> bool:
    """Whether ``path`` is a table with a column of pictures and one of captions, or a directory with one."""
    return bool(_tables(path))


def read_caption_table(path: Path) -> RetrievalSet:
    """The table ``path``, or that in it: ``test.csv``, or the only one.

    Raises:
        UserError: several tables, another content, or the set is not whole.
    """
    tables = _tables(path)
    named = [table for table in tables if table.stem == TEST]
    if len(named or tables) != 1:
        found = f"holds {len(tables)} tables of captions: name one of {', '.join(map(str, tables))}"
        none = f"has no columns of pictures and captions: name them {' and '.join((PICTURE_COLUMNS[0], 'caption'))}"
        raise UserError(f"{path} {found if tables else none}")
    (table,) = named or tables
    captions: dict[str, list[str]] = {}
    splits: set[str] = set()
    for picture, caption, split in _rows(table):
        splits.add(split)
        if split in (TEST, ""):
            captions.setdefault(picture, []).append(caption)
    if not captions and splits:
        raise UserError(f"{table} has no rows of the split '{TEST}', only of {', '.join(sorted(splits))}: write some")
    return whole_set(table, captions, partial(picture_beside, table))


def _tables(path: Path) -> list[Path]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [
        file
        for file in files
        if (file.suffix.lower() in ENDINGS or file.name == FLICKR8K) and _columns(file) is not None
    ]


def _columns(file: Path) -> _Columns | None:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            header = lines.readline()
    except (OSError, UnicodeDecodeError):
        return None
    separator = next((one for one in SEPARATORS if one in header), ",")
    names = [name.strip().lower() for name in next(csv.reader([header], delimiter=separator), [])]
    picture = next((names.index(name) for name in PICTURE_COLUMNS if name in names), None)
    caption = next((names.index(name) for name in CAPTION_COLUMNS if name in names), None)
    if picture is None or caption is None:
        return None
    return _Columns(picture, caption, names.index(SPLIT) if SPLIT in names else None, len(names), separator)


def _rows(file: Path) -> Iterator[tuple[str, str, str]]:
    """Picture, caption and split ("" where there is no column of it) of every row."""
    columns = _columns(file)
    assert columns is not None
    csv.field_size_limit(sys.maxsize)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.reader(lines, delimiter=columns.separator, strict=True)
            next(rows)
            for row in filter(None, rows):
                if len(row) <= max(columns.picture, columns.caption) or not row[columns.picture].strip():
                    raise UserError(f"line {rows.line_num} of {file} lacks its picture or its caption: fill it in")
                if len(row) > columns.number:
                    raise UserError(
                        f"line {rows.line_num} of {file} has more cells than its header: put what holds "
                        f"'{columns.separator}' into quotes"
                    )
                split = row[columns.split].strip() if columns.split is not None and columns.split < len(row) else ""
                if columns.split is not None and not split:
                    raise UserError(f"line {rows.line_num} of {file} says nothing in its column split: fill it in")
                yield row[columns.picture].strip(), row[columns.caption], split
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a table in UTF-8 ({error}): write it again") from error
