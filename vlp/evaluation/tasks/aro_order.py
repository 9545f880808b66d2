"""ARO's COCO-Order and Flickr30k-Order (Yuksekgonul et al., arXiv:2210.01936): a caption against its shuffled words.

DIRECTORY holds the captions of Karpathy's test split as BLIP gives them (github.com/salesforce/BLIP; the reader of
github.com/mertyg/vision-language-models-are-bows downloads them), and the pictures they name:

    coco_karpathy_test.json   [{"image": "val2014/COCO_val2014_000000391895.jpg", "caption": [five]}, ...]
    val2014/...

    flickr30k_test.json       [{"image": "flickr30k-images/1007129816.jpg", "caption": [five]}, ...]
    flickr30k-images/...      (on request from the authors of Flickr30k)

Each caption is shuffled in four ways (`vlp.data.word_order`), which needs spaCy, and kept in
``coco_order.made_by_vlp.json``. ARO draws its shuffles at every start without a seed, so its figures vary in the last
digits and differ from these. To have the shuffles of a paper, or none of spaCy, give ``coco_order.json`` (or
``flickr30k_order.json``), the ``test_cases`` of ARO's reader: [{"image", "caption_options": [true, four shuffles in
ARO's order]}, ...], with null where there is no shuffle. A shuffle that is the caption again is left out and counted.
Where one directory holds both sets, name the file.

``text_acc`` is the paper's precision@1: the true caption is above all of its shuffles.
"""

from __future__ import annotations

from pathlib import Path

from vlp.data import order_sets
from vlp.evaluation.choices import ChoiceTask


class Task(ChoiceTask):
    layout = "ARO's coco_karpathy_test.json or flickr30k_test.json (from the same reader)"
    table = "shuffle"
    categories_are_metrics = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        read = order_sets.read_order_set(path)
        self.images, self.texts, self.choices = read.found.images, read.found.texts, read.found.choices
        self.category_of_wrong = read.shuffle_of_wrong
        self.left_out = read.left_out

    @staticmethod
    def detects(path: Path) -> bool:
        return bool(order_sets.find(path))

    def label(self) -> str:
        without = f"; {self.left_out:,} shuffles that are the caption again left out" if self.left_out else ""
        return super().label() + without
