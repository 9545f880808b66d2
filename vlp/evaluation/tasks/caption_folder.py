"""Retrieval on a folder of pictures with their captions beside them."""

from __future__ import annotations

from pathlib import Path

from vlp.data.benchmark_sets import RetrievalSet
from vlp.data.caption_folders import is_caption_folder, read_caption_folder
from vlp.evaluation.tasks import retrieval


class Task(retrieval.Task):
    layout = "pictures with a .txt of captions of the same name beside each, one a line"

    def read(self, path: Path) -> RetrievalSet:
        return read_caption_folder(path)

    @staticmethod
    def detects(directory: Path) -> bool:
        return is_caption_folder(directory)
