"""Which rows are nearest to a query: all of them compared, or of very many the lists of an inverted file of faiss.

The inverted file keeps fp16, so that scores are exact and only rows of lists that are not looked at can be missed. How
many lists are looked at is found when it is built: as many as it takes for a recall of the 10 nearest of 0.95 against
the comparison of all, for rows of the set and for captions of them, whichever is worse. It lies beside the embeddings
with a digest of theirs, and is built anew when they have changed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlp.search.collection import Rows
from vlp.search.job import write_whole
from vlp.types import UserError

try:
    import faiss
except ModuleNotFoundError as error:
    raise UserError("vlp search needs the package faiss-cpu: pip install 'vlp[search]'") from error

EXACT_UP_TO = 200_000
RECALL = 0.95
_NEAREST = 10
_QUERIES = 128
_LEAST_PROBES = 8

EmbedTexts = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True)
class Plan:
    """How an index was built, and what it finds: ``recall`` is that of the 10 nearest against all compared."""

    digest: str
    code: str
    probes: int
    lists: int
    recall: float
    queries: int

    def described(self) -> str:
        return (
            f"an inverted file of {self.lists:,} lists, {self.probes:,} of them looked at: recall@{_NEAREST} "
            f"{self.recall:.3f} against all compared, on {self.queries} queries"
        )


class Index:
    """``plan`` is None where all rows are compared."""

    def __init__(self, index: Any, plan: Plan | None) -> None:
        self._index, self.plan = index, plan

    def nearest(self, query_D: np.ndarray, number: int) -> list[tuple[int, float]]:
        """(row, cosine) of the nearest rows, the nearest first; equal ones in their order."""
        scores, rows = self._index.search(query_D[None].astype(np.float32), min(number, self._index.ntotal))
        found = [(int(row), float(score)) for row, score in zip(rows[0], scores[0], strict=True) if row >= 0]
        return sorted(found, key=lambda one: (-one[1], one[0]))


def open_index(directory: Path, rows: Rows, embed_texts: EmbedTexts) -> Index:
    """The index of ``rows``, which is built where there is none that is up to date.

    Args:
        embed_texts: texts -> features of length 1, to ask it with captions for its recall.
    """
    if len(rows) <= EXACT_UP_TO:
        flat = faiss.IndexFlatIP(next(rows.blocks()).shape[1])
        for block_ND in rows.blocks():
            flat.add(block_ND)
        return Index(flat, None)
    folder = directory / "index"
    file, note = folder / f"{rows.kind}.faiss", folder / f"{rows.kind}.json"
    plan = _plan(note)
    if plan is None or plan.digest != rows.digest or not file.exists():
        print(f"building the index of {len(rows):,} {rows.kind}", file=sys.stderr)
        plan = _build(folder, rows, embed_texts)
    index: Any = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
    index.nprobe = plan.probes
    return Index(index, plan)


def _plan(note: Path) -> Plan | None:
    try:
        return Plan(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _build(folder: Path, rows: Rows, embed_texts: EmbedTexts) -> Plan:
    """Write the index and what it finds; the note is last, so that an index without one is built anew."""
    from data_tools._neighbours.index import POINTS_A_LIST, num_lists

    folder.mkdir(exist_ok=True)
    file, note = folder / f"{rows.kind}.faiss", folder / f"{rows.kind}.json"
    note.unlink(missing_ok=True)
    lists = num_lists(len(rows))
    code = f"IVF{lists},SQfp16"
    sample_ND = _drawn(rows, POINTS_A_LIST * lists)
    index: Any = faiss.index_factory(sample_ND.shape[1], code, faiss.METRIC_INNER_PRODUCT)
    index.train(sample_ND)
    for block_ND in rows.blocks():
        index.add(block_ND)
    probes, recall, queries = _probes(index, rows, embed_texts)
    partial = file.with_name(f".{file.name}.partial")
    faiss.write_index(index, str(partial))
    partial.replace(file)
    plan = Plan(rows.digest, code, probes, lists, recall, queries)
    write_whole(note, asdict(plan))
    return plan


def _drawn(rows: Rows, number: int) -> np.ndarray:
    """Features of rows drawn evenly; the same rows give the same ones."""
    wanted = np.sort(np.random.default_rng(0).choice(len(rows), min(number, len(rows)), replace=False))
    found, first = [], 0
    for block_ND in rows.blocks():
        here = wanted[(wanted >= first) & (wanted < first + len(block_ND))] - first
        found.append(block_ND[here])
        first += len(block_ND)
    return np.concatenate(found)


def _probes(index: Any, rows: Rows, embed_texts: EmbedTexts) -> tuple[int, float, int]:
    """(lists to look at, recall, queries): the fewest, doubling, that find enough for the worst kind of query."""
    generator = np.random.default_rng(1)
    kinds = [_drawn(rows, _QUERIES)]
    captioned = rows.captioned()
    if rows.kind == "pictures" and len(captioned):
        drawn = generator.choice(captioned, min(_QUERIES, len(captioned)), replace=False)
        kinds.append(embed_texts([rows[int(number)].text or "" for number in drawn]))
    exact = [_exact(rows, query_ND) for query_ND in kinds]
    probes = min(_LEAST_PROBES, index.nlist)
    while True:
        index.nprobe = probes
        recall = min(_recall(index, *both) for both in zip(kinds, exact, strict=True))
        if recall >= RECALL or probes == index.nlist:
            return probes, recall, sum(map(len, kinds))
        probes = min(2 * probes, index.nlist)


def _recall(index: Any, query_ND: np.ndarray, exact_NK: np.ndarray) -> float:
    _, found_NK = index.search(query_ND, exact_NK.shape[1])
    both = [len(set(found) & set(true)) for found, true in zip(found_NK.tolist(), exact_NK.tolist(), strict=True)]
    return sum(both) / exact_NK.size


def _exact(rows: Rows, query_ND: np.ndarray) -> np.ndarray:
    """The numbers of the 10 nearest rows of each query; a file at a time."""
    heap = faiss.ResultHeap(len(query_ND), _NEAREST, keep_max=True)
    first = 0
    for block_ND in rows.blocks():
        scores, places = faiss.knn(query_ND, block_ND, min(_NEAREST, len(block_ND)), metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(scores, places + first)
        first += len(block_ND)
    heap.finalize()
    return np.asarray(heap.I)
