"""Questions of a set as cards: what was asked, what is right, what each model answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from vlp.evaluation.answers import Arrays
from vlp.evaluation.choices import ChoiceTask
from vlp.evaluation.report.captions import caption, mark_differences
from vlp.evaluation.report.pictures import img
from vlp.evaluation.tasks import classification, multilingual, retrieval
from vlp.evaluation.tasks.base import Task
from vlp.evaluation.twins import TwinTask

TIE = 1e-9


@dataclass(frozen=True)
class Answer:
    """``content`` may be empty where nothing but right or wrong is known."""

    is_right: bool
    content: Markup
    note: str


@dataclass(frozen=True)
class Card:
    """``answers`` are those of the models, None of one that was not asked."""

    asked: Markup
    expected: Markup
    answers: list[Answer | None]


@dataclass(frozen=True)
class Questions:
    """All questions of one kind of a set.

    Attributes:
        metric: the share of right answers.
        wrongness_N: of each model, how far an answer is from right, 0 or less where it is right; None for a model that
            was not asked.
        like_N: of questions with the same number, such as those about one picture, one is shown.
        show: the card of a question.
    """

    title: str
    metric: str
    wrongness_N: list[np.ndarray | None]
    like_N: np.ndarray
    show: Callable[[int], Card]


def questions(task: Task, answers: Sequence[Arrays]) -> list[Questions]:
    """Those of an opened set, with the answers of each model (none where it has none)."""
    if isinstance(task, multilingual.Task) and len(task.rows) > 1:
        return []  # its figures are means over languages, and the ranks that were kept are of all together
    if isinstance(task, retrieval.Task):
        return [_of_pictures(task, answers), _of_texts(task, answers)]
    if isinstance(task, classification.Task):
        return [_of_classes(task, answers)]
    if isinstance(task, ChoiceTask):
        return [_of_choices(task, answers)]
    return [_of_twins(task, answers)] if isinstance(task, TwinTask) else []


def _by_rank(answers: Sequence[Arrays], name: str, number: int) -> list[np.ndarray | None]:
    """Ranks less one, of answers to these very questions."""
    return [one[name] - 1 if len(one.get(name, ())) == number else None for one in answers]


def _by_margin(answers: Sequence[Arrays], names: Sequence[str], number: int) -> list[np.ndarray | None]:
    """How far the true answer is below a false one; a tie, which is wrong, is a little above 0."""
    found: list[np.ndarray | None] = []
    for one in answers:
        if any(len(one.get(name, ())) != number for name in names):
            found.append(None)
            continue
        margin_N = np.minimum.reduce([one[name] for name in names])
        found.append(np.where(margin_N > 0, -margin_N, TIE - margin_N))
    return found


def _ranked(
    answers: Sequence[Arrays], ranks: str, first: str, show: Callable[[int], Markup]
) -> Callable[[int], list[Answer | None]]:
    def of(row: int) -> list[Answer | None]:
        found: list[Answer | None] = []
        for one in answers:
            if ranks not in one or row >= len(one[ranks]):
                found.append(None)
                continue
            rank = int(one[ranks][row])
            chosen = np.atleast_1d(one[first][row])[0] if first in one else None
            content = Markup() if chosen is None or rank == 1 else show(int(chosen))
            found.append(Answer(rank == 1, content, "right at 1" if rank == 1 else f"right answer at rank {rank:,}"))
        return found

    return of


def _of_pictures(task: retrieval.Task, answers: Sequence[Arrays]) -> Questions:
    of_row = _ranked(answers, "image_to_text_rank", "image_to_text_first", lambda text: caption(task.texts[text]))
    texts_of: list[list[int]] = [[] for _ in task.images]
    for text, image in enumerate(task.image_of_text):
        texts_of[image].append(text)

    def show(row: int) -> Card:
        own = task.texts[texts_of[row][0]] if texts_of[row] else ""
        return Card(img(task.image(row), own), caption(own), of_row(row))

    number = len(task.images)
    wrong = _by_rank(answers, "image_to_text_rank", number)
    return Questions("Image → text", "text_retrieval_recall@1", wrong, np.arange(number), show)


def _of_texts(task: retrieval.Task, answers: Sequence[Arrays]) -> Questions:
    def picture(image: int) -> Markup:
        return img(task.image(image), "")

    of_row = _ranked(answers, "text_to_image_rank", "text_to_image_first", picture)

    def show(row: int) -> Card:
        image = task.image_of_text[row]
        return Card(caption(task.texts[row]), img(task.image(image), task.texts[row]), of_row(row))

    wrong = _by_rank(answers, "text_to_image_rank", len(task.texts))
    return Questions("Text → image", "image_retrieval_recall@1", wrong, np.array(task.image_of_text), show)


def _of_classes(task: classification.Task, answers: Sequence[Arrays]) -> Questions:
    of_row = _ranked(answers, "rank_of_label", "predicted", lambda label: caption(task.classnames[label]))

    def show(row: int) -> Card:
        name = task.classnames[int(task.label_N[row])]
        return Card(img(task.image(row), name), caption(name), of_row(row))

    wrong = _by_rank(answers, "rank_of_label", len(task.images))
    return Questions("Classes", "acc1", wrong, np.asarray(task.label_N), show)


def _of_choices(task: ChoiceTask, answers: Sequence[Arrays]) -> Questions:
    def show(row: int) -> Card:
        choice = task.choices[row]
        true, wrong = task.texts[choice.caption], task.texts[choice.wrong[0]]
        marked, wrong_marked = mark_differences(true, wrong)
        more = f" and {len(choice.wrong) - 1} more" if len(choice.wrong) > 1 else ""
        expected = Markup("{}<br><span class='remark'>not: {}{}</span>").format(marked, wrong_marked, more)
        found = [_margin(one, ("margin",), row) for one in answers]
        return Card(img(task.image(choice.image), true), expected, found)

    wrong_N = _by_margin(answers, ("margin",), len(task.choices))
    pictures = np.array([choice.image for choice in task.choices])
    return Questions("True caption above the false ones", "text_acc", wrong_N, pictures, show)


def _of_twins(task: TwinTask, answers: Sequence[Arrays]) -> Questions:
    def show(row: int) -> Card:
        twin = task.twins[row]
        captions = [task.texts[text] for text in twin.texts]
        pictures = [img(task.image(image), text) for image, text in zip(twin.images, captions, strict=True)]
        found = [_margin(one, ("text_margin", "image_margin"), row) for one in answers]
        return Card(Markup(" ").join(pictures), Markup("<br>").join(map(escape, captions)), found)

    number = len(task.twins)
    wrong_N = _by_margin(answers, ("text_margin", "image_margin"), number)
    return Questions("Both pictures with both captions", "acc", wrong_N, np.arange(number), show)


def _margin(one: Arrays, names: Sequence[str], row: int) -> Answer | None:
    if any(row >= len(one.get(name, ())) for name in names):
        return None
    margins = {name.removesuffix("margin").replace("_", " "): float(one[name][row]) for name in names}
    note = ", ".join(f"{name}{margin:+.3f}" for name, margin in margins.items())
    return Answer(min(margins.values()) > 0, Markup(), note)
