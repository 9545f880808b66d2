"""ARO's VG-Attribution (Yuksekgonul et al., arXiv:2210.01936): "the crouched cat and the open door", or the reverse.

The official files are those of github.com/mertyg/vision-language-models-are-bows, whose reader downloads them:
``visual_genome_attribution.json`` and vgr_vga_images.zip, a gigabyte that unpacks to ``images/``:

    visual_genome_attribution.json   [{image_path, bbox_x, bbox_y, bbox_w, bbox_h, true_caption, false_caption,
                                       attributes: [two], ...}, ...]
    images/2325499.jpg ...

Where one directory holds ``visual_genome_relation.json`` as well, name the file:
``DIRECTORY/visual_genome_attribution.json``. Pictures are cut to the box. ``text_acc_macro_official`` is the figure of
the paper: the mean of the pairs of attributes, in their order, that have 25 items or more; ``text_acc_macro`` is the
mean of all.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from vlp.data import aro_sets
from vlp.evaluation.choices import ChoiceTask, Mean

FEWEST = 25


class Task(ChoiceTask):
    layout = "ARO's visual_genome_attribution.json (from the same reader)"
    table = "attributes"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        found = aro_sets.read_crops(path, aro_sets.ATTRIBUTION)
        self.images, self.texts, self.choices = found.images, found.texts, found.choices

    @staticmethod
    def detects(path: Path) -> bool:
        return aro_sets.is_file_or_in(path, (aro_sets.ATTRIBUTION,))

    def means(self) -> dict[str, Mean]:
        numbers = Counter(choice.category for choice in self.choices)
        kept = tuple(pair for pair, number in numbers.items() if number >= FEWEST)
        number = "the only pair" if len(numbers) == 1 else f"all {len(numbers)} pairs"
        label = f"mean of {number} of attributes (macro)"
        left_out = f"fewer than {FEWEST} items, left out: {len(numbers) - len(kept)}"
        return {
            "macro": Mean(label if kept else f"{label}, none has {FEWEST} items", tuple(numbers)),
            "macro_official": Mean(f"mean of the paper's pairs (macro, {len(kept)}; {left_out})", kept),
        }
