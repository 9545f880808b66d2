"""ECCV Caption (Chun et al., arXiv:2204.03359): retrieval on COCO's 5K test split with all pairs that really fit.

A caption of COCO belongs to one picture but fits others, so that its recalls punish right answers. ECCV Caption lists
the pairs that people and machines found: 1,261 pictures ask with 6 to 48 right captions, 1,332 captions with 1 to 19
right pictures. Its figures are mAP@R (the main one), R-precision and R@1; beside them stand the recalls with the pairs
of CxC (Parekh et al., arXiv:2004.15020), COCO's own on all 5,000 pictures, and the mean over five folds of 1,000.

DIRECTORY holds COCO's ``captions_val2014.json`` (or ``annotations/captions_val2014.json``, as it lies in
annotations_trainval2014.zip) or Karpathy's ``dataset_coco.json``, which has the same ids, and the pictures of the split
in ``val2014/`` (or ``images/``). The lists of pairs come with the package: ``pip install eccv_caption``, or its folder
``data`` copied to ``DIRECTORY/eccv_caption``. Where DIRECTORY holds another set, too, name the file of captions.

Here what is wrong stands before what is right where scores tie. The package is given a finished ranking, so there a tie
falls as ``topk`` or ``argsort`` left it, and a collapsed model can score anything. Without ties both give the same. It
wants whole rankings for the folds, 250 million ids, which is why it does not compute the figures here. Two of its right
captions are outside the split; they count in R, as in the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlp.data import coco_sets
from vlp.data.benchmark_sets import RetrievalSet
from vlp.evaluation import intervals, many_positives, metrics
from vlp.evaluation import retrieval as shared
from vlp.evaluation.retrieval import FOUND, RECALL_AT, Figure
from vlp.evaluation.tasks import base, retrieval


class Task(retrieval.Task):
    """COCO's own recalls on all pictures are those of `retrieval.Task`, under its names."""

    layout = "for ECCV Caption captions_val2014.json (COCO's annotations_trainval2014.zip) or the folder eccv_caption"
    kept = "the captions of the test split, five a picture"

    def read(self, path: Path) -> RetrievalSet:
        self.set = coco_sets.read_coco_test(path)
        return RetrievalSet(self.set.images, self.set.texts, self.set.image_of_text)

    @staticmethod
    def detects(path: Path) -> bool:
        return coco_sets.is_coco_test(path)

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        """``eccv_map_at_r``, ``eccv_rprecision``, ``eccv_r1``, ``cxc_rK``, ``coco_1k_rK``: each ``_i2t``, ``_t2i``."""
        figures = [figure for direction in FOUND for figure in self._of_lists(direction, embeddings)]
        scores = shared.with_figures(super().score(embeddings), figures, self.name, first=True)
        folds = shared.fold_recalls(embeddings, torch.tensor(self.image_of_text))
        return shared.with_figures(scores, folds, self.name)

    def _of_lists(self, direction: str, embeddings: base.SetEmbeddings) -> list[Figure]:
        """What ECCV Caption's and CxC's pairs say in one direction."""
        query_ND, candidate_MD = embeddings.image_ND, embeddings.text_ND
        picture_of_query: Sequence[int] = range(len(self.images))
        if direction == "text_to_image":
            query_ND, candidate_MD, picture_of_query = candidate_MD, query_ND, self.image_of_text

        def ranks(asked: coco_sets.Positives, depth: int) -> many_positives.RightRanks:
            return many_positives.right_ranks(query_ND[asked.queries], candidate_MD, asked.right, asked.number, depth)

        def figure(name: str, about: str, asked: coco_sets.Positives, value_N: Tensor, chance: float) -> Figure:
            values, pictures = value_N.tolist(), [picture_of_query[query] for query in asked.queries]
            return Figure(
                name, direction, about, sum(values) / len(values), chance, intervals.of_mean(values, pictures)
            )

        eccv: coco_sets.Positives = getattr(self.set.eccv, direction)
        cxc: coco_sets.Positives = getattr(self.set.cxc, direction)
        num_candidates = len(candidate_MD)
        found = ranks(eccv, depth=max(eccv.number))
        map_at_r = many_positives.chance_of_map_at_r(eccv.right, eccv.number, num_candidates)
        r_precision = many_positives.chance_of_r_precision(eccv.right, num_candidates)
        any_of_eccv = metrics.chance_any_of([len(rows) for rows in eccv.right], num_candidates, 1)
        figures = [
            figure("eccv_map_at_r", "ECCV mAP@R", eccv, found.map_at_r(), map_at_r),
            figure("eccv_rprecision", "ECCV R-precision", eccv, found.r_precision(), r_precision),
            figure("eccv_r1", "ECCV R@1", eccv, found.recall(1), any_of_eccv),
        ]
        found = ranks(cxc, depth=max(RECALL_AT))
        for k in RECALL_AT:
            any_of_cxc = metrics.chance_any_of([len(rows) for rows in cxc.right], num_candidates, k)
            figures.append(figure(f"cxc_r{k}", f"CxC R@{k}", cxc, found.recall(k), any_of_cxc))
        return figures
