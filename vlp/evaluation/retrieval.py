"""What sets of retrieval share: recalls both ways with chance and intervals, figures of the ranks, means over folds.

Image -> text counts a picture as right at K when any of its captions is among the first K; text -> image asks each
caption for its picture. RSUM is the sum of the six recalls in per cent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vlp.evaluation import intervals, metrics
from vlp.evaluation.tasks.base import Scores, SetEmbeddings
from vlp.evaluation.team import Team

T = TypeVar("T")

RECALL_AT = (1, 5, 10)
FOLDS = 5
FOUND = {"image_to_text": "text_retrieval", "text_to_image": "image_retrieval"}  # CLIP_benchmark names what is found
SHORT = {"image_to_text": "i2t", "text_to_image": "t2i"}


def label(direction: str, about: str) -> str:
    """What a table calls a figure of a direction, as ``image -> text R@1``."""
    return f"{direction.replace('_to_', ' -> ')} {about}"


@dataclass(frozen=True)
class Direction:
    """One direction of one set.

    Attributes:
        name: ``image_to_text`` or ``text_to_image``.
        num_positives: of each query, how many of the ``num_candidates`` are right.
        picture_N: of each query, the row of the picture that it is or is about.
    """

    name: str
    ranks: metrics.Ranks
    num_positives: Sequence[int]
    num_candidates: int
    picture_N: Tensor

    def recalls(self) -> dict[str, float]:
        """By CLIP_benchmark's names."""
        return {f"{FOUND[self.name]}_recall@{k}": self.ranks.recall(k) for k in RECALL_AT}

    def chances(self) -> dict[str, float]:
        return {
            f"{FOUND[self.name]}_recall@{k}": metrics.chance_any_of(self.num_positives, self.num_candidates, k)
            for k in RECALL_AT
        }

    def right_NK(self) -> np.ndarray:
        """1 where a query is right at each of `RECALL_AT`, else 0."""
        return (self.ranks.rank_N[:, None] <= torch.tensor(RECALL_AT)).double().numpy()

    def intervals(self) -> dict[str, intervals.Interval]:
        found = intervals.of_means(self.right_NK(), self.picture_N.numpy())
        return dict(zip(self.recalls(), found, strict=True))

    def labels(self) -> dict[str, str]:
        return {f"{FOUND[self.name]}_recall@{k}": label(self.name, f"R@{k}") for k in RECALL_AT}

    def rank_figures(self) -> dict[str, float]:
        return {f"{self.name}_mean_rank": self.ranks.mean(), f"{self.name}_median_rank": self.ranks.median()}

    def log(self) -> dict[str, float]:
        """By the names that open_clip logs."""
        return {f"{self.name}_R@{k}": self.ranks.recall(k) for k in RECALL_AT} | self.rank_figures()


def directions(
    image_ND: Tensor, text_ND: Tensor, image_of_text: Tensor, team: Team
) -> tuple[tuple[Direction, Direction], float]:
    """Both directions of a set, and its tie rate; the same on every process of ``team``, which shares the work."""
    ranks = metrics.retrieval_ranks(image_ND, text_ND, image_of_text, team=team)
    num_images, num_texts = len(image_ND), len(text_ND)
    texts_of_image = image_of_text.bincount(minlength=num_images).tolist()
    both = (
        Direction("image_to_text", ranks.image_to_text, texts_of_image, num_texts, torch.arange(num_images)),
        Direction("text_to_image", ranks.text_to_image, [1] * num_texts, num_images, image_of_text),
    )
    return both, ranks.tie_rate()


def rsum(recalls: dict[str, float]) -> float:
    return 100 * sum(recalls.values())


@dataclass(frozen=True)
class Figure:
    """One figure of one direction beside the recalls, under the names of ECCV Caption's package."""

    name: str
    direction: str
    about: str
    score: float
    chance: float
    interval: intervals.Interval | None = None

    @property
    def metric(self) -> str:
        return f"{self.name}_{SHORT[self.direction]}"


def with_figures(scores: Scores, figures: Sequence[Figure], name: str, first: bool = False) -> Scores:
    """The scores of the set ``name`` and ``figures``, behind or before them."""

    def both(own: dict[str, T], more: dict[str, T]) -> dict[str, T]:
        return more | own if first else own | more

    return replace(
        scores,
        metrics=both(scores.metrics, {one.metric: one.score for one in figures}),
        chance=both(scores.chance, {one.metric: one.chance for one in figures}),
        labels=both(scores.labels, {one.metric: label(one.direction, one.about) for one in figures}),
        intervals=both(scores.intervals, {one.metric: one.interval for one in figures if one.interval}),
        log=both(scores.log, {f"{name}/{one.direction}_{one.name}": one.score for one in figures}),
    )


def fold_recalls(embeddings: SetEmbeddings, image_of_text: Tensor) -> list[Figure]:
    """Mean recalls over folds, the fifths of the pictures in the order of the set; COCO's 5,000 give its 1K figures."""
    folds = list(_folds(embeddings.image_ND, embeddings.text_ND, image_of_text, embeddings.team))
    figures = []
    for way, direction in enumerate(FOUND):
        scores, chances = [fold[way].recalls() for fold in folds], [fold[way].chances() for fold in folds]
        for k in RECALL_AT:
            name = f"{FOUND[direction]}_recall@{k}"
            score, chance = fmean(one[name] for one in scores), fmean(one[name] for one in chances)
            figures.append(Figure(f"coco_1k_r{k}", direction, f"R@{k}, {FOLDS} folds", score, chance))
    return figures


def _folds(
    image_ND: Tensor, text_ND: Tensor, image_of_text: Tensor, team: Team
) -> Iterator[tuple[Direction, Direction]]:
    ends = [len(image_ND) * fold // FOLDS for fold in range(FOLDS + 1)]
    for start, end in pairwise(ends):
        texts = ((image_of_text >= start) & (image_of_text < end)).nonzero().flatten()
        yield directions(image_ND[start:end], text_ND[texts], image_of_text[texts] - start, team)[0]
