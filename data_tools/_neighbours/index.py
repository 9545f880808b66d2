"""Pass two, where an approximate search is asked for: faiss's inverted file over all pictures, mapped from one file.

A picture belongs to the nearest of K centroids, and a query is compared with the pictures of the few centroids that
are nearest to it. ``ivf`` keeps a byte a dimension of each picture, ``ivfpq`` (product quantisation, Jegou et al. 2011)
a byte for eight dimensions. K is some 4 sqrt(N), as faiss recommends below a million pictures; more would shorten the
lists but lengthen the search for them, and all N pictures ask.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from data_tools._map_shards import map_shards
from data_tools._neighbours.corpus import opened
from data_tools._neighbours.searchers import Exact, Searcher, approximate, faiss
from vlp.data.shards import LOCAL, stem
from vlp.types import UserError

EXACT_UP_TO = 200_000
CODES_UP_TO = 20_000_000
POINTS_A_LIST = 40  # faiss wants 39 or more of each centroid
LEAST = 256 * POINTS_A_LIST  # pictures, for 256 centroids of the lists and of each part of a product code
PROBES = 32
_ALL_THREADS = faiss.omp_get_max_threads()  # before anything here asks for one


@dataclass(frozen=True)
class Kind:
    """An index of faiss; ``code`` in its own words, where {parts} is the number of parts of a product code."""

    code: str
    oversampling: int


KINDS = {"ivf": Kind("SQ8", 8), "ivfpq": Kind("PQ{parts}", 32)}


@dataclass(frozen=True)
class IndexOptions:
    """``kind`` is exact or one of `KINDS`, of whose lists ``probes`` are searched at first (0 for exact)."""

    kind: str
    probes: int


def resolve(kind: str | None, probes: int | None, num_pictures: int) -> IndexOptions:
    """The index for a corpus of that size; ``kind`` None leaves the choice.

    Raises:
        UserError: an option has no effect, or there are too few pictures for an index.
    """
    if kind is None:
        sizes = (("exact", EXACT_UP_TO), ("ivf", CODES_UP_TO), ("ivfpq", num_pictures))
        kind = next(name for name, most in sizes if num_pictures <= most)
    if kind == "exact":
        if probes is not None:
            raise UserError(f"--probes {probes} has no effect on an exact search: add --index ivf, or leave it away")
        return IndexOptions(kind, 0)
    if num_pictures < LEAST:
        raise UserError(
            f"--index {kind} needs {LEAST:,} pictures or more, and there are {num_pictures:,}: leave --index away, "
            "comparing all of them takes seconds"
        )
    return IndexOptions(kind, PROBES if probes is None else probes)


def num_lists(num_pictures: int) -> int:
    """K, a power of two."""
    return 1 << int(math.log2(min(4 * math.sqrt(num_pictures), num_pictures / POINTS_A_LIST)))


def factory(kind: str, num_pictures: int, dim: int) -> str:
    """The index as faiss writes it."""
    part = next(width for width in (8, 4, 2, 1) if dim % width == 0)
    return f"IVF{num_lists(num_pictures)}," + KINDS[kind].code.format(parts=dim // part)


def searcher(folder: Path, options: IndexOptions) -> Searcher:
    """What finds candidates in the corpus of ``folder``; an index must be there."""
    if options.kind == "exact":
        return Exact(opened(folder))
    return approximate(_file(folder, options.kind, "whole"), options.probes, KINDS[options.kind].oversampling)


def build(folder: Path, paths: Sequence[str], kind: str, workers: int | None, ray: str | None) -> None:
    """Write the index of a corpus, unless it is there; a run that was killed goes on with what is missing."""
    whole, trained = _file(folder, kind, "whole"), _file(folder, kind, "trained")
    if whole.exists():
        return
    if not trained.exists():
        _write(trained, _train(folder, kind))
    codes = [_codes(folder, kind, path) for path in paths]
    encode = partial(encode_shard, folder=folder, kind=kind)
    for _ in map_shards(encode, paths, "indexing", workers, ray):
        pass
    index = faiss.read_index(str(trained))
    for file in codes:
        with np.load(file) as arrays:
            index.add_sa_codes(arrays["codes"], arrays["rows"])
    _write(whole, index)
    for file in codes:
        file.unlink()


def encode_shard(path: str, folder: Path, kind: str) -> None:
    """Leave the codes of the pictures of one shard beside the index, unless they lie there."""
    file = _codes(folder, kind, path)
    if file.exists():
        return
    faiss.omp_set_num_threads(1)
    corpus = opened(folder)
    rows = corpus.rows(path)
    rows = rows[corpus.num_captions(rows) > 0]
    index = _trained(_file(folder, kind, "trained"))
    codes = index.sa_encode(corpus.features(rows)) if len(rows) else np.zeros((0, index.sa_code_size()), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, codes=codes, rows=rows)
    LOCAL.write(str(file), buffer.getvalue())


def _train(folder: Path, kind: str) -> Any:
    """The centroids and the codes, learned from pictures drawn evenly; the same pictures give the same ones."""
    corpus = opened(folder)
    usable = np.flatnonzero(corpus.num_captions(np.arange(len(corpus))) > 0)
    wanted = POINTS_A_LIST * num_lists(len(usable))
    drawn = np.sort(np.random.default_rng(0).choice(usable, min(wanted, len(usable)), replace=False))
    features_ND = corpus.features(drawn)
    faiss.omp_set_num_threads(_ALL_THREADS)
    index = untrained(kind, len(usable), features_ND.shape[1])
    index.train(features_ND)
    return index


def untrained(kind: str, num_pictures: int, dim: int) -> Any:
    """The empty index for so many pictures."""
    index: Any = faiss.index_factory(dim, factory(kind, num_pictures, dim), faiss.METRIC_INNER_PRODUCT)
    if kind == "ivfpq":
        index.do_polysemous_training = False  # for filters that are not used here; it takes minutes
    return index


@lru_cache(maxsize=1)
def _trained(file: Path) -> Any:
    return faiss.read_index(str(file))


def _file(folder: Path, kind: str, state: str) -> Path:
    return folder / f"{kind}.{state}.faiss"


def _codes(folder: Path, kind: str, shard_path: str) -> Path:
    return folder / f"{kind}.codes" / f"{stem(shard_path)}.npz"


def _write(path: Path, index: Any) -> None:
    partial_file = path.with_name(f"{path.name}.partial")
    faiss.write_index(index, str(partial_file))
    os.replace(partial_file, path)
