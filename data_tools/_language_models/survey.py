"""What captions there are and how many texts are missing, before anything is paid for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_tools._language_models import completions
from data_tools._language_models.shards import Job, texts_of_shard
from vlp.data.digest import hash64
from vlp.types import Skipped, UserError

NUM_EXAMPLES = 3


@dataclass
class LeftOut:
    """Samples without a caption, and what a tar holds that is no sample: counts by kind with the first few names."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, skipped: Iterable[Skipped]) -> LeftOut:
        found = cls()
        for one in skipped:
            found += cls(Counter({one.kind: one.samples}), {one.kind: [one.where]})
        return found

    def __iadd__(self, other: LeftOut) -> LeftOut:
        self.counts += other.counts
        for kind, names in other.examples.items():
            self.examples[kind] = (self.examples.get(kind, []) + names)[:NUM_EXAMPLES]
        return self

    def lines(self) -> list[str]:
        return [
            f"left out {count:,}, {kind}: {', '.join(self.examples[kind])}{' ...' if count > NUM_EXAMPLES else ''}"
            for kind, count in self.counts.items()
        ]


@dataclass(frozen=True)
class Captions:
    """Those of one shard: how many, digests of the different ones, and how many texts each of these lacks."""

    samples: int
    captions: int
    digests: np.ndarray
    missing: np.ndarray
    left_out: LeftOut


@dataclass(frozen=True)
class Survey:
    """Those of all shards. A caption that several shards hold is counted, and asked for, once."""

    samples: int
    captions: int
    distinct: int
    missing: int
    missing_by_shard: dict[str, int]
    left_out: LeftOut

    @property
    def lacking(self) -> list[str]:
        """Shards whose own file lacks texts, which may lie in those of others: then ``missing`` can be nothing."""
        return [path for path, missing in self.missing_by_shard.items() if missing]


def look(path: str, job: Job) -> Captions:
    """Survey one shard.

    Raises:
        UserError: its file of texts cannot be used; see `completions.read`.
    """
    shard, samples, skipped = texts_of_shard(path, job.caption, job.every_caption)
    captions = [caption for own in samples for caption in own]
    texts, _ = completions.read(job.completions(path), job.origin())
    distinct = list(dict.fromkeys(captions))
    lacking = (sum((caption, number) not in texts for number in range(job.number)) for caption in distinct)
    return Captions(
        len(shard),
        len(captions),
        np.fromiter((hash64(caption.encode()) for caption in distinct), np.uint64, len(distinct)),
        np.fromiter(lacking, np.int32, len(distinct)),
        LeftOut.of(skipped),
    )


def add_up(paths: Sequence[str], shards: Sequence[Captions], source: str, may_lack_captions: bool = False) -> Survey:
    """
    Raises:
        UserError: no sample has a caption, unless they ``may_lack_captions``, as a part of the shards may.
    """
    left_out = LeftOut()
    for one in shards:
        left_out += one.left_out
    samples, captions = (sum(getattr(one, name) for one in shards) for name in ("samples", "captions"))
    if not captions and not may_lack_captions:
        raise UserError(
            f"none of the {samples:,} samples has a caption at --caption {source} "
            f"({'; '.join(left_out.lines()) or 'no samples'}): name another source, or run vlp data verify"
        )
    digests, places = np.unique(np.concatenate([one.digests for one in shards]), return_inverse=True)
    missing = np.full(len(digests), np.iinfo(np.int32).max)
    np.minimum.at(missing, places, np.concatenate([one.missing for one in shards]))
    return Survey(
        samples,
        captions,
        len(digests),
        int(missing.sum()),
        {path: int(one.missing.sum()) for path, one in zip(paths, shards, strict=True)},
        left_out,
    )
