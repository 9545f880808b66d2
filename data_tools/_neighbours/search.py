"""Pass three: the neighbours of each shard, written as its layer, with what was counted on the way."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import vlp
from data_tools._neighbours.choose import Found, find
from data_tools._neighbours.corpus import opened
from data_tools._neighbours.index import IndexOptions, searcher
from data_tools._neighbours.job import TOOL, Job
from data_tools._neighbours.searchers import Exact
from vlp.data.index import open_shard
from vlp.data.layers import LayerWriter
from vlp.data.shards import LOCAL, stem
from vlp.types import UserError

COLUMNS = {"neighbours": "texts", "similarity": "float"}
NUM_NAMED = 100
NUM_CHECKED = 200
_BIN = 100  # similarities are counted in hundredths


@dataclass
class Counts:
    """What became of samples; adds up over shards."""

    samples: int = 0
    usable: int = 0
    neighbours: int = 0
    fewer: int = 0
    """Samples with fewer neighbours than wanted, but some."""
    without: int = 0
    """Samples that can be used and have none."""
    named: list[str] = field(default_factory=list)
    """The first of those without."""
    passed_over: Counter[str] = field(default_factory=Counter)
    nearest: Counter[int] = field(default_factory=Counter)
    """Similarity of the nearest neighbour in hundredths, rounded down -> samples."""

    def __iadd__(self, other: Counts) -> Counts:
        for name in ("samples", "usable", "neighbours", "fewer", "without"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.named = (self.named + other.named)[:NUM_NAMED]
        self.passed_over.update(other.passed_over)
        self.nearest.update(other.nearest)
        return self

    @staticmethod
    def of_json(content: Mapping[str, Any]) -> Counts:
        counts = Counts(**content)
        counts.passed_over = Counter(content["passed_over"])
        counts.nearest = Counter({int(bin_): number for bin_, number in content["nearest"].items()})
        return counts


def provenance(job: Job, options: IndexOptions, folder: Path) -> dict[str, Any]:
    """All that neighbours follow from; ``folder`` is named for the shards, which samples can be used, and the model."""
    return {
        "tool": TOOL,
        "version": vlp.__version__,
        "model": Path(job.model).name,
        "weights": job.weights,
        "caption": list(job.captions),
        "number": job.number,
        "duplicate_above": job.duplicate_above,
        "index": asdict(options),
        "corpus": folder.name,
    }


def search_shard(path: str, job: Job, options: IndexOptions, folder: Path) -> Counts:
    """Write the layer of one shard, unless it lies there.

    Raises:
        UserError: the shard was changed since pass one.
    """
    shard, _ = open_shard(path)
    writer = LayerWriter(job.root, job.name, provenance(job, options, folder), COLUMNS)
    kept = folder / "counts" / f"{stem(path)}.json"
    if writer.has(shard) and (counts := _load(kept, writer.provenance)) is not None:
        return counts
    corpus = opened(folder)
    rows = corpus.rows(path)
    if len(rows) != len(shard):
        raise UserError(f"{path} was changed while neighbours were looked for: give the command again when it is whole")
    usable = np.flatnonzero(corpus.num_captions(rows))
    found = find(rows[usable], corpus, searcher(folder, options), job)
    neighbours: list[list[str]] = [[] for _ in rows]
    similarity: list[float | None] = [None] * len(rows)
    for query, row in enumerate(usable.tolist()):
        neighbours[row] = corpus.names(found.neighbours(query))
        similarity[row] = found.nearest(query)
    keys = [shard.key(row) for row in range(len(shard))]
    counts = _count(stem(path), keys, usable, neighbours, similarity, found, job)
    writer.write(shard, keys, {"neighbours": neighbours, "similarity": similarity})
    content = {"provenance": writer.provenance, "counts": vars(counts)}
    LOCAL.write(str(kept), json.dumps(content).encode())
    return counts


def _load(path: Path, made_for: Mapping[str, Any]) -> Counts | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["provenance"] == made_for:
            return Counts.of_json(content["counts"])
    return None


def _count(
    name: str,
    keys: list[str],
    usable: np.ndarray,
    neighbours: list[list[str]],
    similarity: list[float | None],
    found: Found,
    job: Job,
) -> Counts:
    sizes = [len(neighbours[row]) for row in usable.tolist()]
    without = [f"{name}: {keys[row]}" for row in usable.tolist() if not neighbours[row]]
    return Counts(
        samples=len(keys),
        usable=len(usable),
        neighbours=sum(sizes),
        fewer=sum(0 < size < job.number for size in sizes),
        without=len(without),
        named=without[:NUM_NAMED],
        passed_over=found.passed_over(),
        nearest=Counter(int(np.floor(value * _BIN)) for value in similarity if value is not None),
    )


def recall(job: Job, options: IndexOptions, folder: Path) -> float:
    """The share of the true neighbours of `NUM_CHECKED` samples, drawn evenly, that the approximate search finds."""
    corpus = opened(folder)
    drawn = np.random.default_rng(1).choice(len(corpus), min(4 * NUM_CHECKED, len(corpus)), replace=False)
    drawn = drawn[corpus.num_captions(drawn) > 0][:NUM_CHECKED]
    true, told = find(drawn, corpus, Exact(corpus), job), find(drawn, corpus, searcher(folder, options), job)
    both = [np.isin(true.neighbours(query), told.neighbours(query)) for query in range(len(drawn))]
    return float(np.concatenate([*both, [True]]).mean()) if any(map(len, both)) else 1.0
