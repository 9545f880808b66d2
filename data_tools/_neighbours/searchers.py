"""Where candidates come from: an exact search of all features, or one of an index of faiss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_tools._neighbours.corpus import Corpus
from vlp.types import UserError

try:
    import faiss
except ModuleNotFoundError as error:
    raise UserError("vlp data neighbours needs the package faiss-cpu: pip install 'vlp[neighbours]'") from error


class Searcher(ABC):
    """Finds rows that are near to pictures; each process searches with one thread."""

    @abstractmethod
    def first_number(self, number: int) -> int:
        """How many candidates to ask for at first where ``number`` neighbours are wanted."""

    @abstractmethod
    def candidates(self, query_ND: np.ndarray, number: int, effort: int) -> np.ndarray:
        """Rows [N, number] near to each query, in any order, -1 where there are fewer; ``effort`` counts from 0."""


class Exact(Searcher):
    """Inner products with every picture, a shard at a time: memory holds one shard and the best so far."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def first_number(self, number: int) -> int:
        return max(16, 4 * number)

    def candidates(self, query_ND: np.ndarray, number: int, effort: int) -> np.ndarray:
        faiss.omp_set_num_threads(1)
        best = np.full((len(query_ND), number), -np.inf, dtype=np.float32)
        rows = np.full((len(query_ND), number), -1, dtype=np.int64)
        for block, features_MD in self._corpus.blocks():
            scores, places = faiss.knn(
                query_ND, features_MD, min(number, len(block)), metric=faiss.METRIC_INNER_PRODUCT
            )
            both = np.concatenate([best, scores], axis=1)
            keep = np.argpartition(-both, number - 1, axis=1)[:, :number]
            best = np.take_along_axis(both, keep, axis=1)
            rows = np.take_along_axis(np.concatenate([rows, block[places]], axis=1), keep, axis=1)
        return rows


class Approximate(Searcher):
    """The lists of an inverted file that lie nearest to a query; the file is mapped, so processes share it.

    ``oversampling``: candidates for each neighbour that is wanted; the coarser the codes, the more.
    """

    def __init__(self, file: Path, probes: int, oversampling: int) -> None:
        self._index: Any = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
        self._probes, self._oversampling = probes, oversampling

    def first_number(self, number: int) -> int:
        return self._oversampling * (number + 1)

    def candidates(self, query_ND: np.ndarray, number: int, effort: int) -> np.ndarray:
        faiss.omp_set_num_threads(1)
        self._index.nprobe = min(self._probes * 4**effort, self._index.nlist)
        _, rows = self._index.search(query_ND, number)
        return np.asarray(rows)


@lru_cache(maxsize=1)
def approximate(file: Path, probes: int, oversampling: int) -> Approximate:
    """Kept for the next shards of a process."""
    return Approximate(file, probes, oversampling)
