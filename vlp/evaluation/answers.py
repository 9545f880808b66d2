"""How each question of a set was answered, kept beside a result so that models can be compared without them.

Arrays under the names of `Scores.details`, and what these leave out: which picture a question is about, the first
answers, the class that was taken for the true one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vlp.evaluation.choices import ChoiceTask
from vlp.evaluation.tasks import base, classification, retrieval, winogavil

FIRST = 5  # answers kept of a query
MOST_PAIRS = 200_000_000  # of queries and candidates: beyond, ranks are kept, and answers are not
CHUNK = 1 << 24  # similarities computed at once: 64 MiB

Arrays = dict[str, np.ndarray]


def of(task: base.Task, scores: base.Scores, embeddings: base.SetEmbeddings | None) -> Arrays:
    """The arrays, an entry a question (or a class)."""
    found = {name: _compact(values) for name, values in scores.details.items()}
    if isinstance(task, retrieval.Task):
        found |= _of_retrieval(task, embeddings)
    elif isinstance(task, ChoiceTask):
        found |= {"picture": np.array([choice.image for choice in task.choices], dtype=np.int32)}
    elif isinstance(task, classification.Task) and embeddings is not None and "rank_of_label" in found:
        found["label"] = np.asarray(task.label_N, dtype=np.int32)
        found["predicted"] = _first(embeddings.image_ND, embeddings.text_ND, 1)[:, 0]
    return found


def _of_retrieval(task: retrieval.Task, embeddings: base.SetEmbeddings | None) -> Arrays:
    found = {"text_to_image_picture": np.array(task.image_of_text, dtype=np.int32)}
    if embeddings is None or len(task.images) * len(task.texts) > MOST_PAIRS:
        return found
    image_ND, text_ND = embeddings.image_ND, embeddings.text_ND
    return found | {
        "image_to_text_first": _first(image_ND, text_ND, FIRST),
        "text_to_image_first": _first(text_ND, image_ND, FIRST),
    }


def _first(query_ND: Tensor, candidate_MD: Tensor, number: int) -> np.ndarray:
    """The candidates with the highest similarities, best first (N x at most ``number``)."""
    number = min(number, len(candidate_MD))
    parts = query_ND.split(max(1, CHUNK // len(candidate_MD)))
    rows = [(part @ candidate_MD.T).topk(number, dim=1).indices for part in parts]
    return torch.cat(rows).to(torch.int32).cpu().numpy()


def _compact(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values)
    whole = np.all(np.isfinite(array)) and np.all(array == np.round(array))
    return array.astype(np.int32 if whole else np.float32)


def right(metric: str, answers: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """For a metric that is a mean of right answers: of each question whether it was right (float), about which picture
    it was, and the category whose means are averaged; None for other metrics and where arrays are missing.
    """
    if "jaccard" in answers:
        return _right_associations(metric, answers)
    name, _, depth = metric.partition("@")
    k = int(depth) if depth.isdecimal() else {"acc5": 5}.get(metric, 1)
    ranks = {
        "text_retrieval_recall": "image_to_text_rank",
        "image_retrieval_recall": "text_to_image_rank",
        "acc1": "rank_of_label",
        "acc5": "rank_of_label",
        "mean_per_class_recall": "rank_of_label",
    }.get(name, "")
    if ranks in answers:
        right_N = (answers[ranks] <= k).astype(float)
    elif metric == "text_acc" and "margin" in answers:
        right_N = (answers["margin"] > 0).astype(float)
    elif metric in ("text_acc", "image_acc", "acc") and "image_margin" in answers:
        both = {"text_acc": ("text_margin",), "image_acc": ("image_margin",)}.get(
            metric, ("text_margin", "image_margin")
        )
        right_N = np.logical_and.reduce([answers[margin] > 0 for margin in both]).astype(float)
    else:
        return None
    everything = np.arange(len(right_N))
    picture_N = answers.get("text_to_image_picture" if ranks == "text_to_image_rank" else "picture", everything)
    if metric == "mean_per_class_recall" and "label" not in answers:
        return None
    category_N = answers["label"] if metric == "mean_per_class_recall" else np.zeros_like(everything)
    return right_N, picture_N, category_N


def _right_associations(
    metric: str, answers: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    if metric not in winogavil.RANGES:
        return None
    least, most = winogavil.RANGES[metric]
    asked_N = (least <= answers["num_candidates"]) & (answers["num_candidates"] <= most)
    jaccard_N = answers["jaccard"][asked_N].astype(float)
    return jaccard_N, answers["board"][asked_N], np.zeros(len(jaccard_N), dtype=int)
