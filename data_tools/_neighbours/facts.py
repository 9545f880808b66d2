"""What is kept of the samples of a shard besides their features; nothing here needs a model."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from vlp.data.samples import BadSample
from vlp.data.shards import LOCAL
from vlp.types import Skipped

LOOK = 4  # pixels a side of the copy that tells whether two pictures look the same


@dataclass(frozen=True)
class Pictures:
    """The pictures of a shard, a row a sample in its order; those that cannot be decoded have a ``defect``."""

    signature: np.ndarray
    """uint64 []: of the shard"""
    keys: np.ndarray
    """bytes [N]"""
    picture: np.ndarray
    """uint64 [N]: hash of the picture's bytes"""
    look: np.ndarray
    """uint8 [N, 48]: the picture at 4 x 4 pixels"""
    defect: np.ndarray
    """uint8 [N]: a number in ``defects``, 0 for none"""
    defects: np.ndarray
    """str [K]; the first is ''"""


@dataclass(frozen=True)
class Captions:
    """The captions of a shard. A sample may have several; one without any has a ``defect``."""

    signature: np.ndarray
    """uint64 []: of the shard, and of where captions are taken from"""
    caption: np.ndarray
    """uint64 [captions]: hashes of the normalised ones, those of row r from first_caption[r] on"""
    first_caption: np.ndarray
    """int64 [N + 1]"""
    defect: np.ndarray
    defects: np.ndarray

    @staticmethod
    def of(signature: int, found: Iterable[Sequence[int] | BadSample]) -> Captions:
        """From the hashes of each sample, or why it has none."""
        rows = list(found)
        hashes = [() if isinstance(row, BadSample) else row for row in rows]
        defect, defects = numbered([row.kind if isinstance(row, BadSample) else "" for row in rows])
        flat = np.array([one for own in hashes for one in own], dtype=np.uint64)
        ends = np.cumsum([0, *map(len, hashes)], dtype=np.int64)
        return Captions(np.array(signature, dtype=np.uint64), flat, ends, defect, defects)


Facts = TypeVar("Facts", Pictures, Captions)


def numbered(kinds: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(number of each kind, the kinds), "" being 0."""
    number = {"": 0}
    numbers = [number.setdefault(kind, len(number)) for kind in kinds]
    return np.array(numbers, dtype=np.uint8), np.array(list(number))


def save(path: Path, facts: Pictures | Captions) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **vars(facts))
    LOCAL.write(str(path), buffer.getvalue())


def load(path: Path, kind: type[Facts]) -> Facts | None:
    """What `save` wrote; None where there is no whole file of that kind."""
    try:
        with np.load(path) as arrays:
            return kind(**{name: arrays[name] for name in kind.__dataclass_fields__})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def usable(pictures: Pictures, captions: Captions) -> np.ndarray:
    """bool [N]: which samples have a picture and a caption."""
    return (pictures.defect == 0) & (captions.defect == 0)


@dataclass(frozen=True)
class Embedded:
    """What pass one tells of a shard; ``skipped`` is what cannot be used, the first sample of each kind named."""

    num_samples: int
    num_usable: int
    signature: int
    """Of the shard and of which of its samples can be used: when this changes, neighbours are others."""
    skipped: tuple[Skipped, ...]
