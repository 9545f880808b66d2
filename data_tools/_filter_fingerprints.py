"""Pass one of ``vlp data filter``: what the rules need to know of a shard, a few hundred bytes a sample."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools._filter_pictures import perceptual_hash
from data_tools._filter_text import grams, hash64, normalise, words
from vlp.data.captions import SampleTexts
from vlp.data.samples import IMAGE_EXTENSIONS, BadSample, decode_image
from vlp.data.shards import Shard

_UNREADABLE = "unreadable shard"


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """The samples of one shard, a row each, in the order of the shard.

    ``defects[defect[row]]`` says why a sample cannot be used at all ("" if it can). ``picture`` is the perceptual
    hash and ``caption`` the hash of the normalised caption. Row r has the unigrams and bigrams
    ``grams[gram[first_gram[r] : first_gram[r + 1]]]``, as often as they occur.
    """

    signature: np.ndarray
    """uint64 []: see ``shard_signature``"""
    defects: np.ndarray
    """str [K]; the first is ""."""
    defect: np.ndarray
    """uint8 [N]"""
    width: np.ndarray
    """int32 [N], pixels of the upright picture"""
    height: np.ndarray
    picture: np.ndarray
    """uint64 [N]"""
    caption: np.ndarray
    """uint64 [N]"""
    num_words: np.ndarray
    """int32 [N]"""
    grams: np.ndarray
    """uint64 [G], the different ones"""
    gram: np.ndarray
    """uint32 [total]"""
    first_gram: np.ndarray
    """int64 [N + 1]"""

    def __len__(self) -> int:
        return len(self.defect)

    def save(self, path: Path) -> None:
        """Write ``path`` at once or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as stream:
            np.savez(stream, **{field.name: getattr(self, field.name) for field in fields(self)})
        os.replace(partial, path)


def load(path: Path, *names: str) -> list[np.ndarray]:
    """Some of the arrays that ``Fingerprints.save`` wrote; the others are not read."""
    with np.load(path) as arrays:
        return [arrays[name] for name in names]


def load_all(path: Path) -> Fingerprints:
    """What ``Fingerprints.save`` wrote."""
    names = [field.name for field in fields(Fingerprints)]
    return Fingerprints(*load(path, *names))


def shard_signature(shard: Shard, caption: str) -> int:
    """64 bits that change when the shard is written anew or its captions are taken from elsewhere."""
    arrays = (shard.keys, shard.first, shard.extension, shard.offset, shard.size)
    return hash64(b"\0".join([caption.encode(), *(array.tobytes() for array in arrays)]))


def is_done(place: Path, signature: int) -> bool:
    """Whether a run before this one was here; a shard that it could not read is tried again."""
    try:
        written, defects = load(place, "signature", "defects")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False
    return int(written) == signature and _UNREADABLE not in defects


def fingerprints(shard: Shard, caption: str) -> Fingerprints:
    """Read and decode every sample of ``shard``.

    ``caption`` is ``txt`` or ``json.FIELD``; of a list the first text counts.
    """
    rows = len(shard)
    defects = {"": 0}
    defect = np.zeros(rows, dtype=np.uint8)
    size = np.zeros((2, rows), dtype=np.int32)
    hashes = np.zeros((2, rows), dtype=np.uint64)
    num_words = np.zeros(rows, dtype=np.int32)
    table: dict[str, int] = {}
    occurrences: list[int] = []
    first_gram = np.zeros(rows + 1, dtype=np.int64)
    for row in range(rows):
        try:
            image, text = _sample(shard, row, caption)
            size[:, row] = image.size
            hashes[:, row] = perceptual_hash(image), hash64(text.encode("utf-8"))
            unigrams = words(text)
            num_words[row] = len(unigrams)
            occurrences += [table.setdefault(gram, len(table)) for gram in grams(unigrams)]
        except BadSample as error:
            defect[row] = defects.setdefault(error.kind, len(defects))
        first_gram[row + 1] = len(occurrences)
    return Fingerprints(
        signature=np.array(shard_signature(shard, caption), dtype=np.uint64),
        defects=np.array(list(defects)),
        defect=defect,
        width=size[0],
        height=size[1],
        picture=hashes[0],
        caption=hashes[1],
        num_words=num_words,
        grams=np.array([hash64(gram.encode("utf-8")) for gram in table], dtype=np.uint64),
        gram=np.array(occurrences, dtype=np.uint32),
        first_gram=first_gram,
    )


def _sample(shard: Shard, row: int, source: str) -> tuple[Image.Image, str]:
    """(picture, normalised caption). Raises BadSample."""
    members = shard.read(row, (*IMAGE_EXTENSIONS, source.partition(".")[0]))
    picture = next(members[extension] for extension in IMAGE_EXTENSIONS if extension in members)
    image = decode_image(picture)
    caption = normalise(next(iter(SampleTexts(members).of(source)), ""))
    if not caption:
        raise BadSample("empty caption")
    return image, caption
