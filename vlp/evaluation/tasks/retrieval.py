"""Zero-shot retrieval, several captions a picture (CLIP_benchmark's webdataset layout).

Image -> text counts a picture as right at K when any of its captions is among the first K; text -> image asks
each caption for its picture. A caption that two pictures share is a tie: it counts as wrong for both unless
another caption of the picture wins, and it shows in the tie rate.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from vlp.data.benchmark_sets import dataset_type, is_benchmark_directory, read_retrieval_set
from vlp.evaluation import geometry, metrics
from vlp.evaluation.tasks import base

RECALL_AT = (1, 5, 10)


class Task(base.Task):
    kind = "zeroshot_retrieval"
    layout = "test/nshards.txt with dataset_type.txt saying retrieval (CLIP_benchmark's webdataset layout)"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        found = read_retrieval_set(directory)
        self.images = found.images
        self.texts = found.texts
        self.image_of_text = found.image_of_text

    @staticmethod
    def detects(directory: Path) -> bool:
        return is_benchmark_directory(directory) and dataset_type(directory) == "retrieval"

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        image_ND, text_ND, image_of_text = embeddings.image_ND, embeddings.text_ND, torch.tensor(self.image_of_text)
        ranks = metrics.retrieval_ranks(image_ND, text_ND, image_of_text)
        figures = geometry.of_pairs(image_ND, text_ND, image_of_text, embeddings.logit_scale)
        num_images, num_texts = len(self.images), len(self.texts)
        texts_per_image = list(Counter(self.image_of_text).values())
        recalls, chance, labels, log = {}, {}, {}, {}
        # CLIP_benchmark names a direction by what is found, open_clip's log by query and answer.
        directions = (
            ("text_retrieval", "image_to_text", ranks.image_to_text, texts_per_image, num_texts),
            ("image_retrieval", "text_to_image", ranks.text_to_image, [1] * num_texts, num_images),
        )
        for found, direction, rank, num_positives, num_candidates in directions:
            for k in RECALL_AT:
                name = f"{found}_recall@{k}"
                recalls[name] = log[f"{self.name}/{direction}_R@{k}"] = rank.recall(k)
                chance[name] = metrics.chance_any_of(num_positives, num_candidates, k)
                labels[name] = f"{direction.replace('_to_', ' -> ')} R@{k}"
            log[f"{self.name}/{direction}_mean_rank"] = rank.mean()
            log[f"{self.name}/{direction}_median_rank"] = rank.median()
        return base.Scores(
            metrics=recalls,
            chance=chance,
            tie_rate=ranks.tie_rate(),
            num_images=num_images,
            num_texts=num_texts,
            log=log | self.geometry_for_log(figures),
            labels=labels,
            details={
                "image_to_text_rank": ranks.image_to_text.rank_N.tolist(),
                "text_to_image_rank": ranks.text_to_image.rank_N.tolist(),
            },
            geometry=figures,
        )
