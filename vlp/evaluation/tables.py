"""Results as tables for the terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vlp.evaluation import geometry
from vlp.evaluation.results import Result


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
    console = Console(file=io.StringIO(), width=120)
    console.print(table, *_geometry_tables(results), *_figure_tables(results))
    for result in results:
        for note in result.scores.notes:
            console.print(f"{result.dataset}: {note}", markup=False, highlight=False)
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
            shown = ("–" if math.isnan(value) else f"{value:.3g}" for value in figures.values())
            tables[tuple(figures)].add_row(result.dataset, *shown)
    return list(tables.values())
