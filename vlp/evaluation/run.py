"""Evaluating a model on directories: find the tasks and run them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, Field, model_validator

from vlp import resolve
from vlp.evaluation.classification_options import ClassificationOptions
from vlp.evaluation.embed import Encoder
from vlp.evaluation.multilingual_options import MultilingualOptions
from vlp.evaluation.results import CAPTIONS, Result, write_results
from vlp.evaluation.tables import format_table
from vlp.evaluation.tasks.base import Task
from vlp.evaluation.tasks.captioning import CaptioningOptions
from vlp.evaluation.team import ALONE, Team
from vlp.types import UserError

__all__ = [
    "CAPTIONS",
    "EvaluateOptions",
    "Result",
    "evaluate",
    "find_task",
    "format_table",
    "metrics_for_log",
    "open_tasks",
    "run_tasks",
    "write_results",
]

TASKS = "vlp.evaluation.tasks"


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
    multilingual: MultilingualOptions | None = Field(None, description="languages of the sets that have several")

    @model_validator(mode="after")
    def _captioning_has_an_effect(self) -> EvaluateOptions:
        if self.captioning is not None and not any(_task_named(entry)[0] == "captioning" for entry in self.sets):
            raise ValueError("captioning has no effect, as no set asks for captions: write one as captioning:DIR")
        return self


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


def _check_sections(options: EvaluateOptions, tasks: Sequence[Task]) -> None:
    for section, wanted in (("classification", "has classes"), ("multilingual", "has several languages")):
        told: BaseModel | None = getattr(options, section)
        if told is not None and not any(task.section == section for task in tasks):
            raise UserError(
                f"options of {section} have no effect, as no evaluation set {wanted}: leave out "
                f"{', '.join(sorted(told.model_fields_set))}"
            )


def open_tasks(options: EvaluateOptions) -> list[Task]:
    """Find and check every set now, so that a run fails at its start and not at its first evaluation."""
    tasks = [find_task(entry, options) for entry in options.sets]
    _check_sections(options, tasks)
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
        Result(task.name, task.kind, model_name, pretrained, task.run(encoder, batch_size, team), step, task.language)
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
