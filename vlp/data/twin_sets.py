"""Reading sets of twins, two pictures and the caption of each that look much alike: Winoground and MMVP-VLM.

As in `vlp.data.benchmark_sets`, what is missing or damaged raises a UserError that names it, and a picture is read when
it is asked for.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.benchmark_sets import PICTURE_EXTENSIONS, StoredFile
from vlp.data.packed_pictures import ParquetPicture, ZippedFile, zip_members
from vlp.types import UserError

WINOGROUND = "the gated Hugging Face data set facebook/winoground"
EXAMPLES = "examples.jsonl"
PICTURES = ("image_0", "image_1")
CAPTIONS = ("caption_0", "caption_1")
TAGS = ("collapsed_tag", "num_main_preds", "secondary_tag")

MMVP = "the Hugging Face data set MMVP/MMVP_VLM"
QUESTIONS = "Questions.csv"
QUESTION_COLUMNS = ("Question ID", "Type", "Statement")
MMVP_PICTURES = "MLLM_VLM Images"


@dataclass(frozen=True)
class Twin:
    """Two pictures and the caption of each, in the same order: indices into ``images`` and ``texts`` of the set."""

    images: tuple[int, int]
    texts: tuple[int, int]
    category: str = ""


@dataclass(frozen=True)
class TwinSet:
    """Twins; pictures and captions that several of them share are listed once.

    ``tables`` groups the twins in one or more ways: for each a category a twin, empty where it has none. The first is
    the ``category`` of the twins.
    """

    images: list[StoredFile]
    texts: list[str]
    twins: list[Twin]
    tables: dict[str, list[str]] = field(default_factory=dict)


def is_winoground(directory: Path) -> bool:
    """Whether ``directory`` has Winoground's layout, be it complete or not."""
    folders = (directory, directory / "data")
    named = any((folder / name).exists() for folder in folders for name in (EXAMPLES, "images/ex_0_img_0.png"))
    columns_of_files = [_columns(path) for path in _parquet_files(directory)]
    return named or any(not columns or set(CAPTIONS) <= set(columns) for columns in columns_of_files)


def read_winoground(directory: Path) -> TwinSet:
    """The examples of ``directory``, or of ``data/`` in it, in either of the two forms that were published.

    - ``examples.jsonl``, a line an example, with ``images/NAME.png`` or with ``images.zip``;
    - ``test-*.parquet``, with the pictures inside.

    An example needs two captions and two pictures; one without tags is in no category, and a tag that does not tell any
    examples apart makes no table.
    """
    for folder in (directory, directory / "data"):
        if (folder / EXAMPLES).is_file():
            return _winoground(directory, *_json_examples(folder))
    if not _parquet_files(directory):
        raise UserError(f"{directory}/{EXAMPLES} is missing: copy it from {WINOGROUND}, where it lies in data/")
    return _winoground(directory, *_parquet_examples(directory))


def is_mmvp(directory: Path) -> bool:
    """Whether ``directory`` has MMVP-VLM's layout, be it complete or not."""
    return (directory / QUESTIONS).exists() or (directory / MMVP_PICTURES).exists()


def read_mmvp(directory: Path) -> TwinSet:
    """``Questions.csv``, two rows a twin, with ``MLLM_VLM Images/TYPE/ID.jpg``; the texts are the bare statements."""
    path = directory / QUESTIONS
    if not path.is_file():
        raise UserError(f"{path} is missing: copy it from {MMVP}")
    reader = csv.DictReader(io.StringIO(_text(path, MMVP), newline=""))
    questions = [row for row in reader if any(row.get(column) for column in QUESTION_COLUMNS)]  # tables end in ,,
    missing = [column for column in QUESTION_COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}': copy it from {MMVP} (the file of MMVP/MMVP is another)")
    if not questions or len(questions) % 2:
        raise UserError(f"{path} holds {len(questions)} statements, not pairs of them: copy it again from {MMVP}")
    pictures = []
    for question in questions:
        if not all(question[column] for column in QUESTION_COLUMNS):
            raise UserError(f"question '{question['Question ID']}' of {path} is cut short: copy it again from {MMVP}")
        picture = directory / MMVP_PICTURES / question["Type"] / f"{question['Question ID']}.jpg"
        if not picture.is_file():
            raise UserError(f"{picture} is missing: copy the folder '{MMVP_PICTURES}' from {MMVP}")
        pictures.append(StoredFile(picture, str(picture)))
    for first, second in zip(questions[::2], questions[1::2], strict=True):
        if first["Type"] != second["Type"]:
            raise UserError(
                f"questions {first['Question ID']} and {second['Question ID']} of {path} stand in a pair but are of "
                f"two types: keep the order of the rows in {MMVP}"
            )
    types = [question["Type"] for question in questions[::2]]
    return _twin_set(pictures, [question["Statement"] for question in questions], {"type": types})


def _winoground(directory: Path, rows: Sequence[dict[str, Any]], pictures: Sequence[StoredFile]) -> TwinSet:
    """``pictures``: the two of the first row, then those of the second, and so on."""
    if not rows:
        raise UserError(f"the files of {directory} hold no examples: copy them again from {WINOGROUND}")
    tables = {tag: ["" if row.get(tag) is None else str(row[tag]) for row in rows] for tag in TAGS}
    texts = [row[side] for row in rows for side in CAPTIONS]
    return _twin_set(pictures, texts, {tag: names for tag, names in tables.items() if len(set(names)) > 1})


def _twin_set(pictures: Sequence[StoredFile], texts: Sequence[str], tables: dict[str, list[str]]) -> TwinSet:
    image_index: dict[StoredFile, int] = {}
    text_index: dict[str, int] = {}
    image = [image_index.setdefault(picture, len(image_index)) for picture in pictures]
    text = [text_index.setdefault(caption, len(text_index)) for caption in texts]
    categories = next(iter(tables.values()), [""] * (len(image) // 2))
    pairs = zip(image[::2], image[1::2], text[::2], text[1::2], categories, strict=True)
    twins = [Twin((a, b), (c, d), category) for a, b, c, d, category in pairs]
    return TwinSet(list(image_index), list(text_index), twins, tables)


def _json_examples(folder: Path) -> tuple[list[dict[str, Any]], list[StoredFile]]:
    path, rows = folder / EXAMPLES, []
    for number, line in enumerate(_text(path, WINOGROUND).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"line {number} of {path} is not valid JSON ({error}): copy the file again") from error
        rows.append(_checked(row, f"line {number} of {path}", (*CAPTIONS, *PICTURES)))
    members = zip_members(folder / "images.zip", WINOGROUND)
    return rows, [_picture(folder, members, row[side]) for row in rows for side in PICTURES]


def _picture(folder: Path, members: dict[str, ZippedFile], name: str) -> StoredFile:
    """The picture ``name``: the official file leaves the extension out, others may write it."""
    for file in (name, *(f"{name}.{extension}" for extension in PICTURE_EXTENSIONS)):
        path = folder / "images" / file
        if path.is_file():
            return StoredFile(path, str(path))
        if file in members:
            return members[file]
    raise UserError(
        f"{folder}/images/{name}.png is missing and not in {folder}/images.zip either: copy images.zip from "
        f"{WINOGROUND}, where it lies in data/"
    )


def _parquet_examples(directory: Path) -> tuple[list[dict[str, Any]], list[StoredFile]]:
    rows: list[dict[str, Any]] = []
    pictures: list[StoredFile] = []
    for path in _parquet_files(directory):
        if not _columns(path):
            raise UserError(f"{path} is not a whole Parquet file: copy it again from {WINOGROUND}")
        missing = [name for name in (*CAPTIONS, *PICTURES) if name not in _columns(path)]
        if missing:
            raise UserError(f"{path} has no column '{missing[0]}': copy it again from {WINOGROUND}")
        file = pq.ParquetFile(path)
        columns = [name for name in (*CAPTIONS, *TAGS) if name in _columns(path)]
        for group in range(file.num_row_groups):
            for row, example in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
                where = f"row {row} of row group {group} of {path}"
                rows.append(_checked(example, where, CAPTIONS))
                pictures += [
                    ParquetPicture(path, f"{side} in {where}", group=group, row=row, column=side) for side in PICTURES
                ]
    return rows, pictures


def _checked(row: Any, where: str, names: Sequence[str]) -> dict[str, Any]:
    for name in names:
        if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name]:
            raise UserError(f"{where} has no {name}: every example needs two captions and two pictures")
    return dict(row)


def _parquet_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("test-*.parquet")) or sorted((directory / "data").glob("test-*.parquet"))


def _columns(path: Path) -> list[str]:
    """No names where the file is damaged."""
    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError):
        return []


def _text(path: Path, source: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: copy it again from {source}") from error
