"""Reading WinoGAViL (Bitton et al., arXiv:2207.12576): cues, and which of some candidate pictures go with each.

As in `vlp.data.benchmark_sets`, what is missing or damaged raises a UserError that names it, and a picture is read when
it is asked for.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlp.data.benchmark_sets import PICTURE_EXTENSIONS, StoredFile
from vlp.data.packed_pictures import ZippedFile, zip_members
from vlp.types import UserError

WINOGAVIL = "the Hugging Face data set nlphuji/winogavil"
TABLE = "winogavil_dataset.csv"
ARCHIVE = "winogavil_images.zip"
FOLDERS = ("winogavil_images", "images")  # as the ZIP unpacks, and as the authors' script downloads
COLUMNS = ("candidates", "cue", "associations")


@dataclass(frozen=True)
class Association:
    """A cue, and the pictures that go with it and that do not: indices into ``cues`` and ``images`` of the set."""

    cue: int
    right: tuple[int, ...]
    wrong: tuple[int, ...]

    @property
    def num_candidates(self) -> int:
        return len(self.right) + len(self.wrong)


@dataclass(frozen=True)
class AssociationSet:
    """Associations; pictures and cues that several of them share are listed once."""

    images: list[StoredFile]
    cues: list[str]
    associations: list[Association]


def is_winogavil(directory: Path) -> bool:
    """Whether ``directory`` has WinoGAViL's layout, be it complete or not."""
    return any((directory / name).exists() for name in (TABLE, ARCHIVE, FOLDERS[0]))


def read_winogavil(directory: Path) -> AssociationSet:
    """``winogavil_dataset.csv`` with ``winogavil_images.zip``, or the pictures in a folder ``winogavil_images/``.

    Of the table's columns three count: ``cue``, and ``candidates`` and ``associations``, lists in JSON of the names of
    the pictures, without ``.jpg``.
    """
    path = directory / TABLE
    if not path.is_file():
        raise UserError(f"{path} is missing: copy it from {WINOGAVIL}")
    members = zip_members(directory / ARCHIVE, WINOGAVIL)
    image_index: dict[str, int] = {}
    cue_index: dict[str, int] = {}
    associations: list[Association] = []
    for row in _rows(path):
        where = f"the row {row.get('ID') or len(associations)} of {path}"
        cue, candidates, right = (
            row["cue"].strip(),
            _names(row, "candidates", where),
            _names(row, "associations", where),
        )
        if not cue.strip():
            raise UserError(f"{where} has no cue: copy the file again from {WINOGAVIL}")
        strangers = [name for name in right if name not in candidates]
        if strangers or not 0 < len(right) < len(candidates):
            fault = f"'{strangers[0]}', which is no candidate" if strangers else f"{len(right)} of {len(candidates)}"
            raise UserError(f"{where} names {fault}, as associated: some of the candidates must be, and not all")
        index_of = {name: image_index.setdefault(name, len(image_index)) for name in candidates}
        associations.append(
            Association(
                cue_index.setdefault(cue, len(cue_index)),
                tuple(index_of[name] for name in candidates if name in right),
                tuple(index_of[name] for name in candidates if name not in right),
            )
        )
    if not associations:
        raise UserError(f"{path} holds no associations: copy it again from {WINOGAVIL}")
    return AssociationSet([_picture(directory, members, name) for name in image_index], list(cue_index), associations)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: copy it again from {WINOGAVIL}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}': copy it again from {WINOGAVIL}")
    return list(reader)


def _names(row: Mapping[str, str], column: str, where: str) -> list[str]:
    try:
        names = json.loads(row[column])
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{where} has no list of names in '{column}': copy the file again from {WINOGAVIL}")
    if len(set(names)) < len(names):
        raise UserError(f"{where} names a picture twice in '{column}': copy the file again from {WINOGAVIL}")
    return names


def _picture(directory: Path, members: Mapping[str, ZippedFile], name: str) -> StoredFile:
    for file in dict.fromkeys(f"{name}.{extension}" for extension in ("jpg", *PICTURE_EXTENSIONS)):
        if file in members:
            return members[file]
        for folder in FOLDERS:
            path = directory / folder / file
            if path.is_file():
                return StoredFile(path, str(path))
    raise UserError(
        f"the picture {name}.jpg is neither in {directory / ARCHIVE} nor in {directory / FOLDERS[0]}: copy {ARCHIVE} "
        f"from {WINOGAVIL}"
    )
