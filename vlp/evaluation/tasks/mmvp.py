"""MMVP-VLM (Tong et al., arXiv:2401.06209): pairs of pictures that CLIP takes for alike, in nine visual patterns.

The official files are those of the Hugging Face data set MMVP/MMVP_VLM: DIRECTORY holds ``Questions.csv`` (Question ID,
Type, Statement; 135 pairs of rows) and the folder ``MLLM_VLM Images`` with ``TYPE/ID.jpg``.

A pair is right if both statements, each after the prompt ``a photo of``, choose their picture (Winoground's image
score). The benchmark's figure is the mean of the nine patterns, here ``image_acc_macro``. The released script
(github.com/tsb0601/MMVP, scripts/evaluate_vlm.py) gives the same pairs for right where no scores tie, with three
differences that show only in other data: it names the patterns by their place in the file and not by Type, takes which
picture is right from whether the ID is odd, and rounds the scores to a probability of a half, where a tie is right for
the second statement.
"""

from __future__ import annotations

from pathlib import Path

from vlp.data import twin_sets
from vlp.evaluation import intervals, twins
from vlp.evaluation.tasks import base

PROMPT = "a photo of "


class Task(twins.TwinTask):
    layout = "MMVP-VLM's Questions.csv (the Hugging Face data set MMVP/MMVP_VLM)"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        found = twin_sets.read_mmvp(directory)
        self.images = found.images
        self.texts = [PROMPT + statement for statement in found.texts]
        self.twins = found.twins
        self.tables = found.tables

    @staticmethod
    def detects(directory: Path) -> bool:
        return twin_sets.is_mmvp(directory)

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        """``image_acc`` (all pairs, micro), ``image_acc_macro`` (mean of the types) and ``image_acc_TYPE``."""
        found = twins.answers(embeddings.image_ND, embeddings.text_ND, self.twins)
        right, types = found.right()["image"], self.tables["type"]
        rows = twins.categories_of("type", right, types, twins.CHANCE["image"])
        suffix = {row.name: row.name.lower().replace(" ", "_") for row in rows}
        micro, macro = sum(right) / len(right), sum(row.score for row in rows) / len(rows)
        figures = {
            "image_acc": micro,
            "image_acc_macro": macro,
            **{f"image_acc_{suffix[row.name]}": row.score for row in rows},
        }
        pairs = range(len(right))
        return base.Scores(
            metrics=figures,
            chance=dict.fromkeys(figures, twins.CHANCE["image"]),
            tie_rate=found.image_tie_rate,
            num_images=len(self.images),
            num_texts=len(self.texts),
            log={
                **{f"{self.name}/{suffix[row.name]}_accuracy": row.score for row in rows},
                f"{self.name}/micro_accuracy": micro,
                f"{self.name}/macro_accuracy": macro,
            },
            labels={
                "image_acc": "both statements find their picture, all pairs",
                "image_acc_macro": "mean of the types",
                **{f"image_acc_{suffix[row.name]}": row.name for row in rows},
            },
            details={"text_margin": found.text_margin_N.tolist(), "image_margin": found.image_margin_N.tolist()},
            intervals=twins.defined(
                {
                    "image_acc": intervals.of_mean(right, pairs),
                    "image_acc_macro": intervals.of_category_mean(right, types, pairs),
                    **{f"image_acc_{suffix[row.name]}": row.interval for row in rows},
                }
            ),
            categories=rows,
        )
