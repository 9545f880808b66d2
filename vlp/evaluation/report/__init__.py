"""One self-contained HTML page of a run: figures, curves, data, galleries, the common space, the recipe."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

from vlp.evaluation.report import caption_gallery, composition, curves, retrieval_gallery, space, summary
from vlp.evaluation.report.captions import caption
from vlp.evaluation.report.gather import RunContents, read_run
from vlp.evaluation.report.pictures import img
from vlp.evaluation.report.templates import save, template
from vlp.evaluation.report.values import format_value
from vlp.evaluation.tasks import classification, retrieval

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
        composition=composition.views(run),
        captions=caption_gallery.views(run),
        spaces=[space.view(shown) for shown in found],
        classes=[(shown.task.name, space.figures(shown)) for shown in classes],
        versions=_versions(),
    )


def _versions() -> list[tuple[str, str]]:
    packages = ("vlp", "torch", "open_clip_torch", "transformers")
    return [(name, metadata.version(name)) for name in packages] + [("Python", platform.python_version())]
