"""The sheet of neighbours: figures, and samples with their neighbours and what was passed over before them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools._console import by_kind
from data_tools._neighbours.choose import ACCEPTED, REASONS, fate_names, find
from data_tools._neighbours.corpus import opened
from data_tools._neighbours.index import IndexOptions, searcher
from data_tools._neighbours.job import Job
from data_tools._neighbours.search import Counts, provenance
from data_tools._stats_sheet import sample_shown
from data_tools.stats import name_of_data
from vlp.data.index import open_shard
from vlp.data.shards import Shard
from vlp.types import Skipped

KIND, VERSION = "vlp neighbours sheet", 1
NUM_SHOWN = 24
NUM_PASSED_OVER = 3  # shown of a sample


def sheet(
    paths: Sequence[str],
    job: Job,
    options: IndexOptions,
    folder: Path,
    counts: Counts,
    recall: float | None,
    skipped: Sequence[Skipped],
) -> dict[str, Any]:
    """The whole sheet, ready for ``json.dumps``; the same pictures and options give the same sheet."""
    return {
        "kind": KIND,
        "version": VERSION,
        "name": f"{name_of_data(paths)}: {job.name}",
        "origin": provenance(job, options, folder),
        "shards": len(paths),
        "samples": counts.samples,
        "usable": counts.usable,
        "neighbours": counts.neighbours,
        "fewer": counts.fewer,
        "without": {"number": counts.without, "examples": counts.named},
        "passed_over": [
            {"reason": reason, "meaning": meaning, "number": counts.passed_over[reason]}
            for reason, meaning in REASONS.items()
        ],
        "similarity": [(bin_ / 100, (bin_ + 1) / 100, number) for bin_, number in sorted(counts.nearest.items())],
        "recall": recall,
        "left_out": {kind: {"number": n, "examples": names} for kind, n, names in by_kind(skipped)},
        "sheet": _samples(paths, job, options, folder),
    }


def _samples(paths: Sequence[str], job: Job, options: IndexOptions, folder: Path) -> list[dict[str, Any]]:
    corpus = opened(folder)
    drawn = np.random.default_rng(0).choice(len(corpus), min(4 * NUM_SHOWN, len(corpus)), replace=False)
    drawn = np.sort(drawn[corpus.num_captions(drawn) > 0][:NUM_SHOWN])
    found = find(drawn, corpus, searcher(folder, options), job)
    names, pictures = fate_names(), _Pictures(paths, job)
    samples = []
    for query, row in enumerate(drawn.tolist()):
        others = zip(
            found.rows[query].tolist(), found.similarities[query].tolist(), found.fates[query].tolist(), strict=True
        )
        neighbours: list[dict[str, Any]] = []
        passed_over: list[dict[str, Any]] = []
        for other, similarity, fate in others:
            if names[fate] == ACCEPTED:
                neighbours.append(pictures.shown(*corpus.place(other)) | {"similarity": similarity})
            elif names[fate] in REASONS and len(passed_over) < NUM_PASSED_OVER:
                one = pictures.shown(*corpus.place(other))
                passed_over.append(one | {"similarity": similarity, "reason": names[fate]})
        sample = pictures.shown(*corpus.place(row))
        samples.append(sample | {"neighbours": neighbours, "passed_over": passed_over})
    return samples


class _Pictures:
    """Reads again the few samples that are shown."""

    def __init__(self, paths: Sequence[str], job: Job) -> None:
        self._paths, self._job = paths, job
        self._shards: dict[int, Shard] = {}

    def shown(self, number: int, row: int) -> dict[str, Any]:
        if number not in self._shards:
            self._shards[number] = open_shard(self._paths[number])[0]
        return sample_shown(self._shards[number], row, self._job.captions)
