"""Queries of a retrieval set with their answers, worst failures first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from markupsafe import Markup
from torch import Tensor

from vlp.evaluation.report.captions import caption
from vlp.evaluation.report.failures import spread
from vlp.evaluation.report.gather import EvaluatedSet
from vlp.evaluation.report.pictures import img
from vlp.evaluation.tasks import retrieval

NUM_FAILURES = 8
NUM_SUCCESSES = 4
NUM_ANSWERS = 5


@dataclass(frozen=True)
class Answer:
    """One candidate: ``content`` is a picture or a caption as HTML."""

    content: Markup
    score: float
    right: bool
    rank: int


@dataclass(frozen=True)
class Query:
    """A query, its first answers, and the best right answer where it is not among them."""

    content: Markup
    rank: int
    answers: list[Answer]
    best_right: Answer | None


@dataclass(frozen=True)
class Direction:
    """One direction of retrieval on one set."""

    title: str
    key: str
    num_queries: int
    num_failures: int
    failures: list[Query]
    successes: list[Query]


def gallery(shown: EvaluatedSet) -> list[Direction]:
    """Both directions of a retrieval set."""
    task, embeddings = shown.task, shown.embeddings
    assert isinstance(task, retrieval.Task)
    image_of_text = torch.tensor(task.image_of_text)
    image_ranks = [int(rank) for rank in shown.scores.details["image_to_text_rank"]]
    text_ranks = [int(rank) for rank in shown.scores.details["text_to_image_rank"]]

    def image(index: int) -> Markup:
        first = task.image_of_text.index(index)
        return img(task.image(index), task.texts[first])

    def text(index: int) -> Markup:
        return caption(task.texts[index])

    def of_image(query: int) -> Query:
        scores = similarities(embeddings.image_ND[query], embeddings.text_ND)
        return _query(image(query), image_ranks[query], scores, image_of_text == query, text)

    def of_text(query: int) -> Query:
        scores = similarities(embeddings.text_ND[query], embeddings.image_ND)
        right = torch.arange(len(scores)) == task.image_of_text[query]
        return _query(text(query), text_ranks[query], scores, right, image)

    return [
        _direction("Image → text", "image_to_text", image_ranks, range(len(image_ranks)), of_image),
        _direction("Text → image", "text_to_image", text_ranks, task.image_of_text, of_text),
    ]


def similarities(query_D: Tensor, candidate_ND: Tensor) -> Tensor:
    """Cosines of one query with N candidates, rounded as the metrics round them, so that ties are the same ties."""
    return (candidate_ND.double() @ query_D.double()).float()


def ranking(scores_N: Tensor, right_N: Tensor) -> list[int]:
    """Candidates from best to worst; at equal scores wrong ones first, as the metrics count them."""
    scores, right = scores_N.tolist(), right_N.tolist()
    return sorted(range(len(scores)), key=lambda row: (-scores[row], right[row]))


def worst(ranks: Sequence[int], picture_of: Sequence[int], number: int) -> list[int]:
    """Queries whose best right answer stands lowest (and not first), at most one for each picture."""
    chosen: dict[int, int] = {}
    for query in sorted(range(len(ranks)), key=lambda query: -ranks[query]):
        if ranks[query] <= 1 or len(chosen) == number:
            break
        chosen.setdefault(picture_of[query], query)
    return list(chosen.values())


def _direction(
    title: str, key: str, ranks: Sequence[int], picture_of: Sequence[int], show: Callable[[int], Query]
) -> Direction:
    right = [query for query, rank in enumerate(ranks) if rank == 1]
    failures = worst(ranks, picture_of, NUM_FAILURES)
    return Direction(
        title,
        key,
        len(ranks),
        len(ranks) - len(right),
        [show(query) for query in failures],
        [show(query) for query in spread(right, NUM_SUCCESSES)],
    )


def _query(content: Markup, rank: int, scores_N: Tensor, right_N: Tensor, show: Callable[[int], Markup]) -> Query:
    order = ranking(scores_N, right_N)
    first_right = next(place for place, row in enumerate(order) if right_N[row])
    answers = [
        Answer(show(row), scores_N[row].item(), bool(right_N[row]), place + 1)
        for place, row in enumerate(order[:NUM_ANSWERS])
    ]
    best_right = None
    if first_right >= NUM_ANSWERS:
        row = order[first_right]
        best_right = Answer(show(row), scores_N[row].item(), True, rank)
    return Query(content, rank, answers, best_right)
