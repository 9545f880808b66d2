"""Twins: two pictures and their two captions, the four scores, and which questions a model answers wrongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from markupsafe import Markup

from vlp.evaluation import metrics, twins
from vlp.evaluation.report.captions import mark_differences
from vlp.evaluation.report.failures import Answered, Gallery, score_texts, worst_first
from vlp.evaluation.report.gather import EvaluatedSet
from vlp.evaluation.report.pictures import img


@dataclass(frozen=True)
class Cell:
    """The score of a caption with a picture: its ``own`` one, or the other, which ``wins`` where a question fails."""

    score: str
    kind: Literal["own", "wins", ""]


@dataclass(frozen=True)
class ShownTwin:
    """``cells[c][p]`` is of caption c with picture p; ``verdicts`` are the questions that count, and whether right."""

    images: tuple[Markup, Markup]
    captions: tuple[Markup, Markup]
    cells: list[list[Cell]]
    verdicts: list[tuple[str, bool]]


def gallery(shown: EvaluatedSet) -> Gallery[ShownTwin]:
    """The twins with the smallest margins of each category: in both questions, or in the one that the set asks."""
    task, embeddings, scores = shown.task, shown.embeddings, shown.scores
    assert isinstance(task, twins.TwinTask)
    asks_both = "acc" in scores.metrics
    asked = ("text", "image") if asks_both else ("image",)
    counted = (*asked, "group") if asks_both else asked
    margin_QN = torch.tensor([scores.details[f"{question}_margin"] for question in asked])
    answers = [
        Answered(twin.category, margin, twins.CHANCE[counted[-1]], twin.images)
        for twin, margin in zip(task.twins, margin_QN.amin(dim=0).tolist(), strict=True)
    ]

    def show(row: int) -> ShownTwin:
        twin = task.twins[row]
        image_4D = embeddings.image_ND[torch.tensor(twin.images).repeat(2)]
        text_4D = embeddings.text_ND[torch.tensor(twin.texts).repeat_interleave(2)]
        cells = _cells(metrics.pair_scores(image_4D, text_4D).tolist(), asks_both)
        captions = [task.texts[text] for text in twin.texts]
        right = {question: bool(margin > 0) for question, margin in zip(asked, margin_QN[:, row], strict=True)}
        right["group"] = all(right.values())
        first, second = (img(task.image(i), text) for i, text in zip(twin.images, captions, strict=True))
        return ShownTwin(
            (first, second),
            mark_differences(captions[0], captions[1]),
            cells,
            [(score, right[score]) for score in counted],
        )

    return worst_first(answers, show)


def _cells(scores: list[float], asks_both: bool) -> list[list[Cell]]:
    """Scores of caption 0 with pictures 0 and 1, then of caption 1."""
    texts = score_texts(*scores)
    own = scores[0], scores[3]

    def cell(caption: int, picture: int) -> Cell:
        place = 2 * caption + picture
        if caption == picture:
            return Cell(texts[place], "own")
        # Against the same caption with its own picture, and against the same picture with its own caption.
        rivals = [own[caption], own[picture]] if asks_both else [own[caption]]
        return Cell(texts[place], "" if all(rival - scores[place] > metrics.ROUNDING for rival in rivals) else "wins")

    return [[cell(caption, picture) for picture in (0, 1)] for caption in (0, 1)]
