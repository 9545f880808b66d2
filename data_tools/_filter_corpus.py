"""Between the passes: what the samples of all shards say together.

Only 64-bit hashes are sorted, in parts of 25 million rows by ranges of the hash, so that the sorting takes about 1 GB
however large the corpus is; the files of pass one are read once for each part. What stays are tables of what
occurs more than once, 12 bytes an entry. For 100 million captions: four parts, and at the most some 1 GB of tables.
The vocabulary holds 16 bytes an n-gram while it is made (1.6 GB for ALIGN's 100 million) and 8 bytes later. Telling
the first of duplicate pictures holds 16 bytes for each sample that passed the other rules, and twice that
while it sorts: 5 GB for 100 million. The tables are files that the workers map, so a machine holds them once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from data_tools._filter_fingerprints import load

PART = 25_000_000  # rows sorted at once


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tables of hashes (uint64, sorted) with what belongs to each.

    A caption or picture that the first two tables lack counts once, and a picture that ``repeated`` lacks is its
    only one. ``vocabulary`` holds the frequent n-grams, ``evaluation`` the perceptual hashes of pictures
    that training must not see. ``first_sample`` is a number of ``sample_numbers``.
    """

    shared: np.ndarray
    shared_pictures: np.ndarray
    busy: np.ndarray
    busy_captions: np.ndarray
    vocabulary: np.ndarray
    evaluation: np.ndarray
    repeated: np.ndarray
    first_sample: np.ndarray

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            partial = folder / f"{field.name}.partial.npy"
            np.save(partial, getattr(self, field.name))
            os.replace(partial, folder / f"{field.name}.npy")

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        return cls(*(_mapped(folder / f"{field.name}.npy") for field in fields(cls)))


def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def lookup(table: np.ndarray, values: np.ndarray, queries: np.ndarray, missing: int) -> np.ndarray:
    """``values`` of the ``queries`` in the sorted ``table``, ``missing`` for those it lacks."""
    if not len(table):
        return np.full(len(queries), missing, dtype=values.dtype)
    place = np.searchsorted(table, queries).clip(max=len(table) - 1)
    return np.where(table[place] == queries, values[place], values.dtype.type(missing))


def sample_numbers(shard_name: int, rows: int) -> np.ndarray:
    """uint64 [N]: a number for each sample of a shard, from 64 bits that stand for the shard."""
    return np.uint64(shard_name) + np.arange(rows, dtype=np.uint64)


def different_partners(files: Sequence[Path], of: str, partner: str, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """(values of ``of`` with two or more different values of ``partner``, how many), over all usable samples.

    ``of="caption", partner="picture"`` tells how many pictures share a caption. uint64 [M] sorted, uint32 [M].
    """
    values, counts = [], []
    for in_part in _parts(num_samples):
        left, right = [], []
        for file in files:
            one, other, defect = load(file, of, partner, "defect")
            chosen = (defect == 0) & in_part(one)
            left.append(one[chosen])
            right.append(other[chosen])
        pairs = np.stack([_joined(left), _joined(right)])
        pairs = pairs[:, np.lexsort(pairs[::-1])]
        different = np.ones(pairs.shape[1], dtype=bool)
        different[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
        value, count = np.unique(pairs[0, different], return_counts=True)
        values.append(value[count > 1])
        counts.append(count[count > 1].astype(np.uint32))
    return _joined(values), _joined(counts, np.uint32)


def vocabulary(files: Sequence[Path], size: int | None, min_count: int) -> np.ndarray:
    """The n-grams that occur at least ``min_count`` times and are among the ``size`` most frequent ones.

    Unigrams and bigrams are counted together. Those as frequent as the last one all belong to it, so the outcome
    does not depend on any order. uint64, sorted.
    """
    total = sum(len(load(file, "grams")[0]) for file in files)
    kept, counts = _joined([]), _joined([], np.int64)
    for in_part in _parts(total):
        grams, occurrences = [], []
        for file in files:
            gram, index = load(file, "grams", "gram")
            chosen = in_part(gram)
            grams.append(gram[chosen])
            occurrences.append(np.bincount(index, minlength=len(gram))[chosen])
        gram, inverse = np.unique(_joined(grams), return_inverse=True)
        count = np.zeros(len(gram), dtype=np.int64)
        np.add.at(count, inverse, _joined(occurrences, np.int64))
        kept, counts = np.concatenate([kept, gram]), np.concatenate([counts, count])
        least = min_count
        if size is not None and len(kept) > size:
            least = max(least, int(np.partition(counts, -size)[-size]))
        kept, counts = kept[counts >= least], counts[counts >= least]
    return np.sort(kept)


def first_samples(candidates: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(pictures of two or more samples, the first sample of each) of (pictures, samples) shard by shard, in order."""
    both = list(candidates)
    pictures, samples = _joined([p for p, _ in both]), _joined([s for _, s in both])
    repeated, first, count = np.unique(pictures, return_index=True, return_counts=True)
    return repeated[count > 1], samples[first[count > 1]]


def _parts(rows: int) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """For each part of the hashes a function that marks those in it; parts in the order of their hashes."""
    number = -(-rows // PART) or 1
    edges = [(1 << 64) * part // number for part in range(number + 1)]
    for low, high in pairwise(edges):
        yield partial(_between, low=np.uint64(low), high=np.uint64(high - 1))


def _between(hashes: np.ndarray, low: np.uint64, high: np.uint64) -> np.ndarray:
    return (hashes >= low) & (hashes <= high)


def _joined(arrays: Sequence[np.ndarray], kind: type = np.uint64) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=kind), *arrays])
