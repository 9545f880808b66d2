"""Evaluating a model on directories: find the tasks, run them, write results as CLIP_benchmark does."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, Field, model_validator
from rich.console import Console
from rich.table import Table

from vlp import resolve
from vlp.evaluation import geometry
from vlp.evaluation.classification_options import ClassificationOptions
from vlp.evaluation.embed import Encoder
from vlp.evaluation.tasks.base import Scores, Task
from vlp.evaluation.tasks.captioning import CaptioningOptions
from vlp.evaluation.team import ALONE, Team
from vlp.types import UserError

TASKS = "vlp.evaluation.tasks"
CAPTIONS = ".captions.jsonl"  # in place of the .json of a result: what a captioner said


class EvaluateOptions(BaseModel, frozen=True, extra="forbid"):
    """On what the model is evaluated, and when."""

    sets: list[str] = Field(
        [],
        description="directories of evaluation sets; where one holds several sets, the JSON file of one; "
        "`captioning:DIR` asks what a captioner says of the pictures of a set of retrieval",
    )
    every: int | None = Field(None, ge=1, description="steps between evaluations; there is always one at the end")
    batch_size: int = Field(256, ge=1, description="pictures, or texts, embedded at once")
    captioning: CaptioningOptions | None = Field(
        None, description="how captions are written, and the MODEL that judges them, for the sets `captioning:DIR`"
    )

    classification: ClassificationOptions | None = Field(
        None, description="prompts, class names and probes of the sets with classes"
    )

    @model_validator(mode="after")
    def _captioning_has_an_effect(self) -> EvaluateOptions:
        if self.captioning is not None and not any(_task_named(entry)[0] == "captioning" for entry in self.sets):
            raise ValueError("captioning has no effect, as no set asks for captions: write one as captioning:DIR")
        return self


@dataclass(frozen=True)
class Result:
    """The scores of one model on one set."""

    dataset: str
    task: str
    model: str
    pretrained: str
    scores: Scores
    step: int | None = None
    language: str = "en"

    def to_json(self) -> dict[str, Any]:
        """CLIP_benchmark's fields, then ours; null where CLIP_benchmark writes NaN, which is no JSON."""
        scores = self.scores
        return {
            "dataset": self.dataset,
            "model": self.model,
            "pretrained": self.pretrained,
            "task": self.task,
            "metrics": _without_nan(scores.metrics),
            "language": self.language,
            "labels": scores.labels,
            "chance": _without_nan(scores.chance),
            "intervals": {name: limits for name, limits in scores.intervals.items() if not math.isnan(limits[0])},
            "categories": [
                {**asdict(row), "interval": None if math.isnan(row.interval[0]) else row.interval}
                for row in scores.categories
            ],
            "num_images": scores.num_images,
            "num_texts": scores.num_texts,
            **({} if math.isnan(scores.tie_rate) else {"tie_rate": scores.tie_rate}),
            "geometry": _without_nan(scores.geometry),
            **({"figures": _without_nan(scores.figures)} if scores.figures else {}),
            **({"notes": scores.notes} if scores.notes else {}),
            **({} if self.step is None else {"step": self.step}),
        }


def find_task(entry: str | Path, options: EvaluateOptions | None = None) -> Task:
    """The task that ``entry`` names (``TASK:PATH``), or that knows the layout of its path; its set listed and checked.

    Args:
        entry: the path is a directory, or the JSON file of one of several sets that lie in one, as ARO's do.
        options: those of a task that has some are taken from them.

    Raises:
        UserError: no such directory or task, unknown layout, several sets in it, or a set that is not whole.
    """
    name, directory = _task_named(entry)
    if not directory.exists():
        raise UserError(f"evaluation set {entry} does not exist: check the path")
    if name is not None:
        return _opened(_task_class(name), directory, options)
    known = [_task_class(name) for name in resolve.names(TASKS)]
    found = [task for task in known if task.detects(directory)]
    if len(found) == 1:
        return _opened(found[0], directory, options)
    if found:
        files = [str(file) for file in sorted(directory.glob("*.json")) if any(task.detects(file) for task in known)]
        hint = f"name the file of one ({' or '.join(files)}), or " if files else ""
        raise UserError(f"{directory} holds several evaluation sets: {hint}give each a directory of its own")
    folders = sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
    inner = [str(path) for path in folders if any(task.detects(path) for task in known)]
    layouts = [task.layout for task in known if task.layout]
    hint = f"; name the sets inside it instead ({', '.join(inner[:5])})" if inner else ""
    raise UserError(f"{directory} has no known layout{hint}: it must hold, under these names, {'; or '.join(layouts)}")


def _task_named(entry: str | Path) -> tuple[str | None, Path]:
    """The task and the path of ``TASK:PATH``, where there is no such path as the whole."""
    name, colon, path = str(entry).partition(":")
    return (
        (name, Path(path)) if colon and re.fullmatch(r"\w+", name) and not Path(entry).exists() else (None, Path(entry))
    )


def _task_class(name: str) -> type[Task]:
    return resolve.module(TASKS, name, "evaluation task").Task


def _opened(task: type[Task], path: Path, options: EvaluateOptions | None) -> Task:
    if not task.section:
        return task(path)
    return cast(Any, task)(path, getattr(options or EvaluateOptions(), task.section))


def _check_classification(options: EvaluateOptions, tasks: Sequence[Task]) -> None:
    if options.classification is not None and not any(task.section == "classification" for task in tasks):
        raise UserError(
            "options of classification have no effect, as no evaluation set has classes: leave out "
            f"{', '.join(sorted(options.classification.model_fields_set))}"
        )


def open_tasks(options: EvaluateOptions) -> list[Task]:
    """Find and check every set now, so that a run fails at its start and not at its first evaluation."""
    tasks = [find_task(entry, options) for entry in options.sets]
    _check_classification(options, tasks)
    names = [task.name for task in tasks]
    for task in tasks:
        if names.count(task.name) > 1:
            raise UserError(
                f"two evaluation sets are named '{task.name}' (one is {task.directory}): results go by the "
                "name of the directory, rename one"
            )
    return tasks


def run_tasks(
    encoder: Encoder,
    tasks: Sequence[Task],
    batch_size: int,
    model_name: str,
    pretrained: str,
    step: int | None = None,
    team: Team = ALONE,
) -> list[Result]:
    """Results in the order of ``tasks``, on every process of ``team``, which shares the work.

    The encoder's modules keep their training or evaluation mode.
    """
    return [
        Result(task.name, task.kind, model_name, pretrained, task.run(encoder, batch_size, team), step)
        for task in tasks
    ]


def evaluate(
    encoder: Encoder, directories: Sequence[str | Path], batch_size: int, model_name: str, pretrained: str
) -> list[Result]:
    """Evaluate on ``directories``; all of them are checked before the first is embedded."""
    options = EvaluateOptions(sets=[str(directory) for directory in directories], batch_size=batch_size)
    return run_tasks(encoder, open_tasks(options), batch_size, model_name, pretrained)


def metrics_for_log(results: Sequence[Result]) -> dict[str, float]:
    """The training log: ``val/SET/...``, and the first retrieval set also under open_clip's bare names."""
    log: dict[str, float] = {}
    for result in results:
        log |= {f"val/{name}": value for name, value in result.scores.log.items()}
    retrieval = [result for result in results if result.task == "zeroshot_retrieval"]
    for first in retrieval[:1]:
        log |= {f"val/{name.removeprefix(first.dataset + '/')}": value for name, value in first.scores.log.items()}
    return log


def write_results(results: Sequence[Result], output: str | Path) -> list[Path]:
    """Write ``output`` as JSON and return the files: one a set where the path has ``{dataset}``, else one.

    One result is an object, as CLIP_benchmark writes it; several in one file are a list. What a captioner said goes to
    ``NAME.captions.jsonl`` beside ``NAME.json``, a picture a line.
    """
    objects = [result.to_json() for result in results]
    contents: dict[Path, Any]
    if "{dataset}" in str(output):
        contents = {Path(str(output).replace("{dataset}", o["dataset"])): o for o in objects}
    else:
        contents = {Path(output): objects[0] if len(objects) == 1 else objects}
    records: dict[Path, str] = {}
    for result in results:
        path = Path(str(output).replace("{dataset}", result.dataset)).with_suffix(CAPTIONS)
        lines = ({"dataset": result.dataset, **record} for record in result.scores.records)
        records[path] = records.get(path, "") + "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    for path, content in contents.items():
        if path.is_dir():
            raise UserError(f"{path} is a directory: name a file, such as {path}/{{dataset}}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    for path, text in records.items():
        if text:
            _write(path, text)
    return list(contents)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


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


def _without_nan(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
