"""Reading pictures with classes from a table: ``image,label`` in a CSV or TSV file.

The file lies in its directory as ``test.csv`` (and ``train.csv``, for probes), or alone under any name, or is given
itself. Where it has a column ``split``, its rows ``test`` count (and ``train``, for probes). Columns are known by their
names; pictures lie where the table says, from itself on, or in ``images/`` beside it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from vlp.data.benchmark_sets import ClassificationSet, read_lines, read_templates
from vlp.data.caption_sets import picture_beside
from vlp.data.caption_tables import CAPTION_COLUMNS  # of a set of retrieval, which may have a class, too
from vlp.types import UserError

ENDINGS = (".csv", ".tsv")
PICTURE_COLUMNS = ("image", "filepath", "file_name", "filename", "file", "path")
CLASS_COLUMNS = ("label", "class", "classname", "category")
SPLIT = "split"
NAMES = {"test": ("test", "val"), "train": ("train",)}  # of the files of a split
MAX_NAMES = 5


class _Columns(NamedTuple):
    picture: int
    label: int | None
    split: int | None
    number: int


def is_class_table(path: Path) -> bool:
    """Whether it is a table with a column of pictures and one of classes, or a directory with one."""
    file = _file(path, "test")
    if file is None or _columns(file).label is None:
        return False
    return not any(name in CAPTION_COLUMNS for name in _header(file))


def read_class_table(path: Path, split: str = "test") -> ClassificationSet:
    """The rows of the table, in their order.

    Classes are words, in the order of the alphabet, or numbers from 0 on that stand for the lines of ``classnames.txt``
    beside the table.

    Raises:
        UserError: no table of this split, a picture that is missing, a class without a name.
    """
    file = _file(path, split)
    if file is None or _columns(file).label is None:
        raise UserError(f"{path} has no {split}.csv with the columns image and label: write one")
    rows = list(_rows(file, split))
    if not rows:
        raise UserError(f"{file} has no rows of the split {split}: write a picture and its class in each")
    images = [picture_beside(file, picture) for picture, _ in rows]
    labels = [label for _, label in rows]
    names, of_name = _classes(file.parent, path, labels, split, file)
    named_by = "classnames.txt" if (file.parent / "classnames.txt").exists() else "the classes of the table"
    numbers = torch.tensor([of_name[label] for label in labels])
    return ClassificationSet(images, numbers, names, read_templates(file.parent), named_by)


def _rows(file: Path, split: str) -> Iterator[tuple[str, str]]:
    """Picture and class of each row of ``split``; a table without that column is of one split."""
    columns = _columns(file)
    assert columns.label is not None
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, delimiter=_delimiter(file), strict=True)
            next(rows)
            for row in filter(None, rows):
                if len(row) > columns.number:
                    raise UserError(
                        f"line {rows.line_num} of {file} has more cells than its header: put what holds "
                        f"'{_delimiter(file)}' into quotes"
                    )
                cells = [cell.strip() for cell in row] + [""] * (columns.number - len(row))
                for name, place in (("picture", columns.picture), ("class", columns.label), (SPLIT, columns.split)):
                    if place is not None and not cells[place]:
                        raise UserError(f"line {rows.line_num} of {file} lacks its {name}: fill it in")
                if columns.split is None or cells[columns.split] == split:
                    yield cells[columns.picture], cells[columns.label]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a table in UTF-8 ({error}): write it again") from error


def _file(path: Path, split: str) -> Path | None:
    """The table of ``split``; None where there is none, or which one it is cannot be said."""
    if path.is_file():
        if split == "test" or SPLIT in _header(path):
            return path if path.suffix.lower() in ENDINGS else None
        path = path.parent
    if not path.is_dir():
        return None
    files = [
        file for file in sorted(path.iterdir()) if file.suffix.lower() in ENDINGS and not file.name.startswith(".")
    ]
    for stem in NAMES[split]:
        named = [file for file in files if file.stem == stem]
        if len(named) > 1:
            raise UserError(f"{path} holds {' and '.join(file.name for file in named)}: remove one")
        if named:
            return named[0]
    if split == "train":  # it may be a part of the other table
        other = _file(path, "test")
        return other if other is not None and SPLIT in _header(other) else None
    others = [file for file in files if file.stem != "train"]
    return others[0] if len(others) == 1 else None


def _delimiter(file: Path) -> str:
    return "\t" if file.suffix.lower() == ".tsv" else ","


def _header(file: Path) -> list[str]:
    """The names of the columns in small letters; none where it is no table."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            first = next(csv.reader(stream, delimiter=_delimiter(file)), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return [name.strip().lower() for name in first]


def _columns(file: Path) -> _Columns:
    """Where they stand; no label where there are not both pictures and classes."""
    header = _header(file)
    picture = next((header.index(name) for name in PICTURE_COLUMNS if name in header), None)
    label = next((header.index(name) for name in CLASS_COLUMNS if name in header), None)
    split = header.index(SPLIT) if SPLIT in header else None
    return _Columns(picture or 0, None if picture is None else label, split, len(header))


def _classes(
    directory: Path, path: Path, labels: list[str], split: str, file: Path
) -> tuple[list[str], dict[str, int]]:
    """The names of all classes, and the number of each that the table's labels mean."""
    names_file, found = directory / "classnames.txt", sorted(set(labels))
    if all(label.isdecimal() for label in found):
        if not names_file.exists():
            raise UserError(
                f"{names_file} is missing: the classes of {file} are numbers, write their names, one a line"
            )
        names = read_lines(names_file, "the class names, one a line")
        beyond = [label for label in found if int(label) >= len(names)]
        if beyond:
            raise UserError(f"{file} has the class {beyond[0]}, but {names_file} has {len(names)} names, from 0 on")
        return names, {label: int(label) for label in found}
    if names_file.exists():
        names = read_lines(names_file, "the class names, one a line")
    elif split == "test":
        names = found
    else:  # the numbers are those of the test's names
        names = read_class_table(path, "test").classnames
    unknown = [label for label in found if label not in names]
    if unknown:
        known = ", ".join(names[:MAX_NAMES]) + (" ..." if len(names) > MAX_NAMES else "")
        raise UserError(f"{file} has the class '{unknown[0]}', which is none of the set's ({known}): write it alike")
    return names, {name: names.index(name) for name in found}
