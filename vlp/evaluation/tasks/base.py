"""What a benchmark is: a directory with pictures and texts, embedded once, and a score."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from vlp.data.benchmark_sets import StoredFile
from vlp.evaluation.embed import Encoder, embed_images, embed_texts
from vlp.evaluation.team import ALONE, Team


@dataclass(frozen=True)
class Category:
    """A row of a table of categories: ``number`` queries of the category ``name`` and their score with its interval."""

    table: str
    name: str
    number: int
    score: float
    interval: tuple[float, float]
    chance: float


@dataclass(frozen=True)
class Scores:
    """The figures of one set.

    Attributes:
        metrics: under CLIP_benchmark's names; NaN where a metric is not defined.
        chance: for each metric what random answers get.
        tie_rate: share of queries whose right answer ties with a wrong one (counted as wrong); NaN where none is asked.
        log: figures of the training log, under their names after ``val/``; what is not defined is left out.
        labels: what tables call a metric whose name alone misleads.
        details: lists with an entry a query (or class), for the report.
        intervals: for metrics that have one, the 95 % bootstrap interval.
        categories: rows of tables by category, for the JSON and the report.
        geometry: the shape of the embeddings, under the names of `vlp.evaluation.geometry.FIGURES`; NaN where a figure
            is not defined.
        figures: what is no share of right answers, such as a loss; NaN where a figure is not defined.
        notes: what has to be known of the figures, such as which were left out, and why.
        records: an entry a picture, written beside the result as a line of JSON.
    """

    metrics: dict[str, float]
    chance: dict[str, float]
    tie_rate: float
    num_images: int
    num_texts: int
    log: dict[str, float]
    labels: dict[str, str] = field(default_factory=dict)
    details: dict[str, list[float]] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    categories: list[Category] = field(default_factory=list)
    geometry: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class SetEmbeddings:
    """L2-normalised fp32 features of a task's ``images`` and ``texts``, row by row.

    ``logit_scale`` is the multiplier of their cosines (exp of the model's parameter). ``team`` has all of them and may
    share out what is counted.
    """

    image_ND: Tensor
    text_ND: Tensor
    logit_scale: float
    team: Team = field(default=ALONE, kw_only=True)


class Task(ABC):
    """One benchmark on one directory; the constructor lists the set and raises UserError if it is not whole.

    A subclass sets ``images`` and ``texts`` there, and is named ``Task`` in a module of this folder. One that names a
    ``section`` of `vlp.evaluation.run.EvaluateOptions` takes its options as a second argument.
    """

    kind: ClassVar[str]  # CLIP_benchmark's name of the task
    layout: ClassVar[str]  # the files by which `detects` knows it, and where they come from, for a sentence
    section: ClassVar[str] = ""
    language: str = "en"  # of the texts, for the JSON
    images: Sequence[StoredFile]
    texts: Sequence[str]

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = Path(os.path.abspath(directory)).name  # a link's own, by which people know the set

    @staticmethod
    @abstractmethod
    def detects(directory: Path) -> bool:
        """Whether ``directory`` has this layout; true for an incomplete set, which opening it then names."""

    @abstractmethod
    def score(self, embeddings: SetEmbeddings) -> Scores:
        """The figures of these embeddings, the same on every process of their team; nothing else counts."""

    def check(self, encoder: Encoder) -> None:  # noqa: B027 (most tasks refuse none)
        """Refuse, before a run begins, a model that the task cannot be done with."""

    def image(self, index: int) -> Image.Image:
        """The RGB picture ``index``."""
        return self.images[index].load()

    def embed(self, encoder: Encoder, batch_size: int, team: Team = ALONE) -> SetEmbeddings:
        """On every process of ``team``, each of which embeds a share."""
        return SetEmbeddings(
            embed_images(encoder, self.images, batch_size, team),
            embed_texts(encoder, self.texts, batch_size, team),
            float(encoder.logit_scale.detach().exp()),
            team=team,
        )

    def geometry_for_log(self, figures: dict[str, float]) -> dict[str, float]:
        """``figures`` as the training log names them, without those that are not defined."""
        return {f"{self.name}/{name}": value for name, value in figures.items() if not math.isnan(value)}

    def run(self, encoder: Encoder, batch_size: int, team: Team = ALONE) -> Scores:
        return self.score(self.embed(encoder, batch_size, team))
