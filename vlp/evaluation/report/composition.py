"""Sets that ask to choose among captions, or captions and pictures: scores by category, and the worst failures."""

from __future__ import annotations

from dataclasses import dataclass

from vlp.evaluation.choices import ChoiceTask
from vlp.evaluation.report import choice_gallery, twin_gallery
from vlp.evaluation.report.categories import Bars, bars
from vlp.evaluation.report.failures import Gallery
from vlp.evaluation.report.gather import RunContents
from vlp.evaluation.twins import TwinTask


@dataclass(frozen=True)
class View:
    """One set; it has a gallery where its pictures could be embedded, and bars where it has categories."""

    name: str
    bars: list[Bars]
    choices: Gallery[choice_gallery.ShownChoice] | None
    twins: Gallery[twin_gallery.ShownTwin] | None


def views(run: RunContents) -> list[View]:
    """The sets of this run, and of those beside it, that have bars or a gallery."""
    embedded = {shown.task.name: shown for shown in run.sets}
    found = []
    for name, contents in run.by_set().items():
        shown = embedded.get(name)
        choices = choice_gallery.gallery(shown) if shown and isinstance(shown.task, ChoiceTask) else None
        twins = twin_gallery.gallery(shown) if shown and isinstance(shown.task, TwinTask) else None
        tables = bars(contents)
        if tables or choices or twins:
            found.append(View(name, tables, choices, twins))
    return found
