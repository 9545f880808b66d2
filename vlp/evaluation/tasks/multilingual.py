"""Retrieval in many languages: Crossmodal-3600 (Thapliyal et al., arXiv:2205.12522) and CLIP_benchmark's files of it,
of multilingual MSCOCO, XTD10, XTD200 and Flickr30k-200.

Every language is a set of its own: its captions against the pictures that have some. Figures are means over the
languages, each of them is a row of two tables, and intervals draw pictures with their captions in all languages. The
ranks that a report shows are of captions in all languages together. One language alone is an ordinary set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch

from vlp.data.benchmark_sets import RetrievalSet
from vlp.data.multilingual_sets import is_multilingual, read_multilingual_set
from vlp.evaluation import intervals
from vlp.evaluation import retrieval as shared
from vlp.evaluation.multilingual_options import MultilingualOptions
from vlp.evaluation.retrieval import Direction
from vlp.evaluation.tasks import base, retrieval


class Task(retrieval.Task):
    layout = (
        "captions.jsonl with images/ (Crossmodal-3600), or crossmodal3600_captions-LANGUAGE.json, "
        "multilingual_mscoco_captions-, xtd10-, xtd200- or flickr30k_200-LANGUAGE.json (CLIP_benchmark's)"
    )
    section = "multilingual"

    def __init__(self, path: Path, options: MultilingualOptions | None = None) -> None:
        self._asked = options.languages if options else []
        super().__init__(path)

    def read(self, path: Path) -> RetrievalSet:
        whole = read_multilingual_set(path, self._asked)
        self.rows = whole.rows
        self.language = next(iter(self.rows)) if len(self.rows) == 1 else "mean"
        return whole.found

    @staticmethod
    def detects(directory: Path) -> bool:
        return is_multilingual(directory)

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        together = super().score(embeddings)
        if len(self.rows) == 1:
            return together
        found = [self._language(embeddings, rows) for rows in self.rows.values()]
        ways = [[one.both[way] for one in found] for way in range(len(shared.FOUND))]  # each a direction
        recalls = _means(Direction.recalls, ways)
        log = _means(Direction.log, ways)
        return replace(
            together,
            metrics=recalls,
            chance=_means(Direction.chances, ways),
            intervals={name: limits for way in ways for name, limits in self._intervals(way).items()},
            tie_rate=fmean(one.tie_rate for one in found),
            log={f"{self.name}/{name}": value for name, value in log.items()}
            | self.geometry_for_log(together.geometry),
            categories=[_category(name, one) for way in ways for name, one in zip(self.rows, way, strict=True)],
            figures={"rsum": shared.rsum(recalls)} | _means(Direction.rank_figures, ways),
            notes=[*together.notes, f"figures are means over {len(found)} languages: {', '.join(self.rows)}"],
        )

    def _language(self, embeddings: base.SetEmbeddings, rows: range) -> _Language:
        """The captions of one language and the pictures that have them, whose rows stay those of the set."""
        texts = slice(rows.start, rows.stop)
        images, image_of_text = torch.tensor(self.image_of_text)[texts].unique(return_inverse=True)
        image_ND = embeddings.image_ND[images.to(embeddings.image_ND.device)]
        both, tie_rate = shared.directions(image_ND, embeddings.text_ND[texts], image_of_text, embeddings.team)
        return _Language([replace(one, picture_N=images[one.picture_N]) for one in both], tie_rate)

    def _intervals(self, way: Sequence[Direction]) -> dict[str, intervals.Interval]:
        """Of the means over languages: a picture is drawn with its captions in all of them."""
        language_N = np.repeat(np.arange(len(way)), [len(one.picture_N) for one in way])
        picture_N = np.concatenate([one.picture_N.numpy() for one in way])
        right_NK = np.concatenate([one.right_NK() for one in way])
        return dict(zip(way[0].recalls(), intervals.of_means(right_NK, picture_N, language_N), strict=True))


class _Language(NamedTuple):
    both: Sequence[Direction]
    tie_rate: float


def _means(figures: Callable[[Direction], dict[str, float]], ways: Sequence[Sequence[Direction]]) -> dict[str, float]:
    """Of each figure of both directions the mean over the languages."""
    found = [[figures(one) for one in way] for way in ways]
    return {name: fmean(of_language[name] for of_language in way) for way in found for name in way[0]}


def _category(language: str, one: Direction) -> base.Category:
    first = next(iter(one.recalls()))
    interval, chance = one.intervals()[first], one.chances()[first]
    table = f"{shared.label(one.name, f'R@{shared.RECALL_AT[0]}')} by language"
    return base.Category(table, language, len(one.picture_N), one.recalls()[first], interval, chance)
