"""Embedding many parts: shared out, summed up, told."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from data_tools._console import by_kind
from data_tools._map_shards import Means, cores, map_shards
from data_tools._models import num_processes
from data_tools.verify import printable
from vlp.search import files
from vlp.search.embed import Embedded, embed_part
from vlp.search.files import PICTURES
from vlp.search.job import META, Job, lock, read_meta, write_whole
from vlp.search.parts import name_of, number_of, source_of
from vlp.types import Skipped

NAMED = 100  # of a kind, in meta.json; the files' own records name all


@dataclass(frozen=True)
class Outcome:
    """What is embedded of some parts, and the time that what was written now took."""

    found: Embedded
    seconds: float

    def show(self, job: Job) -> None:
        """Print counts, speed and, by kind, what was left out."""
        found, written = self.found, self.found.written_pictures + self.found.written_texts
        counts = [f"{n:,} {what}" for n, what in ((found.pictures, "pictures"), (found.texts, "texts")) if n]
        print(f"{' and '.join(counts) or 'nothing'} of these inputs in {job.directory}, {job.dimension} x {job.dtype}")
        if written:
            took = timedelta(seconds=round(self.seconds))
            rates = [
                f"{n / max(self.seconds, 1e-9):,.1f} {what}/s"
                for n, what in ((found.written_pictures, "pictures"), (found.written_texts, "texts"))
                if n
            ]
            print(f"embedded {written:,} now in {took}: {', '.join(rates)}")
        else:
            print("all of them were there already")
        for kind, number, names in by_kind(found.skipped):
            print(printable(f"  left out {number:,}, {kind}: {', '.join(names)}"))


def embed(job: Job, parts: Sequence[str], means: Means) -> Outcome:
    """Write what the files of ``parts`` lack.

    Raises:
        UserError: as `embed_part` and `map_shards`.
    """
    workers, threads = means.workers, 1
    if means.ray is None:
        workers = num_processes(job.device) if workers is None else workers
        others = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that torchrun started here, this one too
        threads = max(1, cores() // others // max(1, min(workers or cores(), len(parts))))
    start, found = time.monotonic(), Embedded()
    work = partial(embed_part, job=job, threads=threads)
    for _, done in map_shards(work, parts, "embedding", workers, means.ray, means.gpus):
        found += done
    return Outcome(found, time.monotonic() - start)


def drop_stale(job: Job, parts: Sequence[str]) -> None:
    """Remove files of parts that their source, which has become shorter, no longer has."""
    number = {source_of(part): number_of(part) + 1 for part in parts if source_of(part) != part}
    for source, count in number.items():
        while files.read_record(job.directory, name_of(f"{source}#{count}"), job.files) is not None:
            files.remove(job.directory, name_of(f"{source}#{count}"))
            count += 1


def write_counts(job: Job) -> dict[str, Any]:
    """Bring ``meta.json`` up to date with all files that are there, and return it; any process may do so."""
    with lock(job.directory):
        records = files.records(job.directory, job.files).values()
        skipped = [
            Skipped(kind, f"{record.source}: {where}".removeprefix(f"{record.source}: {record.source}: "), number)
            for record in records
            for kind, where, number in record.skipped
        ]
        kinds = {
            kind: {"count": number, "names": [one.where for one in skipped if one.kind == kind][:NAMED]}
            for kind, number, _ in by_kind(skipped)
        }
        counts = {
            "pictures": sum(r.rows for r in records if r.kind == PICTURES),
            "texts": sum(r.rows for r in records if r.kind != PICTURES),
            "files": len(records),
        }
        meta = {**read_meta(job.directory), "counts": counts, "skipped": kinds}
        write_whole(job.directory / META, meta)
        return meta
