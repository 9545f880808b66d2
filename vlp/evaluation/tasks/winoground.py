"""Winoground (Thrush et al., arXiv:2204.03162): captions of the same words in another order, each with its picture.

The official files are those of the Hugging Face data set facebook/winoground, which asks to accept its terms.
DIRECTORY, or ``data/`` in it, holds what was published, in one of two forms: ``examples.jsonl`` with ``images.zip`` (or
its ``images/``), or, as the data set is kept today, ``test-*.parquet``. Our scenes are written in the first form.

Tables are by ``collapsed_tag`` (what is swapped: objects, relations, both), ``num_main_preds`` (number of main
predicates) and ``secondary_tag``, as far as the examples have them; the benchmark has no mean of categories.
"""

from __future__ import annotations

from pathlib import Path

from vlp.data import twin_sets
from vlp.evaluation.twins import TwinTask


class Task(TwinTask):
    """Text, image and group score."""

    layout = "Winoground's examples.jsonl or test-*.parquet (the gated Hugging Face data set facebook/winoground)"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        found = twin_sets.read_winoground(directory)
        self.images = found.images
        self.texts = found.texts
        self.twins = found.twins
        self.tables = found.tables

    @staticmethod
    def detects(directory: Path) -> bool:
        return twin_sets.is_winoground(directory)
