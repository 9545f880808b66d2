"""Zero-shot classification by prompts, and probes of the image tower (CLIP_benchmark's webdataset layout)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vlp.data.benchmark_sets import (
    ClassificationSet,
    dataset_type,
    is_benchmark_directory,
    read_classification_set,
)
from vlp.data.class_folders import is_class_directory
from vlp.data.class_tables import is_class_table
from vlp.evaluation import class_metrics, geometry, metrics
from vlp.evaluation.class_embeddings import class_embeddings
from vlp.evaluation.class_prompts import class_prompts
from vlp.evaluation.classification_options import ClassificationOptions
from vlp.evaluation.embed import Encoder, embed_images
from vlp.evaluation.linear_probe import fit_linear_probe
from vlp.evaluation.tasks import base
from vlp.evaluation.team import ALONE, Team
from vlp.types import UserError


@dataclass(frozen=True)
class ClassEmbeddings(base.SetEmbeddings):
    """``text_ND`` are the embeddings of the classes, ``train_ND`` those of the pictures of train/ where asked for."""

    train_ND: Tensor | None = None
    notes: list[str] = field(default_factory=list)


class Task(base.Task):
    """A class is the normalised mean of its normalised prompts, one for each template.

    Another layout is a subclass with ``layout``, ``detects`` and ``read``.
    """

    kind = "zeroshot_classification"
    section = "classification"
    layout = "test/nshards.txt with classnames.txt (CLIP_benchmark's webdataset layout)"

    def __init__(self, directory: Path, options: ClassificationOptions | None = None) -> None:
        super().__init__(directory)
        self.name = directory.stem if directory.is_file() else self.name
        self.options = options or ClassificationOptions()
        found = self.read(directory, "test")
        self.prompts = class_prompts(found, self.name, self.options.templates, self.options.classnames)
        self.images = found.images
        self.label_N = found.labels
        self.classnames = self.texts = self.prompts.classnames
        self.train = self._train(directory, found) if self.options.probe or self.options.knn else None

    @staticmethod
    def detects(directory: Path) -> bool:
        if not is_benchmark_directory(directory) or dataset_type(directory) == "retrieval":
            return False
        is_packed = (directory / "test" / "nshards.txt").exists()
        return is_packed or not (is_class_directory(directory) or is_class_table(directory))

    @staticmethod
    def read(directory: Path, split: str) -> ClassificationSet:
        """The set of the split ``test`` or ``train``, both with the same classes."""
        return read_classification_set(directory, split)

    def _train(self, directory: Path, test: ClassificationSet) -> ClassificationSet:
        if test.is_multilabel:
            raise UserError(
                f"{self.name} has several classes a picture, which probe and knn do not take: leave them out"
            )
        train = self.read(directory, "train")
        if train.classnames != test.classnames:
            raise UserError(f"{directory} has other classes in train/ than in test/: make them the same")
        if self.options.knn is not None and self.options.knn > len(train.images):
            raise UserError(
                f"knn {self.options.knn} is more than the {len(train.images)} pictures of {directory}/train: lower it"
            )
        return train

    def embed(self, encoder: Encoder, batch_size: int, team: Team = ALONE) -> ClassEmbeddings:
        class_CD, notes = class_embeddings(encoder, self.prompts.of_class, batch_size, team, self.options.cache)
        return ClassEmbeddings(
            embed_images(encoder, self.images, batch_size, team),
            class_CD,
            float(encoder.logit_scale.detach().exp()),
            embed_images(encoder, self.train.images, batch_size, team) if self.train is not None else None,
            notes,
            team=team,
        )

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        notes = self.prompts.notes + (embeddings.notes if isinstance(embeddings, ClassEmbeddings) else [])
        of_kind = self._of_several if self.label_N.ndim == 2 else self._of_one
        return of_kind(embeddings, notes)

    def _of_one(self, embeddings: base.SetEmbeddings, notes: list[str]) -> base.Scores:
        num_classes = len(self.classnames)
        first_C = torch.tensor(self.prompts.first_of_class)
        ranks = class_metrics.label_ranks(embeddings.image_ND, embeddings.text_ND, self.label_N, first_C)
        found = class_metrics.of_ranks(ranks, self.label_N, num_classes)
        log = {f"{self.name}-zeroshot-val-top1": found["acc1"].score}
        if not math.isnan(found["acc5"].score):
            log[f"{self.name}-zeroshot-val-top5"] = found["acc5"].score
        of_train, said = embeddings.team.once(lambda: self._of_train(embeddings))
        log |= {f"{self.name}/{name}": one.score for name, one in of_train.items() if not math.isnan(one.score)}
        figures = geometry.of_classes(embeddings.image_ND, self.label_N)
        return self._scores(
            found | of_train,
            notes + said,
            log | self.geometry_for_log(figures),
            tie_rate=float(ranks.tied_N.double().mean()),
            details={
                "rank_of_label": ranks.rank_N.tolist(),
                "class_recall": metrics.mean_per_class(ranks.rank_N <= 1, self.label_N, num_classes)[1],
            },
            geometry=figures,
        )

    def _of_several(self, embeddings: base.SetEmbeddings, notes: list[str]) -> base.Scores:
        score_NC = (embeddings.image_ND.double() @ embeddings.text_ND.double().T).float().cpu()
        found, of_class = class_metrics.of_several(score_NC, self.label_N)
        absent = sum(map(math.isnan, of_class))
        notes = notes + ([f"{absent} classes that no picture shows are left out of the mean"] if absent else [])
        log = {f"{self.name}/{name}": one.score for name, one in found.items()}
        return self._scores(found, notes, log, tie_rate=math.nan, details={"class_average_precision": of_class})

    def _of_train(self, embeddings: base.SetEmbeddings) -> tuple[dict[str, class_metrics.Metric], list[str]]:
        """What can be read off the features of the train split."""
        if self.train is None:
            return {}, []
        assert isinstance(embeddings, ClassEmbeddings)
        assert embeddings.train_ND is not None
        train_ND, label_N, num_classes = embeddings.train_ND, self.train.labels, len(self.classnames)
        found: dict[str, class_metrics.Metric] = {}
        notes: list[str] = []
        if self.options.probe:
            fitted = fit_linear_probe(train_ND, label_N, num_classes)
            found |= class_metrics.of_probe(fitted, embeddings.image_ND, self.label_N)
            notes.append(fitted.note())
        if self.options.knn is not None:
            asked = embeddings.image_ND, self.label_N
            found |= class_metrics.of_nearest(train_ND, label_N, *asked, num_classes, self.options.knn)
            notes.append(f"nearest: {self.options.knn} pictures of train/, a vote each; equal votes are wrong")
        return found, notes

    def _scores(
        self,
        found: dict[str, class_metrics.Metric],
        notes: list[str],
        log: dict[str, float],
        tie_rate: float,
        details: dict[str, list[float]],
        geometry: dict[str, float] | None = None,
    ) -> base.Scores:
        return base.Scores(
            metrics={name: metric.score for name, metric in found.items()},
            chance={name: metric.chance for name, metric in found.items()},
            tie_rate=tie_rate,
            num_images=len(self.images),
            num_texts=sum(map(len, self.prompts.of_class)),
            log=log,
            labels={name: class_metrics.LABELS[name] for name in found},
            details=details,
            intervals={name: metric.interval for name, metric in found.items() if not math.isnan(metric.interval[0])},
            geometry=geometry or {},
            notes=notes,
        )
