"""What the data sheet counts in one shard."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image

from data_tools._filter_pictures import perceptual_hash
from data_tools._stats_figures import Digests, Figures
from data_tools._verify_sample import SampleCheck, check_sample
from data_tools._verify_shard import num_bytes, of_skipped, scanned
from data_tools.verify import Defect
from vlp.data.digest import hash64
from vlp.data.samples import BadSample
from vlp.data.shards import Shard
from vlp.types import Skipped, UserError

SURE = 0.5  # a language counts from this probability on
UNSURE = "unsure"
_ORIENTATION = 0x0112
_LENGTHS = ((1, "1 word"), (3, "2 to 3 words"), (7, "4 to 7 words"))


@dataclass
class ShardFigures:
    """The figures of one shard, and what is needed to find duplicates across shards."""

    figures: Figures
    pictures: Digests
    looks: Digests | None
    captions: Digests


def survey(path: str, captions: Sequence[str]) -> ShardFigures:
    """Read one shard in full."""
    try:
        with scanned(path) as (shard, skipped):
            return _survey(shard, skipped, captions)
    except (UserError, BadSample) as error:  # a server that has died: the other shards go on
        figures = Figures()
        _note(figures, Defect("unreadable shard", path, detail=str(error)))
        return ShardFigures(figures, Digests.of(()), Digests.of(()), Digests.of(()))


def _survey(shard: Shard, skipped: Sequence[Skipped], captions: Sequence[str]) -> ShardFigures:
    path = shard.path
    figures = Figures(len(shard), num_bytes(shard))
    for one in skipped:
        _note(figures, of_skipped(path, one.kind, one.where))
    language, look = language_detector(), look_of()
    pictures: list[tuple[int, int]] = []
    looks: list[tuple[int, int]] = []
    texts: list[tuple[int, int]] = []
    for row in range(len(shard)):
        try:
            members = shard.read(row, shard.extensions)
        except BadSample as bad:
            _note(figures, Defect(bad.kind, path, shard.key(row), bad.detail))
            continue
        check = check_sample(members, captions)
        for kind, detail in check.defects:
            _note(figures, Defect(kind, path, shard.key(row), detail))
        for extension in members:
            figures.count("members", extension)
        for name, value in check.record.items():
            figures.count("json", (name, json_type(value)))
        if check.image is not None:
            data = members[check.extension]
            _count_picture(figures, data, check.image)
            pictures.append((row, hash64(data)))
            if look is not None:
                looks.append((row, look(check.image)))
        for caption in check.captions:
            _count_caption(figures, caption, language)
            texts.append((row, hash64(caption.encode("utf-8", "surrogatepass"))))
    found = Digests.of(looks) if look is not None else None
    return ShardFigures(figures, Digests.of(pictures), found, Digests.of(texts))


def read_sample(shard: Shard, row: int, captions: Sequence[str]) -> SampleCheck:
    """One sample again, for what is shown of it."""
    return check_sample(shard.read(row, shard.extensions), captions)


def json_type(value: Any) -> str:
    """JSON's name of a value's type; a list is named after its items."""
    if isinstance(value, list):
        kinds = sorted({json_type(item) for item in value})
        return f"list of {' and '.join(kinds)}" if kinds else "empty list"
    names: Mapping[type, str] = {
        bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", type(None): "null"
    }  # fmt: skip
    return names[type(value)]


def _note(figures: Figures, defect: Defect) -> None:
    figures.count("defects", defect.kind)
    figures.examples.setdefault(defect.kind, str(defect))


def _count_picture(figures: Figures, data: bytes, image: Image.Image) -> None:
    width, height = image.size
    figures.add("width", width)
    figures.add("height", height)
    figures.add("aspect", width / height)
    figures.add("picture_bytes", len(data))
    with Image.open(io.BytesIO(data)) as header:
        figures.count("formats", header.format or "unknown")
        figures.count("modes", header.mode)
        if header.has_transparency_data:
            figures.count("traits", "with transparency")
        if getattr(header, "is_animated", False):
            figures.count("traits", "animated (the first frame is used)")
        with suppress(Exception):  # a broken EXIF block turns nothing
            if header.getexif().get(_ORIENTATION, 1) in range(2, 9):
                figures.count("traits", "turned upright by EXIF")


def _count_caption(figures: Figures, caption: str, language: Callable[[str], str] | None) -> None:
    num_words = len(caption.split())
    figures.add("words", num_words)
    figures.add("characters", len(caption))
    if language is not None:
        found = language(caption)
        length = next((name for most, name in _LENGTHS if num_words <= most), "8 words or more")
        figures.count("languages", found)
        figures.count("language_lengths", (length, found != UNSURE))


def language_detector() -> Callable[[str], str] | None:
    """caption -> ISO 639 code or "unsure"; None without py3langid."""
    if importlib.util.find_spec("py3langid") is None:
        return None
    identifier = _language_model()

    def detect(caption: str) -> str:
        code, probability = identifier.classify(caption)
        return str(code) if probability >= SURE else UNSURE

    return detect


@cache
def _language_model() -> Any:
    """Loaded once in a process: that takes as long as reading a thousand small samples."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def look_of() -> Callable[[Image.Image], int] | None:
    """picture -> 64 bits of what it looks like; None without ImageHash."""
    return perceptual_hash if importlib.util.find_spec("imagehash") else None
