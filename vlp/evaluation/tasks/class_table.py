"""Classification of the pictures of a table with their classes (CSV, TSV)."""

from __future__ import annotations

from pathlib import Path

from vlp.data.benchmark_sets import ClassificationSet
from vlp.data.class_tables import is_class_table, read_class_table
from vlp.evaluation.tasks import classification


class Task(classification.Task):
    layout = "test.csv with the columns image and label (or a .tsv)"

    @staticmethod
    def detects(directory: Path) -> bool:
        return is_class_table(directory)

    @staticmethod
    def read(directory: Path, split: str) -> ClassificationSet:
        return read_class_table(directory, split)
