"""Reading pictures with captions in several languages: Crossmodal-3600, and what CLIP_benchmark makes of such sets.

- Crossmodal-3600 (XM3600): ``captions.jsonl``, lines ``{"image/key": "0a", "de": {"caption": [...]}, ...}``,
  and the pictures as ``images/0a.jpg``. All captions of a language are read.
- CLIP_benchmark: a file a language, as ``crossmodal3600_captions-de.json``: ``{"image_paths": [...], "annotations":
  [...]}``, one caption a row. It writes them for XM3600 (of which it keeps each picture's first caption), multilingual
  MSCOCO, XTD10, XTD200 and Flickr30k-200. Its paths are those of the machine that wrote them: the end of each counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from vlp.data.benchmark_sets import RetrievalSet, StoredFile
from vlp.data.caption_sets import whole_set
from vlp.resolve import nearest
from vlp.types import UserError

XM3600 = "captions.jsonl"
KEY = "image/key"
PICTURES = ("images", ".")
CLIP_BENCHMARK = re.compile(
    r"(?P<set>crossmodal3600_captions|multilingual_mscoco_captions|xtd10|xtd200|flickr30k_200)-(?P<language>.+)\.json"
)

Captions = Mapping[str, Sequence[str]]  # of each picture, by the name that the file has for it


@dataclass(frozen=True)
class MultilingualSet:
    """Pictures with captions in one or more languages, one language after the other.

    Attributes:
        found: the pictures and the captions of all languages.
        rows: of each language the rows of its captions.
    """

    found: RetrievalSet
    rows: dict[str, range]


def is_multilingual(path: Path) -> bool:
    """Whether ``path`` is one of the files, or a directory with some."""
    if path.is_dir():
        return is_multilingual(path / XM3600) or bool(_languages(path))
    if path.name != XM3600:
        return CLIP_BENCHMARK.fullmatch(path.name) is not None and path.is_file()
    try:
        with open(path, encoding="utf-8") as lines:
            return KEY in lines.readline()
    except (OSError, UnicodeDecodeError):
        return False


def read_multilingual_set(path: Path, languages: Sequence[str] = ()) -> MultilingualSet:
    """The set of ``path``: in the language of the file, else in all ``languages``, else in all there are.

    Raises:
        UserError: another content, a language that it lacks, or the set is not whole.
    """
    by_language: Mapping[str, tuple[Path, Callable[[], Captions]]]
    if path.is_dir() and (path / XM3600).is_file() and _languages(path):
        raise UserError(f"{path} holds {XM3600} and other captions: name a file, or give each its own directory")
    if path.name == XM3600 or (path / XM3600).is_file():
        by_language = _xm3600(path if path.is_file() else path / XM3600)
    else:
        by_language = {name: (file, partial(_clip_benchmark, file)) for name, file in _languages(path).items()}
    for language in languages:
        if language not in by_language:
            known = f"; it has {', '.join(by_language)}"
            raise UserError(f"{path} has no captions in '{language}'{nearest(language, list(by_language))}{known}")
    sets = {}
    for language in languages or by_language:
        file, captions = by_language[language]
        sets[language] = whole_set(file, captions(), partial(_picture, file))
    return _together(sets)


def _languages(path: Path) -> dict[str, Path]:
    """CLIP_benchmark's files by their languages."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    found = [(match, file) for file in files if (match := CLIP_BENCHMARK.fullmatch(file.name))]
    kinds = sorted({match["set"] for match, _ in found})
    if len(kinds) > 1:
        raise UserError(f"{path} holds several sets ({', '.join(kinds)}): name a file, or give each its own directory")
    return {match["language"]: file for match, file in found}


def _xm3600(file: Path) -> dict[str, tuple[Path, Callable[[], Captions]]]:
    """The captions of all pictures by language; what a picture lacks is named when the set is put together."""
    try:
        pictures = [json.loads(line) for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        languages = sorted({name for one in pictures for name, value in one.items() if isinstance(value, dict)})
        captions = {
            language: {f"{one[KEY]}.jpg": one.get(language, {}).get("caption", []) for one in pictures}
            for language in languages
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged or not Crossmodal-3600's {XM3600} ({error}): copy it again") from error
    return {language: (file, partial(captions.__getitem__, language)) for language in languages}


def _clip_benchmark(file: Path) -> Captions:
    captions: dict[str, list[str]] = {}
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8-sig"))
        for name, lines in zip(content["image_paths"], content["annotations"], strict=True):
            captions.setdefault(name, []).extend([lines] if isinstance(lines, str) else lines)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged or not CLIP_benchmark's ({error}): have it written again") from error
    return captions


def _picture(file: Path, name: str) -> StoredFile:
    parts = PurePosixPath(name).parts
    ends = [name, *("/".join(parts[start:]) for start in range(1, len(parts)))]  # a/b/c.jpg, b/c.jpg, c.jpg
    for path in (file.parent / folder / end for end in ends for folder in PICTURES):
        if path.is_file():
            return StoredFile(path, str(path))
    raise UserError(f"{file} names the picture {name}, which is not in {file.parent}/images: copy it there")


def _together(sets: Mapping[str, RetrievalSet]) -> MultilingualSet:
    """Pictures of several languages stand once."""
    row_of: dict[StoredFile, int] = {}
    texts: list[str] = []
    image_of_text: list[int] = []
    rows: dict[str, range] = {}
    for language, found in sets.items():
        row = [row_of.setdefault(image, len(row_of)) for image in found.images]
        rows[language] = range(len(texts), len(texts) + len(found.texts))
        texts += found.texts
        image_of_text += [row[image] for image in found.image_of_text]
    return MultilingualSet(RetrievalSet(list(row_of), texts, image_of_text), rows)
