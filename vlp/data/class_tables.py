"""Reading pictures with classes from a table: ``image,label`` in a CSV or TSV file.

The file lies in its directory as ``test.csv`` (and ``train.csv``, for probes), or alone under any name, or is given
itself. Where it has a column ``split``, its rows ``test`` count (and ``train``, for probes). Columns are known by their
names; pictures lie where the table says, from itself on, or in ``images/`` beside it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import torch

from vlp.data.benchmark_sets import ClassificationSet, read_lines, read_templates
from vlp.data.caption_sets import picture_beside
from vlp.types import UserError

ENDINGS = (".csv", ".tsv")
PICTURE_COLUMNS = ("image", "filepath", "file_name", "filename", "file", "path")
CLASS_COLUMNS = ("label", "class", "classname", "category")
CAPTION_COLUMNS = ("caption", "captions", "title", "text")  # of a set of retrieval, which may have a class, too
SPLIT = "split"
MAX_NAMES = 5


def is_class_table(path: Path) -> bool:
    """Whether it is a table with a column of pictures and one of classes, or a directory with one."""
    file = _file(path, "test")
    return file is not None and None not in _columns(_header(file))


def read_class_table(path: Path, split: str = "test") -> ClassificationSet:
    """The rows of the table, in their order.

    Classes are words, in the order of the alphabet, or numbers from 0 on that stand for the lines of ``classnames.txt``
    beside the table.

    Raises:
        UserError: no table of this split, a picture that is missing, a class without a name.
    """
    file = _file(path, split)
    if file is None or None in _columns(_header(file)):
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
    picture, label = _columns(_header(file))
    assert picture is not None
    assert label is not None
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream, delimiter=_delimiter(file)):
                found = [(row[column] or "").strip() for column in (picture, label)]
                if not all(found):
                    lacking = picture if not found[0] else label
                    raise UserError(
                        f"{file} has the row {', '.join(map(str, row.values()))} without {lacking}: fill it in"
                    )
                if (row.get(SPLIT) or split).strip() == split:
                    yield found[0], found[1]
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
    named = [file for file in files if file.stem in (split, *(("val",) if split == "test" else ()))]
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
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            return next(csv.reader(stream, delimiter=_delimiter(file)), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def _columns(header: list[str]) -> tuple[str | None, str | None]:
    """Those of the pictures and of the classes; none of classes beside captions, which make a set of another kind."""
    lower = {name.strip().lower(): name for name in header}
    picture = next((lower[name] for name in PICTURE_COLUMNS if name in lower), None)
    label = next((lower[name] for name in CLASS_COLUMNS if name in lower), None)
    return picture, None if any(name in lower for name in CAPTION_COLUMNS) else label


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
