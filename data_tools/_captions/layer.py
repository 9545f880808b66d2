"""The captions of many shards, and what is to be said of them all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import numpy as np

from data_tools._captions.job import COLUMNS, Job
from data_tools._captions.shard import Captioned, caption_shard
from data_tools._console import by_kind
from data_tools._map_shards import Means, cores, map_shards
from data_tools._models import num_processes
from data_tools._stats_figures import Repeats, Spread, repeats
from data_tools.verify import printable
from vlp.data.index import open_shard
from vlp.data.layers import LayerReader
from vlp.types import Skipped, UserError

NUM_REPEATED = 10  # of the captions that are told most often
LOUD_SHARE = 0.1


@dataclass
class CaptionsReport:
    """What is in the layer of ``paths``. ``samples`` counts all samples of the shards, with a caption or without."""

    paths: Sequence[str]
    shards: list[Captioned] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def samples(self) -> int:
        return sum(one.samples for one in self.shards)

    @property
    def captions(self) -> int:
        return sum(len(one.captions.rows) for one in self.shards)

    @property
    def written(self) -> int:
        return sum(one.written for one in self.shards)

    @property
    def skipped(self) -> list[Skipped]:
        return [one for shard in self.shards for one in shard.skipped]

    def words(self) -> Spread:
        total = Spread()
        for shard in self.shards:
            total += shard.words
        return total

    def repeats(self) -> Repeats:
        """Captions that are the same; positions run over the captions of all shards in order."""
        return repeats(np.concatenate([one.captions.values for one in self.shards]), NUM_REPEATED)

    def place(self, position: int) -> tuple[int, int]:
        """(shard, row) of a position."""
        ends = np.cumsum([len(one.captions.rows) for one in self.shards])
        number = int(np.searchsorted(ends, position, side="right"))
        captions = self.shards[number].captions
        return number, int(captions.rows[position - int(ends[number] - len(captions.rows))])

    def caption(self, position: int, job: Job) -> str:
        number, row = self.place(position)
        return LayerReader(job.root, job.name, COLUMNS).columns_of(open_shard(self.paths[number])[0])["caption"][row]

    def show(self, job: Job) -> None:
        """Print the counts and the reasons, and loudly what looks wrong."""
        same, words = self.repeats(), self.words()
        print(f"{self.captions:,} of {self.samples:,} samples have captions, {same.distinct:,} of them different")
        if self.written:
            rate = self.written / max(self.seconds, 1e-9)
            took = timedelta(seconds=round(self.seconds))
            print(f"wrote {self.written:,} captions in {took}: {rate:,.1f} a second")
        for kind, number, names in by_kind(self.skipped):
            print(printable(f"  left out {number:,}, {kind}: {', '.join(names)}"))
        spread = words.to_json()
        if spread:
            few, middle, many = (spread["quantiles"][share] for share in ("5 %", "50 %", "95 %"))
            print(f"words a caption: median {middle:,}, 5 to 95 %: {few:,} to {many:,}")
        if short := words.counts[0] + words.counts[1]:
            print(f"{short:,} captions have fewer than two words: where one is drawn, training takes KEY.txt instead")
        if same.groups and same.groups[0][0] > max(2, LOUD_SHARE * self.captions):
            number, position = same.groups[0]
            print(
                f"WARNING: {number / self.captions:.0%} of the captions are '{self.caption(position, job)}': look at "
                "them with --report FILE before you train"
            )
        if self.captions:
            print(f"train with data.captions: [{{source: txt}}, {{source: layer.{job.name}}}]")


def write_captions(
    paths: Sequence[str],
    job: Job,
    means: Means,
    samples: int | None = None,
) -> CaptionsReport:
    """Write what the layer of each shard lacks.

    Args:
        samples: how many are captioned at the most, from the first shard on; None for all.

    Raises:
        UserError: no sample of the shards can be captioned.
    """
    paths, first = _head(paths, samples)
    workers, threads = means.workers, 1
    if means.ray is None:
        workers = num_processes("auto") if workers is None else workers
        threads = max(1, cores() // max(1, min(workers or cores(), len(paths))))
    report, start = CaptionsReport(paths), time.monotonic()
    work = partial(caption_shard, job=job, first=first, threads=threads)
    for _, done in map_shards(work, paths, "captioning", workers, means.ray, means.gpus):
        report.shards.append(done)
    report.seconds = time.monotonic() - start
    if not report.captions:
        skipped = report.skipped
        example = f" ({skipped[0].kind}: {skipped[0].where})" if skipped else ""
        raise UserError(f"no sample with a picture in {len(paths):,} shards{example}: run vlp data verify")
    return report


def _head(paths: Sequence[str], samples: int | None) -> tuple[list[str], dict[str, int]]:
    """The shards that hold the first ``samples``, and how many of the last one count."""
    if samples is None:
        return list(paths), {}
    found: list[str] = []
    for path in paths:
        found.append(path)
        there = len(open_shard(path)[0])
        if there >= samples:
            return found, {path: samples}
        samples -= there
    return found, {}
