"""Classification of pictures that lie in a folder for each class (torchvision's ImageFolder, ImageNet's own layout)."""

from __future__ import annotations

from pathlib import Path

from vlp.data.benchmark_sets import ClassificationSet
from vlp.data.class_folders import is_class_directory, read_class_folders
from vlp.evaluation.tasks import classification


class Task(classification.Task):
    layout = "a folder of pictures for each class, also below test/ or val/ (ImageFolder)"

    @staticmethod
    def detects(directory: Path) -> bool:
        return is_class_directory(directory)

    @staticmethod
    def read(directory: Path, split: str) -> ClassificationSet:
        return read_class_folders(directory, split)
