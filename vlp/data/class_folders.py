"""Reading pictures that lie in a folder for each class, as torchvision's ImageFolder takes them.

``CLASS/*.jpg``, or the same below ``test/`` or ``val/`` (and ``train/``, for probes). Folders are classes in the order
of their names, or of their numbers where all are numbers. ``classnames.txt`` beside them has the names in that order,
``classnames.json`` by the folder; without either the folders' names are used, underscores read as spaces.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from vlp.data.benchmark_sets import ClassificationSet, StoredFile, read_lines, read_templates
from vlp.data.caption_sets import PICTURE_FOLDERS
from vlp.data.samples import IMAGE_EXTENSIONS
from vlp.types import UserError

NAMES_FILES = ("classnames.txt", "classnames.json")
SPLITS = {"test": ("test", "val", "validation"), "train": ("train",)}
# What other layouts keep beside folders of pictures, which are no classes then.
_OTHER_LAYOUTS = (".json", ".jsonl", ".csv", ".tsv", ".tar", ".parquet")


def is_class_directory(directory: Path) -> bool:
    """Whether pictures lie in folders, of which there are two or more, and neither captions nor lists beside them."""
    if not directory.is_dir():
        return False
    if any(name.endswith(_OTHER_LAYOUTS) and name not in NAMES_FILES for name in os.listdir(directory)):
        return False
    root = _root(directory, "test")
    # val2014/ beside train2014/ are those of other sets.
    folders = [folder for folder in _folders(root) if folder.name not in PICTURE_FOLDERS] if root is not None else []
    return sum(_holds_pictures_alone(folder) for folder in _some(folders, 8)) >= 2


def read_class_folders(directory: Path, split: str = "test") -> ClassificationSet:
    """The pictures of all folders of a split, class after class, in the order of their names.

    Raises:
        UserError: no such split, a folder without pictures, names that do not fit the folders.
    """
    root = _root(directory, split)
    if root is None:
        raise UserError(f"{directory}/{split} is missing: it must hold a folder of pictures for each class")
    folders = _folders(root)
    numbers = all(folder.name.isdecimal() for folder in folders)
    folders.sort(key=lambda folder: (int(folder.name), folder.name) if numbers else (0, folder.name))
    names, named_by = _classnames(directory, [folder.name for folder in folders])
    images: list[StoredFile] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = [path for path in sorted(folder.rglob("*")) if _is_picture(path.name) and not path.is_dir()]
        if not found:
            raise UserError(f"{folder} holds no picture: every class needs one, add it or remove the folder")
        images += [StoredFile(path, str(path)) for path in found]
        labels += [label] * len(found)
    return ClassificationSet(images, torch.tensor(labels), names, read_templates(directory), named_by)


def _root(directory: Path, split: str) -> Path | None:
    """Where the folders of the classes of a split lie; the directory itself where it is not split."""
    found = [directory / name for name in SPLITS[split] if _is_split(directory / name)]
    if found:
        return found[0]
    is_split = any(_is_split(directory / name) for names in SPLITS.values() for name in names)
    return None if is_split or split == "train" else directory


def _is_split(folder: Path) -> bool:
    """Not so for the class "train" of a set with vehicles, which holds pictures itself."""
    return folder.is_dir() and not any(_is_picture(path.name) for path in _first_files(folder))


def _folders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _some(folders: list[Path], number: int) -> list[Path]:
    """The first and the last ones, so that a set of a thousand classes is known by a glance."""
    return folders if len(folders) <= number else folders[: number // 2] + folders[-number // 2 :]


def _holds_pictures_alone(folder: Path) -> bool:
    """Whether a look at the first files finds pictures, and no text beside one, which would be its caption."""
    for path in _first_files(folder):
        if _is_picture(path.name):
            return not path.with_suffix(".txt").exists()
    return False


def _first_files(folder: Path, number: int = 16) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for _, entry in zip(range(number), entries, strict=False):
            yield Path(entry.path)


def _is_picture(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS and not name.startswith(".")


def _classnames(directory: Path, folders: list[str]) -> tuple[list[str], str]:
    text, table = (directory / name for name in NAMES_FILES)
    if text.exists() and table.exists():
        raise UserError(f"{directory} holds classnames.txt and classnames.json: remove one")
    if text.exists():
        names = read_lines(text, "the class names, one a line")
        if len(names) != len(folders):
            raise UserError(f"{text} has {len(names)} names, but there are {len(folders)} folders: write one for each")
        return names, text.name
    if table.exists():
        return _names_by_folder(table, folders), table.name
    if folders == [str(number) for number in range(len(folders))] or all(re.fullmatch(r"n\d{8}", f) for f in folders):
        return folders, "folders"  # numbers and ids of WordNet are no words: whoever puts them into prompts has to know
    return [" ".join(folder.split("_")) for folder in folders], "folders"


def _names_by_folder(table: Path, folders: list[str]) -> list[str]:
    try:
        content = json.loads(table.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{table} is no JSON ({error}): write {{FOLDER: NAME}} or a list of names") from error
    if isinstance(content, list) and len(content) == len(folders):
        content = dict(zip(folders, content, strict=True))
    if not isinstance(content, dict):
        content = {}
    missing = [folder for folder in folders if not isinstance(content.get(folder), str) or not content[folder].strip()]
    if missing:
        raise UserError(f"{table} has no name for the folder '{missing[0]}': write {{FOLDER: NAME}}")
    return [content[folder] for folder in folders]
