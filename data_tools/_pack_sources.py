"""Readers of what ``vlp data pack`` takes: a folder, a CSV, a COCO captions JSON, a Karpathy split JSON."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools._console import Summary
from vlp.data.samples import IMAGE_EXTENSIONS
from vlp.resolve import nearest
from vlp.types import UserError


@dataclass(frozen=True)
class Entry:
    """A picture that a source names, with its captions; ``image_id`` is the source's own number for it."""

    image: Path
    captions: tuple[str, ...]
    name: str
    image_id: int | str | None = None


@dataclass(frozen=True)
class SourceOptions:
    """Where the pictures and captions are; see ``vlp data pack --help``."""

    src: Path
    images: Path | None = None
    csv_img_key: str = "filepath"
    csv_caption_key: str = "title"
    csv_separator: str | None = None
    split: str | None = None


def read_entries(kind: str, options: SourceOptions, summary: Summary) -> list[Entry]:
    """All entries in the source's order; what lacks a picture's name or a caption goes to ``summary``."""
    return READERS[kind](options, summary)


def detect(src: Path) -> str:
    """The format of ``src``, where it is clear.

    Raises:
        UserError: it does not exist, or could be anything.
    """
    if not src.exists():
        raise UserError(f"{src} does not exist: give a folder, a CSV or TSV, or a captions JSON")
    if src.is_dir():
        return "folder"
    if src.suffix.lower() in {".csv", ".tsv"}:
        return "csv"
    if src.suffix.lower() == ".json":
        table = _json(src)
        if isinstance(table, dict) and "annotations" in table:
            return "coco"
        if isinstance(table, dict) and any("sentences" in i for i in table.get("images", ())[:1]):
            return "karpathy"
    raise UserError(f"{src} is of no clear format: say --format {', '.join(READERS)}")


def _folder(options: SourceOptions, summary: Summary) -> list[Entry]:
    if not options.src.is_dir():
        raise UserError(f"{options.src} is no folder: give a folder of pictures and .txt files, or another --format")
    files = sorted(path for path in options.src.rglob("*") if path.is_file())
    pictures = [path for path in files if path.suffix[1:].lower() in IMAGE_EXTENSIONS]
    stems = {path.with_suffix("") for path in pictures}
    for path in files:
        if path.suffix == ".txt" and path.with_suffix("") not in stems:
            summary.skip("caption without picture", path.relative_to(options.src).as_posix())
    entries: list[Entry] = []
    for path in pictures:
        name = path.relative_to(options.src).as_posix()
        text = path.with_suffix(".txt")
        if not text.is_file():
            summary.skip("no caption file", name)
            continue
        lines = text.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        _keep(entries, summary, Entry(path, _clean(lines), name))
    return entries


def _csv(options: SourceOptions, summary: Summary) -> list[Entry]:
    csv.field_size_limit(sys.maxsize)
    captions: dict[str, list[str]] = {}
    try:
        with options.src.open(encoding="utf-8-sig", newline="") as lines:
            header = lines.readline()
            lines.seek(0)
            separator = options.csv_separator or ("\t" if "\t" in header else ",")
            rows = csv.DictReader(lines, delimiter=separator)
            for key, option in (
                (options.csv_img_key, "--csv-img-key"),
                (options.csv_caption_key, "--csv-caption-key"),
            ):
                known = list(rows.fieldnames or ())
                if key not in known:
                    hint = nearest(key, known)
                    raise UserError(
                        f"{options.src} has no column '{key}' ({option}){hint}; columns: {', '.join(known)}"
                    )
            for row in rows:
                name = row[options.csv_img_key]
                if name:
                    captions.setdefault(name, []).append(row[options.csv_caption_key] or "")
                else:
                    summary.skip("row without picture", f"{options.src.name}: line {rows.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{options.src} cannot be read as UTF-8 CSV: {error}") from error
    entries: list[Entry] = []
    for name, texts in captions.items():
        _keep(entries, summary, Entry(_images(options) / name, _clean(texts), name))
    return entries


def _coco(options: SourceOptions, summary: Summary) -> list[Entry]:
    table = _json(options.src)
    images = _records(options.src, table, "images", ("id", "file_name"))
    annotations = _records(options.src, table, "annotations", ("image_id", "caption"))
    captions: dict[Any, list[str]] = {image["id"]: [] for image in images}
    for annotation in annotations:
        if annotation["image_id"] in captions:
            captions[annotation["image_id"]].append(str(annotation["caption"]))
        else:
            summary.skip("caption without picture", f"{options.src.name}: annotation {annotation.get('id')}")
    entries: list[Entry] = []
    for image in images:
        name, number = image["file_name"], image["id"]
        _keep(entries, summary, Entry(_images(options) / name, _clean(captions[number]), name, number))
    return entries


def _karpathy(options: SourceOptions, summary: Summary) -> list[Entry]:
    images = _records(options.src, _json(options.src), "images", ("filename", "split", "sentences"))
    wanted = (options.split or "train+restval").split("+")
    known = sorted({str(image["split"]) for image in images})
    for split in wanted:
        # Flickr's files have no restval, which the default must survive.
        if split not in known and not (options.split is None and split == "restval"):
            raise UserError(
                f"--split {split} is not in {options.src}{nearest(split, known)}; known: {', '.join(known)}"
            )
    entries: list[Entry] = []
    for image in images:
        if image["split"] in wanted:
            name = Path(image.get("filepath", ""), image["filename"]).as_posix()
            texts = _clean(str(sentence.get("raw", "")) for sentence in image["sentences"])
            number = image.get("cocoid", image.get("imgid"))
            _keep(entries, summary, Entry(_images(options) / name, texts, name, number))
    return entries


READERS: dict[str, Callable[[SourceOptions, Summary], list[Entry]]] = {
    "folder": _folder,
    "csv": _csv,
    "coco": _coco,
    "karpathy": _karpathy,
}


def _images(options: SourceOptions) -> Path:
    return options.images or options.src.parent


def _clean(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions on one line each (the retrieval layout keeps one a line), empty ones dropped."""
    return tuple(text for caption in captions if (text := " ".join(caption.split())))


def _keep(entries: list[Entry], summary: Summary, entry: Entry) -> None:
    if entry.captions:
        entries.append(entry)
    else:
        summary.skip("empty caption", entry.name)


def _records(src: Path, table: Any, name: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The list ``name`` of a JSON table, all of whose entries have ``keys``."""
    records = table.get(name) if isinstance(table, dict) else None
    if not isinstance(records, list):
        raise UserError(f"{src} has no list '{name}': it is not in the layout that --format names")
    for record in records:
        for key in keys:
            if not isinstance(record, dict) or key not in record:
                raise UserError(f"{src}: '{name}' has an entry without '{key}': give another --format or mend it")
    return records


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
