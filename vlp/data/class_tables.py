"""Reading pictures with classes from a table: ``image,label`` in a CSV or TSV file.

The file lies in its directory as ``test.csv`` (and ``train.csv``, for probes), or alone under any name, or is given
itself. Its columns are known by their names, and pictures by their places from the file on, or from ``images/``.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from vlp.data.benchmark_sets import ClassificationSet, StoredFile, read_lines, read_templates
from vlp.types import UserError

ENDINGS = (".csv", ".tsv")
PICTURE_COLUMNS = ("image", "filepath", "file_name", "filename", "file", "path")
CLASS_COLUMNS = ("label", "class", "classname", "category")
CAPTION_COLUMNS = ("caption", "captions", "title", "text")  # of a set of retrieval, which may have a class, too
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
    if file is None:
        raise UserError(f"{path} has no {split}.csv: it must hold the columns image and label")
    directory = file.parent
    picture, label = _columns(_header(file))
    if picture is None or label is None:
        raise UserError(f"{file} lacks a column: it must have image and label")
    images, labels = [], []
    with open(file, encoding="utf-8-sig", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream, delimiter=_delimiter(file)), 2):
            if not row[picture] or not row[label]:
                raise UserError(f"line {number} of {file} lacks {picture if not row[picture] else label}: fill it in")
            images.append(_picture(directory, row[picture], file, number))
            labels.append(row[label].strip())
    if not images:
        raise UserError(f"{file} has no rows: write a picture and its class in each")
    names, of_name = _classes(directory, path, labels, split, file)
    templates = read_templates(directory)
    named_by = "classnames.txt" if (directory / "classnames.txt").exists() else f"column {label}"
    return ClassificationSet(images, torch.tensor([of_name[one] for one in labels]), names, templates, named_by)


def _file(path: Path, split: str) -> Path | None:
    """The table of ``split``; None where there is none, or which one it is cannot be said."""
    if path.is_file():
        if split == "test":
            return path if path.suffix.lower() in ENDINGS else None
        path = path.parent
    if not path.is_dir():
        return None
    files = [
        file for file in sorted(path.iterdir()) if file.suffix.lower() in ENDINGS and not file.name.startswith(".")
    ]
    named = [file for file in files if file.stem in (split, *(("val",) if split == "test" else ()))]
    if named or split == "train":
        return named[0] if named else None
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


def _picture(directory: Path, name: str, file: Path, number: int) -> StoredFile:
    for place in (directory / name, directory / "images" / name):
        if place.is_file():
            return StoredFile(place, str(place))
    raise UserError(f"{directory / name} is missing, which line {number} of {file} names: copy it, or remove the line")


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
