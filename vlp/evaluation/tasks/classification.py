"""Zero-shot classification by prompts (CLIP_benchmark's webdataset layout)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F

from vlp.data.benchmark_sets import dataset_type, is_benchmark_directory, read_classification_set
from vlp.evaluation import geometry, metrics
from vlp.evaluation.classification_options import ClassificationOptions
from vlp.evaluation.tasks import base


class Task(base.Task):
    """A class is the normalised mean of its normalised prompts, one for each template."""

    kind = "zeroshot_classification"
    section = "classification"
    layout = "test/nshards.txt with classnames.txt (CLIP_benchmark's webdataset layout)"

    def __init__(self, directory: Path, options: ClassificationOptions | None = None) -> None:
        super().__init__(directory)
        self.options = options or ClassificationOptions()
        found = read_classification_set(directory)
        self.images = found.images
        self.labels = found.labels
        self.classnames = found.classnames
        self.templates = found.templates
        self.texts = [t.replace("{c}", name) for name in found.classnames for t in found.templates]

    @staticmethod
    def detects(directory: Path) -> bool:
        return is_benchmark_directory(directory) and dataset_type(directory) != "retrieval"

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        num_classes = len(self.classnames)
        prompts = embeddings.text_ND.unflatten(0, (num_classes, len(self.templates)))
        class_CD = F.normalize(prompts.mean(dim=1), dim=1)
        label_N = torch.tensor(self.labels)
        ranks = metrics.label_ranks(embeddings.image_ND, class_CD, label_N)
        figures = geometry.of_classes(embeddings.image_ND, label_N)
        mean_recall, class_recall = metrics.mean_per_class(ranks.rank_N <= 1, label_N, num_classes)
        has_top5 = num_classes >= 5
        acc1, acc5 = ranks.recall(1), ranks.recall(5) if has_top5 else math.nan
        return base.Scores(
            metrics={"acc1": acc1, "acc5": acc5, "mean_per_class_recall": mean_recall},
            chance={
                "acc1": 1 / num_classes,
                "acc5": 5 / num_classes if has_top5 else math.nan,
                "mean_per_class_recall": 1 / num_classes,
            },
            tie_rate=float(ranks.tied_N.double().mean()),
            num_images=len(self.images),
            num_texts=len(self.texts),
            log={
                f"{self.name}-zeroshot-val-top1": acc1,
                **({f"{self.name}-zeroshot-val-top5": acc5} if has_top5 else {}),
                **self.geometry_for_log(figures),
            },
            labels={
                "acc1": "top-1",
                "acc5": "top-5",
                "mean_per_class_recall": "mean per class",
            },
            details={"rank_of_label": ranks.rank_N.tolist(), "class_recall": class_recall},
            geometry=figures,
        )
