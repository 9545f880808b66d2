"""The passes over many shards of a tool that has texts written: what is missing, what it will cost, writing it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from data_tools._language_models import estimate, progress, shards, survey
from data_tools._language_models.estimate import Measured
from data_tools._language_models.shards import Job, Progress
from data_tools._language_models.survey import Survey
from data_tools._map_shards import Means, map_shards


def look(paths: Sequence[str], job: Job, means: Means, may_lack_captions: bool) -> Survey:
    """What there is to do.

    Raises:
        UserError: no captions, unless they may be lacking, or files of texts that cannot be used.
    """
    job.origin()  # once here, not in every worker
    found = map_shards(partial(survey.look, job=job), paths, "reading captions", means.workers, means.ray)
    return survey.add_up(paths, [captions for _, captions in found], job.caption, may_lack_captions)


def measure(paths: Sequence[str], job: Job, found: Survey, means: Means) -> Measured | None:
    """How fast the missing texts come, by the first of them, which are kept; None if nothing is missing."""
    if not found.missing:
        return None
    path = max(paths, key=found.missing_by_shard.__getitem__)
    of_shard = partial(estimate.measure, job=job, others=paths)
    ((_, measured),) = map_shards(of_shard, [path], "measuring", 1, means.ray, means.gpus)
    return measured


@dataclass(frozen=True)
class Wrote:
    """What was written now."""

    progress: Progress
    seconds: float

    def lines(self) -> list[str]:
        """For a terminal; none where nothing was written."""
        if not self.progress.written:
            return []
        rate, tokens = (count / self.seconds for count in (self.progress.written, self.progress.tokens))
        took = timedelta(seconds=round(self.seconds))
        return [f"wrote {self.progress.written:,} texts in {took}: {rate:,.1f} texts/s, {tokens:,.0f} tokens/s"]


def write(paths: Sequence[str], job: Job, found: Survey, means: Means) -> Wrote:
    """In this process, whose model fills the machine, or as tasks of Ray, a shard each."""
    start = time.monotonic()
    total = Progress()
    if found.lacking and means.ray is None:
        with progress.shown(found.missing, "writing texts") as told:
            total = shards.write_texts(paths, job, told)
    elif found.lacking:
        of_shard: Callable[[str], Progress] = partial(shards.write_texts_of_shard, job=job)
        for _, done in map_shards(of_shard, found.lacking, "writing texts", means.workers, means.ray, means.gpus):
            total += done
    return Wrote(total, time.monotonic() - start)
