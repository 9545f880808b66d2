"""Which of the candidates become neighbours, and why the others do not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from data_tools._neighbours.corpus import Corpus
from data_tools._neighbours.job import Job
from data_tools._neighbours.searchers import Searcher

ACCEPTED = "accepted"
REASONS = {
    "same picture": "its picture has the same bytes",
    "near duplicate": "it is more similar than --duplicate-above and looks the same",
    "same caption": "a caption of it is a caption of the sample: it would be no wrong one",
    "repeated neighbour": "its picture has the bytes of a nearer neighbour",
}
_CODES = {name: number for number, name in enumerate(("", ACCEPTED, "itself", *REASONS))}
SAME_LOOK = 2.0
"""Of 255: copies of 4 x 4 pixels of two pictures that differ by less on average come from the same picture.

On 948 stamps and 6,355 emoji: 99 % of pictures encoded again as JPEG of quality 90, and half of those at half size
with quality 75. Similarity alone cannot tell: small models give different drawings 0.99."""
MOST_CANDIDATES = 4096
_HELD = 1 << 22  # candidates asked for at once
_COMPARED = 1 << 15  # candidates whose features are in memory at once


@dataclass
class Found:
    """For each query its candidates, nearest first, with similarities and what became of them.

    Candidates after the last neighbour that was wanted are not looked at: their fate is "".
    """

    rows: list[np.ndarray]
    similarities: list[np.ndarray]
    fates: list[np.ndarray]
    """uint8; numbers of `fate_names`."""

    def neighbours(self, query: int) -> np.ndarray:
        return self.rows[query][self.fates[query] == _CODES[ACCEPTED]]

    def nearest(self, query: int) -> float | None:
        """The similarity of the nearest neighbour."""
        accepted = self.similarities[query][self.fates[query] == _CODES[ACCEPTED]]
        return float(accepted[0]) if len(accepted) else None

    def passed_over(self) -> Counter[str]:
        """How many candidates were passed over for which reason, where neighbours were still wanted."""
        if not self.fates:
            return Counter()
        counts = np.bincount(np.concatenate(self.fates), minlength=len(_CODES))
        return Counter({name: int(counts[_CODES[name]]) for name in REASONS if counts[_CODES[name]]})


def fate_names() -> list[str]:
    return list(_CODES)


def find(own: np.ndarray, corpus: Corpus, searcher: Searcher, job: Job) -> Found:
    """Neighbours of the rows ``own``, which can all be used.

    Where candidates do not suffice, more are asked for, up to `MOST_CANDIDATES` of the nearest.
    """
    query_ND = corpus.features(own) if len(own) else np.zeros((0, job.dim), dtype=np.float32)
    found = Found([_NOTHING] * len(own), [_NOTHING] * len(own), [_NOTHING] * len(own))
    most = min(corpus.num_usable, MOST_CANDIDATES)
    number, effort, waiting = min(searcher.first_number(job.number), most), 0, np.arange(len(own))
    while len(waiting):
        lacking = []
        for some in _pieces(waiting, _HELD // number):
            candidates = searcher.candidates(query_ND[some], number, effort)
            for few in _pieces(np.arange(len(some)), _COMPARED // number):
                queries = some[few]
                rows, similarities = _ranked(query_ND[queries], candidates[few], corpus)
                fates = choose(own[queries], rows, similarities, corpus, job)
                for at, query in enumerate(queries.tolist()):
                    looked_at = np.count_nonzero(fates[at])
                    found.rows[query] = rows[at, :looked_at].copy()
                    found.similarities[query] = similarities[at, :looked_at].copy()
                    found.fates[query] = fates[at, :looked_at].copy()
                lacking += queries[(fates == _CODES[ACCEPTED]).sum(axis=1) < job.number].tolist()
        if number == most:
            break
        number, effort, waiting = min(4 * number, most), effort + 1, np.array(lacking, dtype=np.int64)
    return found


_NOTHING = np.zeros(0, dtype=np.int64)


def _pieces(rows: np.ndarray, size: int) -> list[np.ndarray]:
    size = max(1, size)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _ranked(query_ND: np.ndarray, rows_NK: np.ndarray, corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """Candidates with their exact similarities, nearest first, equals in the order of the rows; -1 stand last."""
    there = rows_NK >= 0
    similarities = np.full(rows_NK.shape, -np.inf, dtype=np.float32)
    features = corpus.features(np.where(there, rows_NK, 0).ravel()).reshape(*rows_NK.shape, -1)
    # Not a matrix product, whose rounding depends on where a row stands: equal pictures are equally near.
    np.copyto(similarities, np.einsum("nd,nkd->nk", query_ND, features), where=there)
    order = np.lexsort((rows_NK, -similarities), axis=1)
    return np.take_along_axis(rows_NK, order, axis=1), np.take_along_axis(similarities, order, axis=1)


def choose(own: np.ndarray, rows_NK: np.ndarray, similarity_NK: np.ndarray, corpus: Corpus, job: Job) -> np.ndarray:
    """uint8 [N, K]: the fate of candidates that stand nearest first, until ``job.number`` are accepted."""
    fate_NK = np.zeros(rows_NK.shape, dtype=np.uint8)
    chosen = np.full((len(own), job.number), -1, dtype=np.int64)
    number = np.zeros(len(own), dtype=np.int64)
    for place in range(rows_NK.shape[1]):
        active = np.flatnonzero((number < job.number) & (rows_NK[:, place] >= 0))
        if not len(active):
            break
        fates = _fates(own[active], rows_NK[active, place], similarity_NK[active, place], chosen[active], corpus, job)
        fate_NK[active, place] = fates
        accepted = active[fates == _CODES[ACCEPTED]]
        chosen[accepted, number[accepted]] = rows_NK[accepted, place]
        number[accepted] += 1
    return fate_NK


def _fates(
    own: np.ndarray, other: np.ndarray, similarity: np.ndarray, chosen: np.ndarray, corpus: Corpus, job: Job
) -> np.ndarray:
    picture = corpus.picture[other]
    difference = np.abs(corpus.look[own].astype(np.int16) - corpus.look[other]).mean(axis=1)
    tests = {
        "itself": own == other,
        "same picture": picture == corpus.picture[own],
        "near duplicate": (similarity > job.duplicate_above) & (difference < SAME_LOOK),
        "same caption": _share_a_caption(own, other, corpus),
        "repeated neighbour": ((corpus.picture[chosen] == picture[:, None]) & (chosen >= 0)).any(axis=1),
    }
    fates = np.full(len(own), _CODES[ACCEPTED], dtype=np.uint8)
    for name in reversed(tests):
        fates[tests[name]] = _CODES[name]
    return fates


def _share_a_caption(own: np.ndarray, other: np.ndarray, corpus: Corpus) -> np.ndarray:
    same = corpus.first_captions(own) == corpus.first_captions(other)
    several = np.flatnonzero(~same & ((corpus.num_captions(own) > 1) | (corpus.num_captions(other) > 1)))
    for place in several.tolist():
        same[place] = not corpus.captions(int(own[place])).isdisjoint(corpus.captions(int(other[place])))
    return same
