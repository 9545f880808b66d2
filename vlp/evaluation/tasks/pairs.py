"""Choosing the true of two captions (SugarCrepe's layout, also our scenes' swapped captions).

Right means strictly higher: a model that cannot tell the captions apart scores 0, and the tie rate says so.
(CLIP_benchmark's ``argmax`` gives it 100 %, since the true caption comes first.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path

import torch

from vlp.data import benchmark_sets
from vlp.evaluation import metrics
from vlp.evaluation.tasks import base


class Task(base.Task):
    kind = "image_caption_selection"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        found = benchmark_sets.read_pair_set(directory)
        self.images = found.images
        self.texts = found.texts
        self.suites = found.suites

    @staticmethod
    def detects(directory: Path) -> bool:
        return bool(benchmark_sets.pair_files(directory))

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        """``text_acc`` (all pairs, micro), ``text_acc_macro`` (mean of the suites) and ``text_acc_SUITE``."""
        margins: dict[str, list[float]] = {}
        for suite, pairs in self.suites.items():
            image, caption, negative = torch.tensor([astuple(pair) for pair in pairs]).T
            image_ND = embeddings.image_ND[image]
            true_N = metrics.pair_scores(image_ND, embeddings.text_ND[caption])
            margins[suite] = (true_N - metrics.pair_scores(image_ND, embeddings.text_ND[negative])).tolist()

        accuracy = {suite: _share(m > 0 for m in margin) for suite, margin in margins.items()}
        everything = [m for margin in margins.values() for m in margin]
        micro = _share(m > 0 for m in everything)
        macro = sum(accuracy.values()) / len(accuracy)
        figures = {
            "text_acc": micro,
            "text_acc_macro": macro,
            **{f"text_acc_{suite}": value for suite, value in accuracy.items()},
        }
        return base.Scores(
            metrics=figures,
            chance=dict.fromkeys(figures, 0.5),
            tie_rate=_share(m == 0 for m in everything),
            num_images=len(self.images),
            num_texts=len(self.texts),
            log={
                **{f"{self.name}/{suite}_accuracy": value for suite, value in accuracy.items()},
                f"{self.name}/micro_accuracy": micro,
                f"{self.name}/macro_accuracy": macro,
            },
            labels={
                "text_acc": "true caption above the false one, all pairs",
                "text_acc_macro": "mean of the suites",
                **{f"text_acc_{suite}": suite for suite in accuracy},
            },
            details={f"{suite}_margin": margin for suite, margin in margins.items()},
        )


def _share(hits: Iterable[bool]) -> float:
    values = list(hits)
    return sum(values) / len(values)
