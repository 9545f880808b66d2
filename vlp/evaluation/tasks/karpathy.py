"""Retrieval on Karpathy's test splits of COCO (5K, and the mean of five folds of 1,000), Flickr30k and Flickr8k.

All captions of a picture are kept, as CLIP_benchmark keeps those of its files. Some of COCO's pictures have more than
five, so that there are 25,010 captions in place of the 25,000 of ECCV Caption, CxC and many papers; `karpathy5:PATH`
keeps the first five.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from vlp.data.benchmark_sets import RetrievalSet
from vlp.data.karpathy_sets import USUAL, is_karpathy, read_karpathy_set
from vlp.evaluation import retrieval as shared
from vlp.evaluation.tasks import base, retrieval


class Task(retrieval.Task):
    layout = (
        "one of dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json (Karpathy's splits), "
        "coco_test_karpathy.json, flickr30k_test_karpathy.txt, flickr8k_test_karpathy.txt (CLIP_benchmark's)"
    )
    first: ClassVar[int | None] = None  # captions kept of a picture

    def read(self, path: Path) -> RetrievalSet:
        whole = read_karpathy_set(path, self.first)
        self.is_coco, self.language = whole.is_coco, whole.language
        if whole.num_more:
            images = "image has" if whole.num_more == 1 else "images have"
            self.kept = f"{whole.num_more:,} {images} more than {USUAL} captions, of which {self._kept}"
        return whole.found

    @property
    def _kept(self) -> str:
        return f"the first {self.first} are kept" if self.first else "all are kept (karpathy5:PATH keeps the first 5)"

    @staticmethod
    def detects(directory: Path) -> bool:
        return is_karpathy(directory)

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        """For COCO with ``coco_1k_rK``, each ``_i2t`` and ``_t2i``."""
        scores = super().score(embeddings)
        if not self.is_coco or len(self.images) < shared.FOLDS:
            return scores
        return shared.with_figures(scores, shared.fold_recalls(embeddings, torch.tensor(self.image_of_text)), self.name)
