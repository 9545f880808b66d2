"""The figures of sets with classes, under CLIP_benchmark's names, each with its chance level and interval."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vlp.evaluation import average_precision, intervals, metrics, probe
from vlp.evaluation.linear_probe import LinearProbe

TOP = 5
UNKNOWN = (math.nan, math.nan)
LABELS = {
    "acc1": "top-1",
    "acc5": "top-5",
    "mean_per_class_recall": "mean per class",
    "mean_average_precision": "mean average precision",
    "lp_acc1": "probe: top-1",
    "lp_acc5": "probe: top-5",
    "lp_mean_per_class_recall": "probe: mean per class",
    "knn_acc1": "nearest: top-1",
    "knn_mean_per_class_recall": "nearest: mean per class",
}


class Metric(NamedTuple):
    """A share with what random answers get and its 95 % interval; NaN where it is not defined."""

    score: float
    chance: float
    interval: intervals.Interval


def label_ranks(image_ND: Tensor, class_CD: Tensor, label_N: Tensor, first_C: Tensor) -> metrics.Ranks:
    """As `metrics.label_ranks`, but of classes that the model is told in the same words the first one wins.

    That is no matter of the model: open_clip's and CLIP_benchmark's names of ImageNet have two such pairs, "missile"
    and "sunglasses", of which the order of equal scores in a sort decides elsewhere.

    Args:
        first_C: for each class the first one with the same prompts; itself in most cases.
    """
    ranks = metrics.label_ranks(image_ND, class_CD, label_N)
    classes_C = torch.arange(len(first_C))
    if torch.equal(first_C, classes_C):
        return ranks
    later_C = ((first_C[:, None] == first_C) & (classes_C > classes_C[:, None])).sum(dim=1)
    distinct, number_C = first_C.unique(return_inverse=True)
    among_distinct = metrics.label_ranks(image_ND, class_CD[distinct.to(class_CD.device)], number_C[label_N])
    return metrics.Ranks((ranks.rank_N - later_C[label_N]).clamp(min=1), among_distinct.tied_N)


def of_ranks(ranks: metrics.Ranks, label_N: Tensor, num_classes: int, prefix: str = "") -> dict[str, Metric]:
    """``acc1``, ``acc5`` (not defined below five classes) and ``mean_per_class_recall``."""
    top5 = Metric(math.nan, math.nan, UNKNOWN)
    if num_classes >= TOP:
        right_N = ranks.rank_N <= TOP
        top5 = Metric(ranks.recall(TOP), TOP / num_classes, _interval(right_N))
    first = of_right(ranks.rank_N <= 1, label_N, num_classes, prefix)
    (top1, one), (recall, mean) = first.items()
    return {top1: one, f"{prefix}acc5": top5, recall: mean}


def of_right(right_N: Tensor, label_N: Tensor, num_classes: int, prefix: str = "") -> dict[str, Metric]:
    """``acc1`` and ``mean_per_class_recall``, the mean over the classes that there are pictures of."""
    mean = metrics.mean_per_class(right_N, label_N, num_classes)[0]
    of_mean = intervals.of_category_mean(right_N.tolist(), label_N.tolist(), range(len(right_N)))
    return {
        f"{prefix}acc1": Metric(float(right_N.double().mean()), 1 / num_classes, _interval(right_N)),
        f"{prefix}mean_per_class_recall": Metric(mean, 1 / num_classes, of_mean),
    }


def of_probe(fitted: LinearProbe, image_ND: Tensor, label_N: Tensor) -> dict[str, Metric]:
    """Those of `of_ranks` with ``lp_`` before their names."""
    # The offset as one more column: then logits are products of rows, whose ranks count equality against the model.
    ones_N1 = torch.ones_like(image_ND[:, :1])
    weights_CD = torch.cat([fitted.weights_CD, fitted.offset_C[:, None]], dim=1)
    ranks = metrics.label_ranks(torch.cat([fitted.scaled(image_ND), ones_N1.to(weights_CD)], 1), weights_CD, label_N)
    return of_ranks(ranks, label_N, len(weights_CD), "lp_")


def of_nearest(
    train_ND: Tensor, train_label_N: Tensor, image_ND: Tensor, label_N: Tensor, num_classes: int, k: int
) -> dict[str, Metric]:
    """Those of `of_right` with ``knn_`` before their names: what the ``k`` nearest of the train split vote."""
    right_N = probe.knn_right(image_ND, label_N, train_ND, train_label_N, k).cpu()
    return of_right(right_N, label_N, num_classes, "knn_")


def of_several(score_NC: Tensor, shown_NC: Tensor) -> tuple[dict[str, Metric], list[float]]:
    """``mean_average_precision`` of pictures that show several classes, and that of each class (NaN: none shows it).

    Chance is the share of pictures that show a class, in the mean over the classes.
    """
    of_class = average_precision.average_precisions(score_NC, shown_NC)
    prevalence_C = shown_NC.double().mean(dim=0)
    chance = float(prevalence_C[prevalence_C > 0].mean())
    interval = average_precision.mean_interval(score_NC, shown_NC)
    return {"mean_average_precision": Metric(average_precision.mean_of(of_class), chance, interval)}, of_class


def _interval(right_N: Tensor) -> intervals.Interval:
    return intervals.of_mean(right_N.tolist(), range(len(right_N)))
