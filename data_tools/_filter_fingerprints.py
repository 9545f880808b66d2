"""Pass one of ``vlp data filter``: what the rules need to know of a shard, a few hundred bytes a sample."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools._filter_pictures import perceptual_hash
from data_tools._filter_text import grams, normalise, words
from vlp.data.captions import SampleTexts
from vlp.data.digest import hash64
from vlp.data.read_ahead import ReadAhead, Request
from vlp.data.samples import IMAGE_EXTENSIONS, BadSample, decode_image
from vlp.data.shards import Shard
from vlp.data.store import is_remote

UNREADABLE = "unreadable shard"
_AHEAD = 32 << 20  # bytes of a remote shard on their way, a worker
_CONNECTIONS = 4


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
    names = "\0".join((caption, *shard.extensions)).encode()
    return hash64(b"\0".join([names, *(array.tobytes() for array in (shard.keys, shard.offset, shard.size))]))


def is_done(place: Path, signature: int) -> bool:
    """Whether a run before this one was here; a shard that it could not read is tried again."""
    try:
        written, defects = load(place, "signature", "defects")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False
    return int(written) == signature and UNREADABLE not in defects


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
    wanted = (*IMAGE_EXTENSIONS, caption.partition(".")[0])
    for row, read in enumerate(_reads(shard, wanted)):
        try:
            image, text = _sample(read(), caption)
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


def _reads(shard: Shard, wanted: Collection[str]) -> Iterator[Callable[[], dict[str, bytes]]]:
    """For each sample, in order, what brings its ``wanted`` members; remote ones are on their way by then."""
    if not is_remote(shard.path):
        for row in range(len(shard)):
            yield partial(shard.read, row, wanted)
        return
    requests = [Request(row, shard.path, shard.extents(row, wanted)) for row in range(len(shard))]
    with ReadAhead(shard.store, iter(requests), _AHEAD, _CONNECTIONS) as ahead:
        for row, request in enumerate(requests):
            yield partial(_taken, shard, row, wanted, ahead, [offset for offset, _ in request.ranges])


def _taken(
    shard: Shard, row: int, wanted: Collection[str], ahead: ReadAhead, offsets: Sequence[int]
) -> dict[str, bytes]:
    return shard.members(row, wanted, dict(zip(offsets, ahead.take(row), strict=True)))


def _sample(members: Mapping[str, bytes], source: str) -> tuple[Image.Image, str]:
    """(picture, normalised caption). Raises BadSample."""
    picture = next(members[extension] for extension in IMAGE_EXTENSIONS if extension in members)
    image = decode_image(picture)
    caption = normalise(next(iter(SampleTexts(members).of(source)), ""))
    if not caption:
        raise BadSample("empty caption")
    return image, caption
