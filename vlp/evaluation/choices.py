"""Benchmarks that ask a model to choose the true caption of a picture among false ones.

Right means higher by more than rounding (`metrics.margins`): a model that cannot tell the captions apart scores 0,
whatever stands first in a file, and the tie rate says so. (An ``argmax`` gives it 0 % or 100 %, as the file begins with
a false or the true caption.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vlp.data.choice_sets import Choice
from vlp.evaluation import intervals, metrics
from vlp.evaluation.tasks import base

__all__ = ["Choice", "ChoiceTask", "Mean"]

ROWS = 1 << 14  # pairs of features multiplied at once in fp64: some 100 MB at 512 dimensions


@dataclass(frozen=True)
class Mean:
    """A mean of the accuracies of ``categories``, each of the same weight; ``label`` is what tables call it."""

    label: str
    categories: tuple[str, ...]


class _Figure(NamedTuple):
    label: str
    score: float
    chance: float
    interval: intervals.Interval


@dataclass(frozen=True)
class _Answers:
    """Of each question whether it was answered right, by what chance, and about which picture."""

    right: Sequence[bool]
    chance: Sequence[float]
    pictures: Sequence[str]

    def figure(self, label: str, groups: Sequence[Sequence[int]]) -> _Figure:
        """The mean over groups of rows of their shares."""
        rows = [row for group in groups for row in group]
        group_of_row = [number for number, group in enumerate(groups) for _ in group]
        return _Figure(
            label,
            _mean([_mean([self.right[row] for row in group]) for group in groups]),
            _mean([_mean([self.chance[row] for row in group]) for group in groups]),
            intervals.of_category_mean(
                [self.right[row] for row in rows], group_of_row, [self.pictures[row] for row in rows]
            ),
        )

    def by_category(self, names: Sequence[str]) -> dict[str, _Figure]:
        """A figure for each category; questions without one are in none."""
        return {name: self.figure(name, [rows]) for name, rows in _rows_of(names).items() if name}


class ChoiceTask(base.Task):
    """A task whose constructor sets ``choices``; ``score`` serves them all.

    ``text_acc`` is the share of all choices (micro), ``text_acc_NAME`` that of each of ``means()``.
    """

    kind = "image_caption_selection"
    table: ClassVar[str]  # what a category is: "suite", "relation"
    categories_are_metrics: ClassVar[bool] = False  # or only rows of a table, where there are hundreds
    choices: Sequence[Choice]
    category_of_wrong: Sequence[str] = ()  # of the false captions of all choices, where the table is of these instead

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if path.is_file():
            self.name = path.stem

    def means(self) -> dict[str, Mean]:
        """Means of categories by the name they take in ``text_acc_NAME`` and ``SET/NAME_accuracy``."""
        return {}

    def label(self) -> str:
        """What tables call ``text_acc``."""
        numbers = {1 + len(choice.wrong) for choice in self.choices}
        captions = str(numbers.pop()) if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
        return f"true caption first of {captions} (micro: all {len(self.choices):,})"

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        margin_M, choice_M = self.margins_of_wrong(embeddings)
        margin_N = margin_M.new_full((len(self.choices),), math.inf).scatter_reduce(0, choice_M, margin_M, "amin")
        figures, rows = self._figures(margin_N, margin_M, choice_M)
        names = {name: "text_acc" if name == "micro" else f"text_acc_{name}" for name in figures}
        defined = {name: figure for name, figure in figures.items() if not math.isnan(figure.score)}
        return base.Scores(
            metrics={names[name]: figure.score for name, figure in figures.items()},
            chance={names[name]: figure.chance for name, figure in figures.items()},
            tie_rate=_mean((margin_N == 0).tolist()),
            num_images=len(self.images),
            num_texts=len(self.texts),
            log={f"{self.name}/{name}_accuracy": figure.score for name, figure in defined.items()},
            labels={names[name]: figure.label for name, figure in figures.items()},
            details={"margin": margin_N.tolist()},
            intervals={
                names[n]: figure.interval for n, figure in defined.items() if not math.isnan(figure.interval[0])
            },
            categories=rows,
        )

    def _figures(
        self, margin_N: Tensor, margin_M: Tensor, choice_M: Tensor
    ) -> tuple[dict[str, _Figure], list[base.Category]]:
        """The figures by their names in the log, and the rows of the table."""
        pictures = [self.images[choice.image].name for choice in self.choices]  # crops of one are not independent
        chance = [1 / (1 + len(set(choice.wrong))) for choice in self.choices]
        answers = _Answers((margin_N > 0).tolist(), chance, pictures)
        categories = [choice.category for choice in self.choices]
        figures = {"micro": answers.figure(self.label(), [range(len(categories))])}
        rows_of = _rows_of(categories)
        for name, mean in self.means().items():
            figures[name] = answers.figure(mean.label, [rows_of[category] for category in mean.categories])
        table = answers.by_category(categories)
        if self.category_of_wrong:
            categories = list(self.category_of_wrong)
            of_wrong = [pictures[choice] for choice in choice_M.tolist()]
            answers = _Answers((margin_M > 0).tolist(), [1 / 2] * len(of_wrong), of_wrong)
            table = {
                name: figure._replace(label=f"against the {self.table}: {name.replace('_', ' ')}")
                for name, figure in answers.by_category(categories).items()
            }
        numbers = Counter(categories)
        rows = [base.Category(self.table, n, numbers[n], f.score, f.interval, f.chance) for n, f in table.items()]
        return figures | (table if self.categories_are_metrics else {}), rows

    def margins_of_wrong(self, embeddings: base.SetEmbeddings) -> tuple[Tensor, Tensor]:
        """Of each false caption (M fp32) how far the true one is above it, 0 for a tie, and the row of its choice."""
        image = torch.tensor([choice.image for choice in self.choices])
        caption = torch.tensor([choice.caption for choice in self.choices])
        wrong = torch.tensor([text for choice in self.choices for text in choice.wrong])
        choice = torch.arange(len(self.choices)).repeat_interleave(torch.tensor([len(c.wrong) for c in self.choices]))
        true_N = _scores(embeddings, image, caption)
        return metrics.margins(true_N[choice], _scores(embeddings, image[choice], wrong)), choice


def _scores(embeddings: base.SetEmbeddings, image: Tensor, text: Tensor) -> Tensor:
    scores = [
        metrics.pair_scores(embeddings.image_ND[images], embeddings.text_ND[texts])
        for images, texts in zip(image.split(ROWS), text.split(ROWS), strict=True)
    ]
    return torch.cat(scores).cpu()


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _rows_of(names: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return rows
