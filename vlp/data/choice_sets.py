"""Evaluation sets that ask for the true of several captions, and the reader of SugarCrepe's pairs.

As in `vlp.data.benchmark_sets`, what is missing or damaged raises a UserError that names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlp.data.benchmark_sets import StoredFile
from vlp.types import UserError

PICTURE_DIRECTORIES = ("images", "val2017", ".")  # ours, CLIP_benchmark's for SugarCrepe, beside the JSON
PAIR = ("filename", "caption", "negative_caption")


@dataclass(frozen=True)
class Choice:
    """A picture, its true caption and false ones: indices into ``images`` and ``texts`` of the set."""

    image: int
    caption: int
    wrong: tuple[int, ...]
    category: str = ""


class Item(NamedTuple):
    """The same, as files have it."""

    image: StoredFile
    caption: str
    wrong: Sequence[str]
    category: str = ""


@dataclass(frozen=True)
class ChoiceSet:
    """Choices; pictures and captions that several of them share are listed once."""

    images: list[StoredFile]
    texts: list[str]
    choices: list[Choice]


def choice_set(items: Iterable[Item]) -> ChoiceSet:
    """``items`` with numbers in place of pictures and captions."""
    image_index: dict[StoredFile, int] = {}
    text_index: dict[str, int] = {}
    choices = [
        Choice(
            image_index.setdefault(item.image, len(image_index)),
            text_index.setdefault(item.caption, len(text_index)),
            tuple(text_index.setdefault(text, len(text_index)) for text in item.wrong),
            item.category,
        )
        for item in items
    ]
    return ChoiceSet(list(image_index), list(text_index), choices)


def pair_files(path: Path) -> list[Path]:
    """The JSON files of ``path``, or else of ``data/`` in it as SugarCrepe keeps them, if they hold pairs.

    Args:
        path: also one such file by itself.
    """
    if path.is_file():
        return [path] if path.suffix == ".json" and _looks_like_pairs(path) else []
    for folder in (path, path / "data"):
        files = sorted(folder.glob("*.json"))
        if any(_looks_like_pairs(file) for file in files):
            return files
    return []


def read_pair_set(path: Path) -> ChoiceSet:
    """SugarCrepe's files: ``SUITE.json`` = {"0": {filename, caption, negative_caption}, ...}; keys may skip.

    Pictures lie in ``images/``, ``val2017/`` or beside the JSON files. The suite is the category.

    Args:
        path: the directory, or one of its files.
    """
    items: list[Item] = []
    pictures: dict[str, StoredFile] = {}
    directory = path.parent if path.is_file() else path
    if path.is_file() and directory.name == "data":
        directory = directory.parent
    for file in pair_files(path):
        table = read_json(file)
        if not isinstance(table, dict):
            raise UserError(f"{file} is not a table of pairs: move files of other layouts out of the directory")
        if not table:
            raise UserError(f"{file} holds no pairs: remove the file or write it again")
        for key, pair in table.items():
            filename, caption, negative = _pair(pair, f"item {key} of {file}")
            if filename not in pictures:
                pictures[filename] = _find_picture(directory, filename)
            items.append(Item(pictures[filename], caption, [negative], file.stem))
    return choice_set(items)


def _pair(pair: Any, where: str) -> tuple[str, str, str]:
    for name in PAIR:
        value = pair.get(name) if isinstance(pair, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where} has no {name}: complete it, or move files of other layouts out of the directory")
    if pair["caption"] == pair["negative_caption"]:
        raise UserError(f"{where} has the same caption and negative_caption, no choice: correct it or leave it out")
    return pair["filename"], pair["caption"], pair["negative_caption"]


def read_json(path: Path) -> Any:
    """What the file holds. Raises UserError when it is cut short or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): copy it again") from error


def _find_picture(directory: Path, filename: str) -> StoredFile:
    for place in PICTURE_DIRECTORIES:
        path = directory / place / filename
        if path.is_file():
            return StoredFile(path, str(path))
    raise UserError(
        f"{filename} is neither in {directory}/images nor in {directory}/val2017: put it there (SugarCrepe's pictures "
        "are COCO's of 2017, val2017)"
    )


def _looks_like_pairs(path: Path) -> bool:
    # Only the beginning is read: a directory may hold large JSON files of other layouts.
    with open(path, encoding="utf-8", errors="replace") as stream:
        return '"negative_caption"' in stream.read(4096)
