"""Results as tables for the terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vlp.evaluation import geometry
from vlp.evaluation.results import Result, main_metrics, title
from vlp.evaluation.suites.base import Suite
from vlp.evaluation.tasks.base import Scores


def format_table(results: Sequence[Result]) -> str:
    """A table of metrics, intervals and chance levels in per cent; below it geometry, other figures and notes."""
    table = Table("set", "metric", "name", "score %", "95 % interval", "chance %", title_justify="left")
    for column in table.columns[:3]:
        column.overflow = "fold"  # never cut a name
    # Long names leave room for what they mean; with the figures these are the 120 columns.
    table.columns[0].max_width, table.columns[1].min_width, table.columns[2].max_width = 20, 26, 27
    for column in table.columns[3:]:
        column.justify = "right"
    for result in results:
        scores = result.scores
        about = [result.dataset, f"{scores.num_images:,} images, {scores.num_texts:,} texts"]
        about += [] if math.isnan(scores.tie_rate) else [f"ties {100 * scores.tie_rate:.2f} %"]
        shown = [(name, value) for name, value in scores.metrics.items() if not math.isnan(value)]
        for row, (name, value) in enumerate(shown):
            first = about[row] if row < len(about) else ""
            label = scores.labels.get(name, name)
            low, high = scores.intervals.get(name, (math.nan, math.nan))
            interval = "" if math.isnan(low) else f"{100 * low:.1f} to {100 * high:.1f}"
            chance = "" if math.isnan(scores.chance[name]) else f"{100 * scores.chance[name]:.2f}"
            table.add_row(first, label, name, f"{100 * value:.1f}", interval, chance)
        for rest in about[len(shown) :]:
            table.add_row(rest)
        table.add_section()
    console = Console(file=io.StringIO(), width=120, markup=False)
    console.print(table, *_geometry_tables(results), *_figure_tables(results))
    for result in results:
        for note in result.scores.notes:
            console.print(f"{result.dataset}: {note}", markup=False, highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def format_models(results: Sequence[Result]) -> str:
    """The main metrics of several models side by side, in per cent."""
    models = list(dict.fromkeys((result.model, result.pretrained) for result in results))
    table = Table("set", "metric", title_justify="left")
    for model, pretrained in models:
        table.add_column(title(model, pretrained), justify="right", overflow="fold")
    table.add_column("chance %", justify="right")
    for dataset in dict.fromkeys(result.dataset for result in results):
        of_model = {(one.model, one.pretrained): one.scores for one in results if one.dataset == dataset}
        task, first = next((one.task, one.scores) for one in results if one.dataset == dataset)
        for metric in main_metrics(task, first.metrics):
            cells = [_cell(of_model.get(model), metric) for model in models]
            table.add_row(dataset, first.labels.get(metric, metric), *cells, _percent(first.chance.get(metric), 2))
    return _printed(table)


def format_suite(name: str, suite: Suite, results: Sequence[Result]) -> str:
    """A suite's main metrics and the means of its groups, a column a model, in per cent."""
    models = list(dict.fromkeys((result.model, result.pretrained) for result in results))
    table = Table(f"{name}: main metrics", title_justify="left")
    for model, pretrained in models:
        table.add_column(title(model, pretrained), justify="right", overflow="fold")
    scores, means = [], []
    for named in models:
        own = {one.dataset: one.scores.metrics for one in results if (one.model, one.pretrained) == named}
        scores.append(suite.scores(own))
        means.append(suite.means(scores[-1]))
    for entry in suite.entries:
        if any(entry.name in own for own in scores):
            table.add_row(f"{entry.name} ({entry.metric})", *(_percent(own.get(entry.name), 1) for own in scores))
    table.add_section()
    for row in zip(*means, strict=True):
        table.add_row(row[0].label, *(_percent(mean.value, 1) for mean in row))
    return _printed(table)


def _cell(scores: Scores | None, metric: str) -> str:
    if scores is None or metric not in scores.metrics:
        return "–"
    low, high = scores.intervals.get(metric, (math.nan, math.nan))
    interval = "" if math.isnan(low) else f" ({100 * low:.1f}–{100 * high:.1f})"
    return _percent(scores.metrics[metric], 1) + interval


def _percent(value: float | None, digits: int) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def _printed(*tables: Table) -> str:
    console = Console(file=io.StringIO(), width=120, markup=False)
    console.print(*tables)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _geometry_tables(results: Sequence[Result]) -> list[Table]:
    """A table for each kind of set that has figures of its embeddings: a set a row."""
    tables: dict[tuple[str, ...], Table] = {}
    for result in results:
        figures = result.scores.geometry
        if figures and tuple(figures) not in tables:
            table = tables[tuple(figures)] = Table("embeddings of")
            for name in figures:
                table.add_column(geometry.FIGURES[name].column, justify="right")
        if figures:
            shown = ("–" if math.isnan(value) else f"{value:.3g}" for value in figures.values())
            tables[tuple(figures)].add_row(result.dataset, *shown)
    return list(tables.values())


def _figure_tables(results: Sequence[Result]) -> list[Table]:
    """As `_geometry_tables`, of what is no share of right answers."""
    tables: dict[tuple[str, ...], Table] = {}
    for result in results:
        figures = result.scores.figures
        if figures:
            if tuple(figures) not in tables:
                tables[tuple(figures)] = Table("set", *(name.replace("_", " ") for name in figures))
            shown = ("–" if math.isnan(value) else f"{value:.4g}" for value in figures.values())
            tables[tuple(figures)].add_row(result.dataset, *shown)
    return list(tables.values())
