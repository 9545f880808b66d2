"""Choices among captions: pictures with the true caption, the false one that scored highest, and both scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from markupsafe import Markup

from vlp.evaluation import metrics
from vlp.evaluation.choices import Choice, ChoiceTask
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
    questions = _questions(task, shown)

    def show(row: int) -> ShownChoice:
        choice = questions[row].choice
        texts = torch.tensor([choice.caption, *choice.wrong])
        image_ND = embeddings.image_ND[choice.image].expand(len(texts), -1)
        scores = metrics.pair_scores(image_ND, embeddings.text_ND[texts])
        best = int(scores[1:].argmax())
        true, wrong = task.texts[choice.caption], task.texts[choice.wrong[best]]
        return ShownChoice(
            img(task.image(choice.image), true),
            *mark_differences(true, wrong),
            *score_texts(float(scores[0]), float(scores[1 + best])),
        )

    return worst_first([question.answered() for question in questions], show)


class _Question(NamedTuple):
    choice: Choice
    margin: float

    def answered(self) -> Answered:
        choice = self.choice
        return Answered(choice.category, self.margin, 1 / (1 + len(set(choice.wrong))), choice.image)


def _questions(task: ChoiceTask, shown: EvaluatedSet) -> list[_Question]:
    """As the set's table counts them: a choice each, or a false caption each where these have the categories."""
    if not task.category_of_wrong:
        return [_Question(*pair) for pair in zip(task.choices, shown.scores.details["margin"], strict=True)]
    margin_M, _ = task.margins_of_wrong(shown.embeddings)
    false = [(choice, wrong) for choice in task.choices for wrong in choice.wrong]
    return [
        _Question(Choice(choice.image, choice.caption, (wrong,), category), margin)
        for (choice, wrong), category, margin in zip(false, task.category_of_wrong, margin_M.tolist(), strict=True)
    ]
