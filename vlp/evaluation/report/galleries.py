"""Queries with their answers, worst failures first."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from markupsafe import Markup, escape
from torch import Tensor

from vlp.evaluation.report.gather import EvaluatedSet
from vlp.evaluation.report.pictures import img
from vlp.evaluation.tasks import pairs, retrieval

NUM_FAILURES = 8
NUM_SUCCESSES = 4
NUM_ANSWERS = 5
NUM_FAILED_PAIRS = 8  # of each suite, fewer where there are many suites
NUM_RIGHT_PAIRS = 2


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


@dataclass(frozen=True)
class ShownPair:
    """A picture with its true and its false caption; the words that differ are marked."""

    image: Markup
    caption: Markup
    negative: Markup
    score: float
    negative_score: float


@dataclass(frozen=True)
class Suite:
    """The pairs of one suite, smallest margins first."""

    name: str
    num_pairs: int
    num_failures: int
    failures: list[ShownPair]
    successes: list[ShownPair]


def retrieval_gallery(shown: EvaluatedSet) -> list[Direction]:
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


def pairs_gallery(shown: EvaluatedSet) -> list[Suite]:
    """All suites of a set of caption pairs."""
    task, embeddings = shown.task, shown.embeddings
    assert isinstance(task, pairs.Task)
    num_failed = max(2, 2 * NUM_FAILED_PAIRS // max(2, len(task.suites)))
    suites = []
    for name, items in task.suites.items():
        margins = shown.scores.details[f"{name}_margin"]
        order = sorted(range(len(items)), key=lambda row: margins[row])
        failed = [row for row in order if margins[row] <= 0]
        right = order[len(failed) :]

        def show(row: int, items: Sequence = items) -> ShownPair:
            pair = items[row]
            texts = torch.tensor([pair.caption, pair.negative_caption])
            true, false = similarities(embeddings.image_ND[pair.image], embeddings.text_ND[texts]).tolist()
            marked = mark_differences(task.texts[pair.caption], task.texts[pair.negative_caption])
            return ShownPair(img(task.image(pair.image), task.texts[pair.caption]), *marked, true, false)

        suites.append(
            Suite(
                name.replace("_", " "),
                len(items),
                len(failed),
                [show(row) for row in failed[:num_failed]],
                [show(row) for row in _spread(right, NUM_RIGHT_PAIRS)],
            )
        )
    return suites


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


def caption(text: str) -> Markup:
    """A caption in its own writing direction."""
    return Markup(f'<span dir="auto">{escape(text)}</span>')


def mark_differences(true: str, false: str) -> tuple[Markup, Markup]:
    """Both captions, with the words that only one of them has at that place in ``<mark>``."""
    sides = (true.split(), false.split())
    shared: tuple[set[int], set[int]] = (set(), set())
    for block in difflib.SequenceMatcher(None, *sides, autojunk=False).get_matching_blocks():
        shared[0].update(range(block.a, block.a + block.size))
        shared[1].update(range(block.b, block.b + block.size))
    return _marked(sides[0], shared[0]), _marked(sides[1], shared[1])


def _marked(words: Sequence[str], shared: set[int]) -> Markup:
    own = Markup("<mark>{}</mark>")
    return Markup(" ").join(escape(word) if i in shared else own.format(word) for i, word in enumerate(words))


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
        [show(query) for query in _spread(right, NUM_SUCCESSES)],
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


def _spread(rows: Sequence[int], number: int) -> list[int]:
    """``number`` of ``rows``, evenly spaced, so that successes are not all of one kind."""
    if len(rows) <= number:
        return list(rows)
    return [rows[(2 * i + 1) * len(rows) // (2 * number)] for i in range(number)]
