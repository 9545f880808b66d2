"""`karpathy` with the first five captions of every picture; it is not detected, but named: ``karpathy5:PATH``."""

from __future__ import annotations

from pathlib import Path

from vlp.data.karpathy_sets import USUAL
from vlp.evaluation.tasks import karpathy


class Task(karpathy.Task):
    layout = ""
    first = USUAL

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.name += f"_first{USUAL}"

    @staticmethod
    def detects(directory: Path) -> bool:
        return False
