"""Which samples ``vlp data filter`` drops, and why: pure functions of a shard's fingerprints and the corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlp.types import UserError

if TYPE_CHECKING:
    import numpy as np

    from data_tools._filter_corpus import Corpus
    from data_tools._filter_fingerprints import Fingerprints


_AT_LEAST_ONE = ("min_side", "min_words", "max_words", "max_caption_pictures", "max_picture_captions", "vocabulary")


@dataclass(frozen=True)
class FilterRules:
    """The thresholds; None switches a rule off. ``ALIGN`` holds the published ones."""

    min_side: int | None = None
    max_aspect: float | None = 3.0
    max_picture_captions: int | None = 1000
    distance: int = 4
    min_words: int | None = None
    max_words: int | None = None
    max_caption_pictures: int | None = 10
    vocabulary: int | None = None
    min_count: int | None = None
    duplicates: bool = False

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{option(name)} {value} must be at least 1")
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise UserError(f"--min-words {self.min_words} is above --max-words {self.max_words}: no caption passes")
        if self.max_aspect is not None and self.max_aspect <= 1:
            raise UserError(f"--max-aspect {self.max_aspect:g} must be above 1, the aspect of a square")
        if self.min_count is not None and self.min_count < 2:
            raise UserError(f"--min-count {self.min_count} must be at least 2: each word occurs once")
        if not 0 <= self.distance <= 16:
            raise UserError(f"--distance {self.distance} must be 0 to 16: unrelated pictures differ in about 32 bits")

    @property
    def needs_vocabulary(self) -> bool:
        return self.vocabulary is not None or self.min_count is not None


ALIGN = FilterRules(min_side=200, min_words=3, max_words=20)
"""Section 3 of Jia et al. 2021; its 100 million n-grams are left to ``vocabulary``, as they fit only its corpus."""


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


REASONS = {
    "small picture": "--min-side",
    "elongated picture": "--max-aspect",
    "picture with many captions": "--max-picture-captions",
    "near evaluation picture": "--against",
    "few words": "--min-words",
    "many words": "--max-words",
    "caption of many pictures": "--max-caption-pictures",
    "rare words": "--vocabulary or --min-count",
    "duplicate picture": "--duplicates",
}
"""Reason -> the option behind it, in the order in which the rules are asked."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """A row for each sample: ``reason`` is "" for what is kept; the counts are figures behind the decision."""

    reason: np.ndarray
    caption_pictures: np.ndarray
    """Different pictures that share the sample's caption."""
    picture_captions: np.ndarray
    """Different captions of the sample's picture."""


def decide(found: Fingerprints, corpus: Corpus, rules: FilterRules, samples: np.ndarray) -> Decisions:
    """The first rule, in the order of ``REASONS``, that drops each sample.

    Every rule but that of duplicates depends on the sample and on counts over the corpus alone, so the order of
    the shards does not matter. ``samples`` are the shard's ``sample_numbers``.
    """
    import numpy as np

    from data_tools._filter_corpus import lookup
    from data_tools._filter_pictures import within

    caption_pictures = lookup(corpus.shared, corpus.shared_pictures, found.caption, 1)
    picture_captions = lookup(corpus.busy, corpus.busy_captions, found.picture, 1)
    short, long = np.minimum(found.width, found.height), np.maximum(found.width, found.height)
    first = lookup(corpus.repeated, corpus.first_sample, found.picture, 0)
    is_repeated = lookup(corpus.repeated, np.ones(len(corpus.repeated), dtype=bool), found.picture, 0)
    tests: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "small picture": lambda rows: short[rows] <= _limit(rules.min_side, -1),
        "elongated picture": lambda rows: long[rows] >= _limit(rules.max_aspect, np.inf) * short[rows],
        "picture with many captions": lambda rows: picture_captions[rows] > _limit(rules.max_picture_captions, np.inf),
        "near evaluation picture": lambda rows: within(found.picture[rows], corpus.evaluation, rules.distance),
        "few words": lambda rows: found.num_words[rows] < _limit(rules.min_words, 0),
        "many words": lambda rows: found.num_words[rows] > _limit(rules.max_words, np.inf),
        "caption of many pictures": lambda rows: caption_pictures[rows] > _limit(rules.max_caption_pictures, np.inf),
        "rare words": lambda rows: (
            _has_rare(found, corpus)[rows] if rules.needs_vocabulary else np.zeros(len(rows), dtype=bool)
        ),
        "duplicate picture": lambda rows: is_repeated[rows] & (first[rows] != samples[rows]),
    }
    assert list(tests) == list(REASONS)
    reason = found.defects[found.defect].astype(object)
    for name, drops in tests.items():
        rows = np.flatnonzero(reason == "")
        reason[rows[drops(rows)]] = name
    usable = found.defect == 0
    return Decisions(reason, np.where(usable, caption_pictures, 0), np.where(usable, picture_captions, 0))


def _limit(value: float | None, off: float) -> float:
    return off if value is None else value


def _has_rare(found: Fingerprints, corpus: Corpus) -> np.ndarray:
    """bool [N]: whether one of the sample's n-grams is not in the vocabulary."""
    import numpy as np

    rare = ~np.isin(found.grams, corpus.vocabulary)
    before = np.concatenate([[0], np.cumsum(rare[found.gram])])
    return before[found.first_gram[1:]] > before[found.first_gram[:-1]]
