"""What became of the captions of a part of the shards, in figures that add up, and captions to look at and to test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

import numpy as np

from data_tools._language_models.survey import LeftOut
from data_tools._negatives.judge import Verdict
from data_tools._stats_figures import Figures
from vlp.data.digest import hash64
from vlp.data.shards import Shard, stem
from vlp.types import Skipped

NOTHING_TO_CHANGE, ALL_REJECTED = "nothing to change", "all changes rejected"

Judged = tuple[str, Sequence[Verdict]]  # a caption, and what was made of it


@dataclass(frozen=True, order=True)
class Drawn:
    """A caption that may be looked at: those of the smallest ``rank``, a hash, are drawn evenly from all."""

    rank: int
    shard: str
    row: int
    key: str = field(compare=False)
    caption: str = field(compare=False)
    verdicts: Sequence[Verdict] = field(compare=False)


@dataclass
class NegativeFigures:
    """Sums over captions: one of ten pictures counts ten times, as in training.

    Tables: ``fates`` of texts by (kind, rule that rejected it, "": none), ``accepted`` texts a caption, ``captions`` a
    sample. ``without`` names captions without a possible negative. ``captions`` are digests, each once. ``shown`` are
    drawn evenly from the captions for which there is a text, ``tested`` from those with a negative, at most
    ``num_shown`` and ``num_tested``.
    """

    num_shown: int
    num_tested: int
    figures: Figures = field(default_factory=Figures)
    captions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    without: LeftOut = field(default_factory=LeftOut)
    shown: list[Drawn] = field(default_factory=list)
    tested: list[Drawn] = field(default_factory=list)

    def __iadd__(self, other: NegativeFigures) -> NegativeFigures:
        self.figures += other.figures
        self.captions = np.union1d(self.captions, other.captions)
        self.without += other.without
        self.shown = nsmallest(self.num_shown, [*self.shown, *other.shown])
        self.tested = nsmallest(self.num_tested, [*self.tested, *other.tested])
        return self

    @property
    def num_captions(self) -> int:
        return self.figures.table("accepted").total()

    @property
    def num_texts(self) -> int:
        return self.figures.table("fates").total()

    def accepted(self) -> Counter[str]:
        """Kind -> texts that no rule rejected."""
        return self._sum(lambda kind, reason: None if reason else kind)

    def rejected(self) -> Counter[str]:
        """Rule -> texts that it rejected."""
        return self._sum(lambda kind, reason: reason or None)

    def _sum(self, name_of: Callable[[str, str], str | None]) -> Counter[str]:
        found: Counter[str] = Counter()
        for fate, texts in self.figures.table("fates").items():
            if (name := name_of(*fate)) is not None:
                found[name] += texts
        return found


def count(
    shard: Shard, samples: Sequence[Sequence[Judged]], seed: int, num_shown: int, num_tested: int
) -> NegativeFigures:
    """The figures of one shard, of whose rows ``samples`` tells in their order; add them up with ``+=``."""
    figures, without, drawn, digests = Figures(num_samples=len(samples)), [], [], set()
    for row, sample in enumerate(samples):
        figures.count("captions", len(sample))
        for caption, verdicts in sample:
            for verdict in verdicts:
                figures.count("fates", (verdict.kind, verdict.reason))
            accepted = sum(not verdict.reason for verdict in verdicts)
            figures.count("accepted", accepted)
            if not accepted:
                kind = ALL_REJECTED if verdicts else NOTHING_TO_CHANGE
                without.append(Skipped(kind, f"{shard.where(row)} ({caption})"))
            key = shard.key(row)
            rank = f"{seed}\0{stem(shard.path)}\0{key}\0{caption}".encode("utf-8", "surrogatepass")
            if verdicts:
                drawn.append(Drawn(hash64(rank), shard.path, row, key, caption, tuple(verdicts)))
            digests.add(hash64(caption.encode("utf-8", "surrogatepass")))
    changed = [one for one in drawn if any(not verdict.reason for verdict in one.verdicts)]
    return NegativeFigures(
        num_shown,
        num_tested,
        figures,
        np.array(sorted(digests), np.uint64),
        LeftOut.of(without),
        nsmallest(num_shown, drawn),
        nsmallest(num_tested, changed),
    )
