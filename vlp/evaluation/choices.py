"""Benchmarks that ask a model to choose the true caption of a picture among false ones.

Right means strictly higher: a model that cannot tell the captions apart scores 0, whatever stands first in a file, and
the tie rate says so. (An ``argmax`` gives it 0 % or 100 %, as the file begins with a false or the true caption.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

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


@dataclass(frozen=True)
class _Figure:
    label: str
    score: float
    chance: float
    interval: intervals.Interval

    @property
    def is_defined(self) -> bool:
        return not math.isnan(self.score)


class ChoiceTask(base.Task):
    """A task whose constructor sets ``choices``; ``score`` serves them all.

    ``text_acc`` is the share of all choices (micro), ``text_acc_NAME`` that of each of ``means()``.
    """

    kind = "image_caption_selection"
    table: ClassVar[str]  # what a category is: "suite", "relation"
    categories_are_metrics: ClassVar[bool] = False  # or only rows of a table, where there are hundreds
    choices: Sequence[Choice]

    def means(self) -> dict[str, Mean]:
        """Means of categories by the name they take in ``text_acc_NAME`` and ``SET/NAME_accuracy``."""
        return {}

    def label(self) -> str:
        """What tables call ``text_acc``."""
        numbers = {1 + len(choice.wrong) for choice in self.choices}
        captions = str(numbers.pop()) if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
        return f"true caption first of {captions} (micro: all {len(self.choices):,})"

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        margin_N = self.margins(embeddings)
        categories, figures = self._figures((margin_N > 0).tolist())
        names = {name: f"text_acc_{name}" if name != "micro" else "text_acc" for name in figures}
        return base.Scores(
            metrics={names[name]: figure.score for name, figure in figures.items()},
            chance={names[name]: figure.chance for name, figure in figures.items()},
            tie_rate=_mean((margin_N == 0).tolist()),
            num_images=len(self.images),
            num_texts=len(self.texts),
            log={f"{self.name}/{n}_accuracy": figure.score for n, figure in figures.items() if figure.is_defined},
            labels={names[name]: figure.label for name, figure in figures.items()},
            details={"margin": margin_N.tolist()},
            intervals={
                names[n]: figure.interval for n, figure in figures.items() if not math.isnan(figure.interval[0])
            },
            categories=categories,
        )

    def _figures(self, right: Sequence[bool]) -> tuple[list[base.Category], dict[str, _Figure]]:
        """The rows of the table, and the figures by their names in the log."""
        pictures = self.clusters()
        chances = [1 / (1 + len(set(choice.wrong))) for choice in self.choices]
        rows_of: dict[str, list[int]] = {}
        for row, choice in enumerate(self.choices):
            rows_of.setdefault(choice.category, []).append(row)

        def figure(label: str, groups: Sequence[Sequence[int]]) -> _Figure:
            """The mean over groups of rows of their shares."""
            rows = [row for group in groups for row in group]
            group_of_row = [number for number, group in enumerate(groups) for _ in group]
            return _Figure(
                label,
                _mean([_mean([right[row] for row in group]) for group in groups]),
                _mean([_mean([chances[row] for row in group]) for group in groups]),
                intervals.of_category_mean([right[r] for r in rows], group_of_row, [pictures[r] for r in rows]),
            )

        of_category = {name: figure(name, [rows]) for name, rows in rows_of.items() if name}
        figures = {"micro": figure(self.label(), [range(len(right))])}
        for name, mean in self.means().items():
            figures[name] = figure(mean.label, [rows_of[category] for category in mean.categories])
        table = [
            base.Category(self.table, name, len(rows_of[name]), row.score, row.interval, row.chance)
            for name, row in of_category.items()
        ]
        return table, figures | (of_category if self.categories_are_metrics else {})

    def margins(self, embeddings: base.SetEmbeddings) -> Tensor:
        """The score of the true caption minus that of the best false one, of each choice: N fp32."""
        margin_M, choice_M = self.margins_of_wrong(embeddings)
        return margin_M.new_full((len(self.choices),), math.inf).scatter_reduce(0, choice_M, margin_M, "amin")

    def margins_of_wrong(self, embeddings: base.SetEmbeddings) -> tuple[Tensor, Tensor]:
        """The same for each false caption (M), and the choice it belongs to, in their order."""
        image = torch.tensor([choice.image for choice in self.choices])
        caption = torch.tensor([choice.caption for choice in self.choices])
        wrong = torch.tensor([text for choice in self.choices for text in choice.wrong])
        choice = torch.arange(len(self.choices)).repeat_interleave(torch.tensor([len(c.wrong) for c in self.choices]))
        true_N = _scores(embeddings, image, caption)
        return true_N[choice] - _scores(embeddings, image[choice], wrong), choice

    def clusters(self) -> list[str]:
        """For each choice the name of its picture's file: crops of one picture are not independent."""
        return [self.images[choice.image].name for choice in self.choices]


def _scores(embeddings: base.SetEmbeddings, image: Tensor, text: Tensor) -> Tensor:
    scores = [
        metrics.pair_scores(embeddings.image_ND[images], embeddings.text_ND[texts])
        for images, texts in zip(image.split(ROWS), text.split(ROWS), strict=True)
    ]
    return torch.cat(scores).cpu()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
