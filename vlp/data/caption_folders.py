"""Reading a folder of pictures with their captions beside them: ``KEY.jpg`` and ``KEY.txt``, one caption a line."""

from __future__ import annotations

import os
from pathlib import Path

from vlp.data.benchmark_sets import RetrievalSet, StoredFile
from vlp.data.caption_sets import whole_set
from vlp.data.samples import IMAGE_EXTENSIONS
from vlp.types import UserError

CAPTIONS = ".txt"


def is_caption_folder(directory: Path) -> bool:
    """Whether a picture lies right in ``directory``, and a text of its name beside it."""
    if not directory.is_dir():
        return False
    with os.scandir(directory) as entries:
        return any(_is_picture(entry.name) and _captions(Path(entry.path)).is_file() for entry in entries)


def read_caption_folder(directory: Path) -> RetrievalSet:
    """All pictures in the order of their names; folders inside are not looked into.

    Raises:
        UserError: a picture without its text, a text without its picture, or one that is empty or no UTF-8.
    """
    names = sorted(os.listdir(directory))
    pictures = {name: directory / name for name in names if _is_picture(name)}
    texts = {name for name in names if name.endswith(CAPTIONS)}
    if alone := sorted(texts - {_captions(path).name for path in pictures.values()}):
        raise UserError(f"{directory / alone[0]} has no picture of its name beside it: add it, or remove the text")
    captions: dict[str, list[str]] = {}
    seen: dict[Path, str] = {}
    for name, path in pictures.items():
        text = _captions(path)
        if text.name not in texts:
            raise UserError(f"{text} is missing: write the captions of {name} there, one a line")
        if text in seen:
            raise UserError(f"{directory} holds {seen[text]} and {name}, but one {text.name}: rename one of them")
        seen[text] = name
        try:
            captions[name] = text.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{text} is not UTF-8 text: write it again in UTF-8") from error
    return whole_set(directory, captions, lambda name: StoredFile(pictures[name], str(pictures[name])))


def _is_picture(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS and not name.startswith(".")


def _captions(picture: Path) -> Path:
    return picture.with_suffix(CAPTIONS)
