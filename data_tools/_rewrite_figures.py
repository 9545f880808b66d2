"""What rewriting made of the captions of a part of the shards, in figures that add up, and a few samples to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import TYPE_CHECKING

import numpy as np

from data_tools._filter_text import normalise, words
from data_tools._language_models.base import Completion
from data_tools._stats_figures import Figures
from vlp.data.digest import hash64
from vlp.data.shards import stem

if TYPE_CHECKING:
    from data_tools._rewrite_gate import Verdict
    from vlp.data.shards import Shard


@dataclass(frozen=True)
class Rewritten:
    """One sample: its caption ("" where it has none), and what the model wrote for it with the gate's verdicts."""

    caption: str
    completions: Sequence[Completion] = ()
    verdicts: Sequence[Verdict] = ()


@dataclass(frozen=True, order=True)
class Drawn:
    """A sample that may be shown: those of the smallest ``rank``, a hash, are drawn evenly from all."""

    rank: int
    shard: str
    row: int
    key: str = field(compare=False)
    caption: str = field(compare=False)
    verdicts: Sequence[Verdict] = field(compare=False)


@dataclass
class RewriteFigures:
    """Sums over samples: a caption of ten pictures counts ten times, as in training, but its tokens once a shard.

    Tables: ``reasons`` of texts ("" for accepted ones), ``accepted`` rewrites a sample, the words of ``originals`` and
    of accepted ``rewrites``, ``tokens``. Spreads: ``words_before``, ``words_after``. ``captions`` are their digests,
    each once; ``drawn`` the samples to show, ``num_drawn`` at most.
    """

    num_drawn: int
    figures: Figures = field(default_factory=Figures)
    captions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    drawn: list[Drawn] = field(default_factory=list)

    def __iadd__(self, other: RewriteFigures) -> RewriteFigures:
        self.figures += other.figures
        self.captions = np.union1d(self.captions, other.captions)
        self.drawn = nsmallest(self.num_drawn, [*self.drawn, *other.drawn])
        return self


def count(shard: Shard, samples: Iterable[Rewritten], num_drawn: int, seed: int) -> RewriteFigures:
    """The figures of one shard, of whose rows ``samples`` tells in their order; add them up with ``+=``."""
    figures, drawn, seen = Figures(), [], set()
    for row, sample in enumerate(samples):
        figures.num_samples += 1
        if not sample.caption:
            figures.count("without", "caption")
            continue
        if sample.caption not in seen:
            seen.add(sample.caption)
            _add_tokens(figures.counts.setdefault("tokens", Counter()), sample.completions)
        _add_texts(figures, sample)
        key = shard.key(row)
        rank = hash64(f"{seed}\0{stem(shard.path)}\0{key}".encode("utf-8", "surrogatepass"))
        drawn.append(Drawn(rank, shard.path, row, key, sample.caption, tuple(sample.verdicts)))
    digests = np.fromiter((hash64(text.encode("utf-8", "surrogatepass")) for text in seen), np.uint64, len(seen))
    return RewriteFigures(num_drawn, figures, np.unique(digests), nsmallest(num_drawn, drawn))


def _add_tokens(table: Counter[str], completions: Sequence[Completion]) -> None:
    for completion in completions:
        table["read"] += completion.prompt_tokens
        table["written"] += completion.tokens


def _add_texts(figures: Figures, sample: Rewritten) -> None:
    original = words(normalise(sample.caption))
    figures.counts.setdefault("originals", Counter()).update(original)
    figures.add("words_before", len(original))
    accepted = [verdict.text for verdict in sample.verdicts if not verdict.reason]
    figures.count("accepted", len(accepted))
    for verdict in sample.verdicts:
        figures.count("reasons", verdict.reason)
    for text in accepted:
        rewritten = words(normalise(text))
        figures.counts.setdefault("rewrites", Counter()).update(rewritten)
        figures.add("words_after", len(rewritten))
