"""Retrieval on a table of pictures and captions, CSV or TSV."""

from __future__ import annotations

from pathlib import Path

from vlp.data.benchmark_sets import RetrievalSet
from vlp.data.caption_tables import is_caption_table, read_caption_table
from vlp.evaluation.tasks import retrieval


class Task(retrieval.Task):
    layout = "a .csv or .tsv with the columns image and caption (or filepath and title)"

    def read(self, path: Path) -> RetrievalSet:
        return read_caption_table(path)

    @staticmethod
    def detects(directory: Path) -> bool:
        return is_caption_table(directory)
