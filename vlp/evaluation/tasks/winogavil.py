"""WinoGAViL (Bitton et al., arXiv:2207.12576): which of 5 to 12 pictures people associate with a cue.

The official files are those of the Hugging Face data set nlphuji/winogavil: DIRECTORY holds ``winogavil_dataset.csv``
(3,563 associations) and ``winogavil_images.zip`` (2,044 pictures), or its folder ``winogavil_images``.

A model is told how many pictures, k, go with the cue, and takes the k with the highest scores. The score is the Jaccard
index of these with the right ones: h / (2k - h) where h of them are right. As in DataComp, the cue stands in lower case
after ``A`` or, before a vowel, ``An``, and the main metric is ``jaccard_score_10-12``, the mean of the associations
with 10 and 12 candidates. A wrong picture that ties with a right one (`metrics.ROUNDING`) stands before it, so that a
collapsed model gets the least that k pictures can get: 0, except where fewer than k of the candidates are wrong.

Several cues are asked about the same candidates; for intervals these are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from vlp.data.association_sets import Association, is_winogavil, read_winogavil
from vlp.evaluation import counting, intervals, metrics
from vlp.evaluation.tasks import base

MAIN = "jaccard_score_10-12"
VOWELS = "aeiou"
# By the metric the least and the most candidates of the associations that it is the mean of.
RANGES: dict[str, tuple[float, float]] = {
    MAIN: (10, 12),
    "jaccard_score_5-6": (5, 6),
    "avg_jaccard_score": (0, math.inf),
}


@dataclass(frozen=True)
class _Answers:
    """Of each association the Jaccard index, what chance gets, and whether a right picture ties with a wrong one."""

    jaccard: list[float]
    tied: list[bool]


class Task(base.Task):
    kind = "image_association"
    layout = "WinoGAViL's winogavil_dataset.csv (the Hugging Face data set nlphuji/winogavil)"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        found = read_winogavil(directory)
        self.images = found.images
        self.texts = [prompt(cue) for cue in found.cues]
        self.associations = found.associations

    @staticmethod
    def detects(directory: Path) -> bool:
        return is_winogavil(directory)

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        """DataComp's metrics; those of a number of candidates that no association has are NaN."""
        found = answers(embeddings, self.associations)
        numbers = [one.num_candidates for one in self.associations]
        chances = [chance(len(one.right), len(one.wrong)) for one in self.associations]
        boards = _numbered([frozenset(one.right + one.wrong) for one in self.associations])
        ranges = RANGES | {f"jaccard_score_{number}": (number, number) for number in sorted(set(numbers))}
        rows_of = {
            metric: [row for row, number in enumerate(numbers) if least <= number <= most]
            for metric, (least, most) in ranges.items()
        }
        score, by_chance = ({m: _mean(of, rows) for m, rows in rows_of.items()} for of in (found.jaccard, chances))
        interval = {
            metric: intervals.of_mean([found.jaccard[row] for row in rows], [boards[row] for row in rows])
            for metric, rows in rows_of.items()
        }
        return base.Scores(
            metrics=score,
            chance=by_chance,
            tie_rate=_mean(found.tied, range(len(numbers))),
            num_images=len(self.images),
            num_texts=len(self.texts),
            log={f"{self.name}/{metric}": value for metric, value in score.items() if not math.isnan(value)},
            labels={metric: _label(metric) for metric in rows_of},
            details={"jaccard": found.jaccard, "num_candidates": [*numbers], "board": [*boards]},
            intervals={metric: limits for metric, limits in interval.items() if not math.isnan(limits[0])},
            categories=[
                base.Category("candidates", str(number), len(rows_of[m]), score[m], interval[m], by_chance[m])
                for number, m in ((number, f"jaccard_score_{number}") for number in sorted(set(numbers)))
            ],
            notes=[
                f"{len(numbers):,} associations, {len(rows_of[MAIN]):,} of them with 10 to 12 candidates; "
                "cues after A or An"
            ],
        )


def prompt(cue: str) -> str:
    """As DataComp asks it."""
    return f"{'An' if cue[0].lower() in VOWELS else 'A'} {cue.lower()}"


def chance(num_right: int, num_wrong: int) -> float:
    """The expected Jaccard index of as many random pictures as are right, exactly (hypergeometric)."""
    draws = math.comb(num_right + num_wrong, num_right)
    return sum(
        math.comb(num_right, hits) * math.comb(num_wrong, num_right - hits) / draws * jaccard(hits, num_right)
        for hits in range(num_right + 1)
    )


def jaccard(hits: int, num_right: int) -> float:
    """The index of two sets of ``num_right`` each, ``hits`` of which they share."""
    return hits / (2 * num_right - hits)


def answers(embeddings: base.SetEmbeddings, associations: Sequence[Association]) -> _Answers:
    """What the features answer, ties and scores that are NaN counted against them."""
    pairs = [(image, one.cue) for one in associations for image in one.right + one.wrong]
    image_P, cue_P = torch.tensor(pairs).to(embeddings.image_ND.device).T
    scores = iter(counting.gathered_scores(embeddings.image_ND, embeddings.text_ND, image_P, cue_P).tolist())
    found = _Answers([], [])
    for one in associations:
        right = sorted((next(scores) for _ in one.right), key=lambda score: -math.inf if math.isnan(score) else score)
        wrong = [next(scores) for _ in one.wrong]
        hits = 0
        for better_right, score in enumerate(reversed(right)):
            ahead = better_right + sum(not score - other > metrics.ROUNDING for other in wrong)
            hits += ahead < len(right) and not math.isnan(score)
        found.jaccard.append(jaccard(hits, len(right)))
        found.tied.append(any(abs(score - other) <= metrics.ROUNDING for score in right for other in wrong))
    return found


def _label(metric: str) -> str:
    numbers = metric.rpartition("_")[2].replace("-", " to ")
    return "Jaccard index, all" if metric == "avg_jaccard_score" else f"Jaccard index, {numbers} candidates"


def _mean(values: Sequence[float], rows: Sequence[int]) -> float:
    return fmean(values[row] for row in rows) if rows else math.nan


def _numbered(names: Sequence[frozenset[int]]) -> list[int]:
    number_of: dict[frozenset[int], int] = {}
    return [number_of.setdefault(name, len(number_of)) for name in names]
