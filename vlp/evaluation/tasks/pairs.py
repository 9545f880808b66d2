"""Choosing the true of two captions (SugarCrepe's layout, also our scenes' suites).

SugarCrepe (Hsieh et al., arXiv:2306.14610): the seven files of ``data/`` of github.com/RAIVNLab/sugar-crepe, here or in
``data/``, and COCO's pictures of 2017 in ``val2017/`` (or ``images/``):

    add_att.json add_obj.json replace_att.json replace_obj.json replace_rel.json swap_att.json swap_obj.json
    val2017/000000000139.jpg ...

Other files of the form ``SUITE.json`` = {"0": {filename, caption, negative_caption}, ...} are suites as well.
"""

from __future__ import annotations

from pathlib import Path

from vlp.data import choice_sets
from vlp.evaluation.choices import ChoiceTask, Mean

SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


class Task(ChoiceTask):
    table = "suite"
    categories_are_metrics = True

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        found = choice_sets.read_pair_set(directory)
        self.images, self.texts, self.choices = found.images, found.texts, found.choices

    @staticmethod
    def detects(directory: Path) -> bool:
        return bool(choice_sets.pair_files(directory))

    def means(self) -> dict[str, Mean]:
        """All suites; where they are SugarCrepe's, also its kinds of change, as papers average them."""
        suites = tuple(dict.fromkeys(choice.category for choice in self.choices))
        lacking = [suite for suite in SUGARCREPE if suite not in suites]
        is_part = lacking and set(suites) < set(SUGARCREPE)
        without = f", without SugarCrepe's {', '.join(lacking)}" if is_part else ""
        means = {"macro": Mean(f"mean of the {len(suites)} suites (macro{without})", suites)}
        if not lacking:
            for kind in ("add", "replace", "swap"):
                of_kind = tuple(suite for suite in SUGARCREPE if suite.startswith(kind))
                means[kind] = Mean(f"mean of {', '.join(of_kind)}", of_kind)
        return means
