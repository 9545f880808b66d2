"""One self-contained HTML page of a run: figures, curves, data, galleries, the common space, the recipe."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from vlp.evaluation.choices import ChoiceTask
from vlp.evaluation.report import choice_gallery, curves, retrieval_gallery, space, summary, twin_gallery
from vlp.evaluation.report.captions import caption
from vlp.evaluation.report.categories import Bars, bars
from vlp.evaluation.report.failures import Gallery
from vlp.evaluation.report.gather import RunContents, read_run
from vlp.evaluation.report.pictures import img
from vlp.evaluation.report.templates import save, template
from vlp.evaluation.report.values import format_value
from vlp.evaluation.tasks import classification, retrieval
from vlp.evaluation.twins import TwinTask

__all__ = ["write_report"]


def write_report(run: str | Path, output: str | Path | None = None, beside: Sequence[str | Path] = ()) -> Path:
    """Write the report of the run directory ``run`` (default ``RUN/report.html``) and return its path.

    The scores of the runs, or files of results, in ``beside`` stand next to its own.

    The page needs no network, no server and no script. A run without evaluation sets, metrics or checkpoints, or in
    the middle of training, has a report that says what is missing. The same run gives the same bytes.

    Raises:
        UserError: ``run`` is no run directory, one of ``beside`` has no results, or ``output`` is a directory.
    """
    directory = Path(run)
    path = Path(output) if output is not None else directory / "report.html"
    return save(render(read_run(directory, [Path(other) for other in beside])), path)


def render(run: RunContents) -> str:
    """The page of what was read from a run."""
    found = [shown for shown in run.sets if isinstance(shown.task, retrieval.Task)]
    classes = [shown for shown in run.sets if isinstance(shown.task, classification.Task)]
    tables = summary.tables(run)
    return template("report.html.j2").render(
        run=run,
        percent=partial(format_value, unit="percent"),
        sentence=summary.sentence(run),
        tiles=summary.tiles(run),
        tables=tables,
        intervals=any(table.has_intervals() for table in tables),
        skipped=summary.skipped(run),
        charts=curves.charts(run.rows, run.results),
        sheet=[(img(image, text), caption(text), key) for image, text, key in run.sheet.samples] if run.sheet else [],
        retrieval=[(shown.task.name, retrieval_gallery.gallery(shown)) for shown in found],
        composition=_composition(run),
        spaces=[space.view(shown) for shown in found],
        classes=[(shown.task.name, space.figures(shown)) for shown in classes],
        versions=_versions(),
    )


@dataclass(frozen=True)
class _Choosing:
    """A set that asks to choose: its scores by category, and the failures where the set could be embedded."""

    name: str
    bars: list[Bars]
    choices: Gallery[choice_gallery.ShownChoice] | None
    twins: Gallery[twin_gallery.ShownTwin] | None


def _composition(run: RunContents) -> list[_Choosing]:
    tasks = {shown.task.name: shown for shown in run.sets}
    found = []
    for name, contents in run.by_set().items():
        shown = tasks.get(name)
        choices = choice_gallery.gallery(shown) if shown and isinstance(shown.task, ChoiceTask) else None
        twins = twin_gallery.gallery(shown) if shown and isinstance(shown.task, TwinTask) else None
        tables = bars(contents)
        if tables or choices or twins:
            found.append(_Choosing(name, tables, choices, twins))
    return found


def _versions() -> list[tuple[str, str]]:
    packages = ("vlp", "torch", "open_clip_torch", "transformers")
    return [(name, metadata.version(name)) for name in packages] + [("Python", platform.python_version())]
