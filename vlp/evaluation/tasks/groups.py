"""Classes of which the worst group counts: FMoW, GeoDE and Dollar Street, and iWildCam's macro F1, as DataComp asks.

Asked for by name, ``groups:PATH``, as the layout is that of a set with classes: CLIP_benchmark's, with an ``npy``
beside each picture that holds its group (github.com/mlfoundations/datacomp; WILDS, Koh et al., arXiv:2012.07421; GeoDE,
arXiv:2301.02560; Dollar Street, Rojas et al. 2022). Which set it is, the name of the directory tells.

- ``acc_worst_region`` (FMoW), ``acc_wg`` (GeoDE, by region), ``acc_top5_wg`` (Dollar Street, by income): the share of
  right answers in the group where it is lowest, of those that have pictures. Of FMoW all regions count, also the one
  that WILDS calls "Other", with few pictures: WILDS leaves it out by its name, which DataComp's evaluator lacks.
- ``F1-macro_all`` (iWildCam): the mean over the classes that pictures show of 2 TP / (2 TP + FP + FN).

Which answers are right is what `tasks.classification` says, ties and classes of equal prompts included.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vlp.data.benchmark_sets import read_metadata
from vlp.evaluation import intervals
from vlp.evaluation.classification_options import ClassificationOptions
from vlp.evaluation.tasks import base, classification
from vlp.types import UserError

ROWS = 1 << 14  # pictures whose classes are told at once


@dataclass(frozen=True)
class _Asked:
    """The metric of a set: by the values of the column ``field`` of its metadata, right within the first ``top``."""

    metric: str
    group: str = ""
    field: int = 0
    top: int = 1


ASKED = {
    "fmow": _Asked("acc_worst_region", "region"),
    "geode": _Asked("acc_wg", "region"),
    "dollar_street": _Asked("acc_top5_wg", "income", top=5),
    "iwildcam": _Asked("F1-macro_all"),
}


class Task(classification.Task):
    layout = ""

    def __init__(self, directory: Path, options: ClassificationOptions | None = None) -> None:
        known = [asked for key, asked in ASKED.items() if key in Path(os.path.abspath(directory)).name]
        if not known:
            raise UserError(f"groups:{directory} is none of {', '.join(ASKED)}, by its name: leave out groups:")
        super().__init__(directory, options)
        self.asked = known[0]
        self.group_N = read_metadata(directory)[:, self.asked.field] if self.asked.group else None

    @staticmethod
    def detects(directory: Path) -> bool:
        return False

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        scores = super().score(embeddings)
        asked, num_classes = self.asked, len(self.classnames)
        rank_N = torch.tensor(scores.details["rank_of_label"])
        if self.group_N is None:
            first_C = torch.tensor(self.prompts.first_of_class)
            told_N = told(embeddings.image_ND, embeddings.text_ND, self.label_N, rank_N <= 1, first_C)
            value = macro_f1(told_N, self.label_N, num_classes)
            return _with_main(scores, asked.metric, "macro F1", value, float("nan"), None)
        chance = min(1.0, asked.top / num_classes)
        rows = by_group(rank_N <= asked.top, self.group_N, asked.group, chance)
        worst = min(rows, key=lambda row: row.score)
        label = f"top-{asked.top} of the worst {asked.group} ({worst.name})"
        found = _with_main(scores, asked.metric, label, worst.score, chance, worst.interval)
        return replace(found, categories=rows)


def by_group(right_N: Tensor, group_N: Tensor, name: str, chance: float) -> list[base.Category]:
    """The share of right answers in each group that has pictures."""
    rows = []
    for group in group_N.unique().tolist():
        own = right_N[group_N == group].tolist()
        interval = intervals.of_mean(own, range(len(own)))
        rows.append(base.Category(name, str(group), len(own), sum(own) / len(own), interval, chance))
    return rows


def told(image_ND: Tensor, class_CD: Tensor, label_N: Tensor, right_N: Tensor, first_C: Tensor) -> Tensor:
    """The class that each picture is taken for (N), on the CPU: its own where it is right, else the best of the others.

    Args:
        first_C: for each class the first one with the same prompts, which stands for it.
    """
    best = []
    for part_ND, label_P in zip(image_ND.split(ROWS), label_N.split(ROWS), strict=True):
        score_PC = part_ND.double() @ class_CD.double().T
        best.append(score_PC.scatter(1, label_P[:, None].to(score_PC.device), -torch.inf).argmax(dim=1).cpu())
    return torch.where(right_N, label_N, first_C[torch.cat(best)])


def macro_f1(predicted_N: Tensor, label_N: Tensor, num_classes: int) -> float:
    """The mean of the classes' F1, of those that ``label_N`` has."""
    right = label_N[predicted_N == label_N].bincount(minlength=num_classes).double()
    told, shown = (values.bincount(minlength=num_classes).double() for values in (predicted_N, label_N))
    f1_C = 2 * right / (told + shown).clamp(min=1)
    return float(f1_C[shown > 0].mean())


def _with_main(
    scores: base.Scores, metric: str, label: str, value: float, chance: float, interval: intervals.Interval | None
) -> base.Scores:
    return replace(
        scores,
        metrics={metric: value, **scores.metrics},
        chance={metric: chance, **scores.chance},
        labels={metric: label, **scores.labels},
        intervals={**({metric: interval} if interval is not None else {}), **scores.intervals},
    )
