"""Choosing the true of two captions (SugarCrepe's layout, also our scenes' suites).

SugarCrepe (Hsieh et al., arXiv:2306.14610): the seven files of ``data/`` of github.com/RAIVNLab/sugar-crepe, here or in
``data/``, and COCO's pictures of 2017 in ``val2017/`` (or ``images/``):

    add_att.json add_obj.json replace_att.json replace_obj.json replace_rel.json swap_att.json swap_obj.json
    val2017/000000000139.jpg ...

Other files of the form ``SUITE.json`` = {"0": {filename, caption, negative_caption}, ...} are suites as well. A
directory with some of the seven must have them all, or its means would be others than those of the papers; one suite
by itself is named as a file, ``DIRECTORY/data/swap_obj.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlp.data import choice_sets
from vlp.evaluation.choices import ChoiceTask, Mean
from vlp.types import UserError

SOURCE = "github.com/RAIVNLab/sugar-crepe"
SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


class Task(ChoiceTask):
    layout = "SugarCrepe's add_att.json ... (data/ of github.com/RAIVNLab/sugar-crepe)"
    table = "suite"
    categories_are_metrics = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if path.is_dir():
            _check_sugarcrepe(choice_sets.pair_files(path))
        found = choice_sets.read_pair_set(path)
        self.images, self.texts, self.choices = found.images, found.texts, found.choices

    @staticmethod
    def detects(path: Path) -> bool:
        return bool(choice_sets.pair_files(path))

    def means(self) -> dict[str, Mean]:
        """All suites; where they are SugarCrepe's, also its kinds of change, as papers average them."""
        suites = tuple(dict.fromkeys(choice.category for choice in self.choices))
        number = "only suite" if len(suites) == 1 else f"{len(suites)} suites"
        means = {"macro": Mean(f"mean of the {number} (macro)", suites)}
        if set(SUGARCREPE) <= set(suites):
            for kind in ("add", "replace", "swap"):
                of_kind = tuple(suite for suite in SUGARCREPE if suite.startswith(kind))
                means[kind] = Mean(f"mean of {', '.join(of_kind)}", of_kind)
        return means


def _check_sugarcrepe(files: Sequence[Path]) -> None:
    stems = {file.stem for file in files}
    missing = [suite for suite in SUGARCREPE if suite not in stems]
    official = [file for file in files if file.stem in SUGARCREPE]
    if missing and official:
        raise UserError(
            f"{files[0].parent / missing[0]}.json is missing: copy it from data/ of {SOURCE}, or name single files "
            f"such as {official[0]}"
        )
