"""Zero-shot retrieval, several captions a picture (CLIP_benchmark's webdataset layout).

A caption that two pictures share is a tie: it counts as wrong for both unless another caption of the picture wins, and
it shows in the tie rate.
"""

from __future__ import annotations

from pathlib import Path

import torch

from vlp.data.benchmark_sets import RetrievalSet, dataset_type, is_benchmark_directory, read_retrieval_set
from vlp.evaluation import geometry, retrieval
from vlp.evaluation.tasks import base


class Task(base.Task):
    """Another layout is a subclass with its own ``read``, ``detects`` and ``layout``."""

    kind = "zeroshot_retrieval"
    layout = "test/nshards.txt with dataset_type.txt saying retrieval (CLIP_benchmark's webdataset layout)"
    kept = "all captions are kept"  # for the notes, as figures on other captions are others

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if path.is_file():
            self.name = path.stem
        found = self.read(path)
        self.images = found.images
        self.texts = found.texts
        self.image_of_text = found.image_of_text

    def read(self, path: Path) -> RetrievalSet:
        return read_retrieval_set(path)

    @staticmethod
    def detects(directory: Path) -> bool:
        return is_benchmark_directory(directory) and dataset_type(directory) == "retrieval"

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        image_ND, text_ND, image_of_text = embeddings.image_ND, embeddings.text_ND, torch.tensor(self.image_of_text)
        both, tie_rate = retrieval.directions(image_ND, text_ND, image_of_text, embeddings.team)
        figures = geometry.of_pairs(image_ND, text_ND, image_of_text, embeddings.logit_scale)
        recalls = {name: value for one in both for name, value in one.recalls().items()}
        return base.Scores(
            metrics=recalls,
            chance={name: value for one in both for name, value in one.chances().items()},
            intervals={name: limits for one in both for name, limits in one.intervals().items()},
            labels={name: text for one in both for name, text in one.labels().items()},
            tie_rate=tie_rate,
            num_images=len(self.images),
            num_texts=len(self.texts),
            log={f"{self.name}/{name}": value for one in both for name, value in one.log().items()}
            | self.geometry_for_log(figures),
            details={f"{one.name}_rank": one.ranks.rank_N.tolist() for one in both},
            geometry=figures,
            figures={"rsum": retrieval.rsum(recalls)}
            | {name: value for one in both for name, value in one.rank_figures().items()},
            notes=[f"{len(self.images):,} images, {len(self.texts):,} texts, any-of; {self.kept}"],
        )
