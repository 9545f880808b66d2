"""Reading Karpathy's test splits of COCO, Flickr30k and Flickr8k, from any of the files in which they are published.

- Karpathy's own: ``dataset_coco.json``, ``dataset_flickr30k.json``, ``dataset_flickr8k.json`` (split test).
- CLIP_benchmark's: ``coco_test_karpathy.json``, as COCO's annotations are, and ``flickr30k_test_karpathy.txt``, lines
  ``NAME.jpg,caption`` below a header, where commas and quotes of a caption are its own.
- BLIP's, which ARO uses, too, and which therefore has to be named: ``[{"image", "caption": [five]}]``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlp.data.benchmark_sets import RetrievalSet
from vlp.data.caption_sets import karpathy_captions, official_captions, picture_beside, whole_set
from vlp.types import UserError

FILE = re.compile(r"dataset_(?!infos?\.)\w+\.json|coco_test_karpathy\.json|flickr(30k|8k)_test_(karpathy|zh)\.txt")
USUAL = 5  # captions a picture
ECCV_LISTS = "eccv_caption"  # a folder that makes a set of ECCV Caption of its directory


@dataclass(frozen=True)
class KarpathySet:
    """The test split.

    Attributes:
        found: its pictures and the captions that were kept.
        is_coco: whether they are COCO's, of which figures on folds of 1,000 pictures are usual, too.
        num_more: how many of the pictures have more than five captions.
        language: of the captions.
    """

    found: RetrievalSet
    is_coco: bool
    num_more: int
    language: str


def is_karpathy(path: Path) -> bool:
    """Whether ``path`` is one of the files, or a directory with one that is no set of ECCV Caption."""
    if path.is_dir():
        return not (path / ECCV_LISTS).exists() and bool(_files(path))
    return FILE.fullmatch(path.name) is not None


def read_karpathy_set(path: Path, first: int | None = None) -> KarpathySet:
    """The split of the file ``path``, or of the one in it.

    Args:
        first: keep so many captions of a picture, in the order of the file; None: all.

    Raises:
        UserError: no such file, several of them, another content, or the set is not whole.
    """
    files = _files(path) if path.is_dir() else [path]
    if len(files) != 1:
        named = " or ".join(map(str, files))
        hint = f"name one, {named}" if files else "it must hold dataset_coco.json, or another of Karpathy's files"
        raise UserError(f"{path} holds {len(files) or 'no'} file{'s' * (len(files) != 1)} of captions: {hint}")
    (file,) = files
    try:
        text = file.read_text(encoding="utf-8-sig")
        captions = _merged(_lines(text) if file.suffix == ".txt" else _entries(json.loads(text)))
    except KeyError as error:
        raise UserError(f"{file} is no file of captions as Karpathy's: {error} is missing, copy it again") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged or no file of captions ({error}): copy it again") from error
    num_more = sum(len(lines) > USUAL for lines in captions.values())
    if first:
        captions = {name: lines[:first] for name, lines in captions.items()}
    found = whole_set(file, captions, lambda name: picture_beside(file, name))
    return KarpathySet(found, "coco" in file.name, num_more, "zh" if file.stem.endswith("_zh") else "en")


def _files(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.iterdir()) if FILE.fullmatch(path.name)]


def _entries(content: Any) -> Iterator[tuple[str, list[str]]]:
    if isinstance(content, list):
        yield from ((entry["image"], entry["caption"]) for entry in content)
    elif "annotations" in content:
        yield from official_captions(content)
    else:
        yield from karpathy_captions(content)


def _lines(text: str) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(text.split("\n")[1:], 2):
        if line.strip():
            name, comma, caption = line.strip().partition(".jpg,")
            if not comma:
                raise ValueError(f"line {number} is not NAME.jpg,caption")
            yield f"{name}.jpg", [caption]


def _merged(entries: Iterable[tuple[str, list[str]]]) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for name, lines in entries:
        captions.setdefault(name, []).extend([lines] if isinstance(lines, str) else lines)
    return captions
