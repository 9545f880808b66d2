"""Choices among captions: pictures with the true caption, the false one that scored highest, and both scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from markupsafe import Markup

from vlp.evaluation import metrics
from vlp.evaluation.choices import ChoiceTask
from vlp.evaluation.report.captions import mark_differences
from vlp.evaluation.report.failures import Answered, Gallery, score_texts, worst_first
from vlp.evaluation.report.gather import EvaluatedSet
from vlp.evaluation.report.pictures import img


@dataclass(frozen=True)
class ShownChoice:
    """A picture with two captions; the words that differ are marked."""

    image: Markup
    caption: Markup
    wrong: Markup
    score: str
    wrong_score: str


def gallery(shown: EvaluatedSet) -> Gallery[ShownChoice]:
    """The choices with the smallest margins of each category."""
    task, embeddings = shown.task, shown.embeddings
    assert isinstance(task, ChoiceTask)
    choices = task.choices
    answers = [
        Answered(choice.category, margin, 1 / (1 + len(set(choice.wrong))), choice.image)
        for choice, margin in zip(choices, shown.scores.details["margin"], strict=True)
    ]

    def show(row: int) -> ShownChoice:
        choice = choices[row]
        texts = torch.tensor([choice.caption, *choice.wrong])
        scores = metrics.pair_scores(embeddings.image_ND[choice.image], embeddings.text_ND[texts])
        best = int(scores[1:].argmax())
        true, wrong = task.texts[choice.caption], task.texts[choice.wrong[best]]
        return ShownChoice(
            img(task.image(choice.image), true),
            *mark_differences(true, wrong),
            *score_texts(float(scores[0]), float(scores[1 + best])),
        )

    return worst_first(answers, show)
