"""Scores of twins: two pictures and their two captions, of which each must find its own.

After Winoground (Thrush et al., arXiv:2204.03162, section 3): the text score asks whether each picture prefers its own
caption to the other, the image score whether each caption prefers its own picture, the group score for both. Right
means higher by more than rounding (`metrics.margins`): a model that cannot tell the two apart scores 0, and the tie
rate says so. By chance a quarter of the twins is right, for the group a sixth: of the 24 orders of four scores, 4 put
both true ones on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.data.twin_sets import Twin
from vlp.evaluation import intervals, metrics
from vlp.evaluation.tasks import base

__all__ = ["CHANCE", "Answers", "Twin", "TwinTask", "answers", "categories_of", "defined"]

CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}


@dataclass(frozen=True)
class Answers:
    """What a model answers to N twins.

    A margin is how far the true score is above the false one, 0 for a tie; of each twin the smaller of two questions.
    """

    text_margin_N: Tensor
    image_margin_N: Tensor
    text_tie_rate: float
    image_tie_rate: float

    def right(self) -> dict[str, list[bool]]:
        """For each score whether a twin is right."""
        text_N, image_N = self.text_margin_N > 0, self.image_margin_N > 0
        return {"text": text_N.tolist(), "image": image_N.tolist(), "group": (text_N & image_N).tolist()}


def answers(image_ND: Tensor, text_ND: Tensor, twins: Sequence[Twin]) -> Answers:
    """The answers from the L2-normalised features of all pictures and all texts of the set."""
    image_2N, text_2N = (torch.tensor([getattr(twin, side) for twin in twins]).T for side in ("images", "texts"))
    score = {(i, t): metrics.pair_scores(image_ND[image_2N[i]], text_ND[text_2N[t]]) for i in (0, 1) for t in (0, 1)}
    text_2N_margin = torch.stack([metrics.margins(score[0, 0], score[0, 1]), metrics.margins(score[1, 1], score[1, 0])])
    image_2N_margin = torch.stack(
        [metrics.margins(score[0, 0], score[1, 0]), metrics.margins(score[1, 1], score[0, 1])]
    )
    return Answers(
        text_margin_N=text_2N_margin.amin(dim=0),
        image_margin_N=image_2N_margin.amin(dim=0),
        text_tie_rate=float((text_2N_margin == 0).double().mean()),
        image_tie_rate=float((image_2N_margin == 0).double().mean()),
    )


def categories_of(table: str, right: Sequence[bool], names: Sequence[str], chance: float) -> list[base.Category]:
    """A row for each category, in the order in which they first occur; twins without one are in none."""
    rows = []
    for name in dict.fromkeys(filter(None, names)):
        own = [value for value, other in zip(right, names, strict=True) if other == name]
        interval = intervals.of_mean(own, range(len(own)))
        rows.append(base.Category(table, name, len(own), sum(own) / len(own), interval, chance))
    return rows


def defined(of_metric: dict[str, intervals.Interval]) -> dict[str, intervals.Interval]:
    """The intervals without those of a single twin, which are NaN."""
    return {metric: interval for metric, interval in of_metric.items() if not math.isnan(interval[0])}


class TwinTask(base.Task):
    """A set of twins whose figures are Winoground's three; a subclass sets ``twins`` and ``tables``, too.

    ``tables`` groups the twins: name of the table -> the category of each twin, empty where it has none.
    """

    kind = "image_caption_selection"
    twins: Sequence[Twin]
    tables: Mapping[str, Sequence[str]]

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        """``text_acc``, ``image_acc`` and, for the group, ``acc``: CLIP_benchmark's names."""
        found = answers(embeddings.image_ND, embeddings.text_ND, self.twins)
        right = found.right()
        share = {score: sum(values) / len(values) for score, values in right.items()}
        metric_of = {"text": "text_acc", "image": "image_acc", "group": "acc"}
        return base.Scores(
            metrics={metric: share[score] for score, metric in metric_of.items()},
            chance={metric: CHANCE[score] for score, metric in metric_of.items()},
            tie_rate=(found.text_tie_rate + found.image_tie_rate) / 2,
            num_images=len(self.images),
            num_texts=len(self.texts),
            log={f"{self.name}/{score}_score": share[score] for score in metric_of},
            labels={
                "text_acc": "text score: each picture finds its caption",
                "image_acc": "image score: each caption finds its picture",
                "acc": "group score: both",
            },
            details={"text_margin": found.text_margin_N.tolist(), "image_margin": found.image_margin_N.tolist()},
            intervals=defined(
                {metric: intervals.of_mean(right[score], range(len(self.twins))) for score, metric in metric_of.items()}
            ),
            categories=[
                row
                for table, names in self.tables.items()
                for score in metric_of
                for row in categories_of(f"{table}, {score} score", right[score], names, CHANCE[score])
            ],
        )
