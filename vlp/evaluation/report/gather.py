"""What a report shows, read from the run; what cannot be had is named where it would stand."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlp import recipe
from vlp.data.batches import TrainingData
from vlp.encoders.openclip import load, outline
from vlp.encoders.source import chosen_checkpoint
from vlp.encoders.two_tower import TwoTower
from vlp.evaluation.report.data_sheet import Sheet
from vlp.evaluation.report.results import (
    NO_RESULT,
    StoredResults,
    read_beside,
    read_directory,
    short_names,
    without_other_questions,
)
from vlp.evaluation.report.sheets import read_sheet
from vlp.evaluation.run import CAPTIONS, Result, find_task
from vlp.evaluation.tasks import captioning
from vlp.evaluation.tasks.base import Scores, SetEmbeddings, Task
from vlp.track import read_metrics
from vlp.types import Skipped, UserError

SHEET_SAMPLES = 16
CAPTION_SAMPLES = 256


@dataclass(frozen=True)
class EvaluatedSet:
    """An evaluation set embedded by the run's latest checkpoint, on the CPU."""

    task: Task
    embeddings: SetEmbeddings
    scores: Scores


@dataclass(frozen=True)
class CaptionedSet:
    """An evaluation set with what a captioner said when it was evaluated: a record a picture, in their order."""

    task: captioning.Task
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class SetResult:
    """One set's figures as the table shows them; ``labels`` are plain names of the metrics, where known."""

    content: dict[str, Any]
    labels: dict[str, str]
    computed: bool = False  # for this report: the trainer has left no figures


@dataclass(frozen=True)
class DataSheet:
    """The first training samples drawn, as the model sees them, and what is known of all of them."""

    num_samples: int
    samples: list[tuple[Image.Image, str, str]]
    facts: list[tuple[str, str]]
    defects: list[Skipped]


@dataclass
class RunContents:
    """Everything read from a run. ``missing`` holds sentences by section of the report."""

    directory: Path
    name: str
    recipe: recipe.Recipe | None = None
    recipe_text: str = ""
    rows: list[dict[str, float]] = field(default_factory=list)
    model: TwoTower | None = None
    checkpoint_step: int | None = None
    skipped: dict[str, Any] = field(default_factory=dict)
    sets: list[EvaluatedSet] = field(default_factory=list)
    captioned: list[CaptionedSet] = field(default_factory=list)
    results: list[SetResult] = field(default_factory=list)
    short_name: str = ""
    beside: list[StoredResults] = field(default_factory=list)
    sheet: DataSheet | None = None
    data_sheet: Sheet | None = None
    total_steps: int | None = None
    missing: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def names(self) -> list[str]:
        """This run and those beside it, as tables and bars call them."""
        return [self.short_name, *(other.name for other in self.beside)]

    def by_set(self) -> dict[str, list[dict[str, Any] | None]]:
        """For each set the result JSON of this run and of each beside it, None where it has none; own sets first."""
        tables = [{result.content["dataset"]: result.content for result in self.results}]
        tables += [other.of_set for other in self.beside]
        return {name: [table.get(name) for table in tables] for table in tables for name in table}


def read_run(directory: Path, beside: Sequence[Path] = ()) -> RunContents:
    """Read a run, embed its evaluation sets, and read the results of those ``beside`` it.

    Raises:
        UserError: ``directory`` is no run, or one of ``beside`` has no results.
    """
    if not directory.is_dir():
        raise UserError(f"there is no run {directory}: give the directory that vlp train wrote")
    if not any((directory / name).exists() for name in ("recipe.yaml", "metrics.jsonl", "checkpoints")):
        raise UserError(f"{directory} is no run: it has neither recipe.yaml nor metrics.jsonl nor checkpoints/")
    names = short_names([directory, *beside])
    stored = [read_beside(path, name) for path, name in zip(beside, names[1:], strict=True)]
    run = RunContents(directory, directory.resolve().name, short_name=names[0])
    _read_recipe(run)
    _read_metrics(run)
    _read_checkpoint(run)
    _read_sheet(run)
    _read_data_sheet(run)
    _embed_sets(run)
    run.results = _results(run)
    own = {result.content["dataset"]: result.content for result in run.results}
    run.beside, sentences = without_other_questions(stored, own)
    run.missing["evaluation"] += sentences
    if not run.results:
        run.missing["evaluation"].append("No evaluation has run yet.")
    return run


def _read_recipe(run: RunContents) -> None:
    path = run.directory / "recipe.yaml"
    if not path.exists():
        run.missing["recipe"].append("The run holds no recipe.yaml.")
        return
    run.recipe_text = path.read_text(encoding="utf-8")
    try:
        run.recipe = recipe.load(str(path))
    except UserError as error:
        run.missing["recipe"].append(f"This version of vlp cannot read the recipe: {error}.")
        return
    run.name = run.recipe.name
    if run.recipe.train.epochs is None:
        run.total_steps = run.recipe.total_steps(0)


def _read_metrics(run: RunContents) -> None:
    path = run.directory / "metrics.jsonl"
    run.rows = read_metrics(path) if path.exists() else []
    if not run.rows:
        run.missing["curves"].append("No metrics have been logged yet (metrics.jsonl has no rows).")


def _read_checkpoint(run: RunContents) -> None:
    latest = chosen_checkpoint(run.directory)
    if latest is None:
        run.missing["model"].append("No checkpoint has been saved yet, so there is no model to show.")
        return
    state = latest / "state.json"
    if state.exists():
        content = json.loads(state.read_text(encoding="utf-8"))
        run.checkpoint_step = content.get("step")
        run.skipped = content.get("bad_samples") or {}
    try:
        run.model = load(str(run.directory), "cuda" if torch.cuda.is_available() else "cpu")
    except UserError as error:
        run.missing["model"].append(f"The checkpoint cannot be loaded: {error}.")


def _read_sheet(run: RunContents) -> None:
    if run.recipe is None:
        run.missing["data"].append("Without a readable recipe it is unknown what the run was trained on.")
        return
    options = run.recipe
    try:
        model = run.model or outline(options.model)
        data = TrainingData(
            options.data, model.picture_format, model.tokenizer, options.train.global_batch_size, options.seed
        )
        drawn = data.sheet(CAPTION_SAMPLES)
    except UserError as error:
        run.missing["data"].append(f"The training data cannot be shown: {error}.")
        return
    run.total_steps = options.span(data.num_samples).total_steps
    words = [len(caption.split()) for _, caption, _ in drawn]
    distinct = len({caption for _, caption, _ in drawn})
    run.sheet = DataSheet(
        data.num_samples,
        [(picture(image), caption, key) for image, caption, key in drawn[:SHEET_SAMPLES]],
        [
            ("samples", f"{data.num_samples:,}"),
            ("shards", f"{data.num_shards:,}"),
            ("words a caption", f"{median(words):g} (median), {min(words)} to {max(words)}"),
            ("different captions", f"{distinct} among the first {len(drawn)} drawn"),
        ],
        list(data.defects),
    )


def _read_data_sheet(run: RunContents) -> None:
    path = run.directory / "data.json"
    if not path.exists():
        return
    try:
        run.data_sheet = read_sheet(path, Sheet)
    except UserError as error:
        run.missing["data"].append(f"The data sheet cannot be shown: {error}.")


def _embed_sets(run: RunContents) -> None:
    if run.recipe is None:
        return
    if not run.recipe.evaluate.sets:
        run.missing["evaluation"].append("The recipe names no evaluation sets (evaluate.sets).")
    options = run.recipe.evaluate.model_copy(update={"captioning": None})  # captions are shown, not judged again
    for directory in options.sets:
        try:
            task = find_task(directory, options)
            if isinstance(task, captioning.Task):
                _read_captions(run, task)
            elif run.model is not None:
                embeddings = task.embed(run.model, run.recipe.evaluate.batch_size)
                on_cpu: dict[str, Any] = {
                    name: value.cpu() for name, value in vars(embeddings).items() if isinstance(value, Tensor)
                }
                embeddings = replace(embeddings, **on_cpu)
                run.sets.append(EvaluatedSet(task, embeddings, task.score(embeddings)))
        except UserError as error:
            run.missing["galleries"].append(f"Evaluation set {directory} cannot be shown: {error}.")


def _read_captions(run: RunContents, task: captioning.Task) -> None:
    """What the last evaluation has left: to write captions takes far longer than to embed pictures."""
    path = (run.directory / "evaluation" / f"{task.name}.json").with_suffix(CAPTIONS)
    if not path.exists():
        run.missing["captions"].append(f"No captions of {task.name} have been written yet ({path.name}).")
        return
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        true = [record["true"] for record in records]
    except (ValueError, KeyError, TypeError):
        true = []
    if true != task.references:
        run.missing["captions"].append(f"{path} is damaged or of another set, and was left out.")
        return
    run.captioned.append(CaptionedSet(task, records))


def _results(run: RunContents) -> list[SetResult]:
    """The trainer's figures where there are any, else those of the latest checkpoint; the recipe's sets first."""
    stored, others = read_directory(run.directory / "evaluation")
    run.missing["evaluation"] += [f"{path} is no result of an evaluation and was left out." for path in others]
    results = []
    for shown in run.sets:
        found = stored.pop(shown.task.name, None)
        computed = Result(
            shown.task.name, shown.task.kind, run.name, str(run.directory), shown.scores, run.checkpoint_step
        )
        results.append(SetResult(found or {**NO_RESULT, **computed.to_json()}, shown.scores.labels, found is None))
    return results + [SetResult(content, content.get("labels", {})) for content in stored.values()]


def picture(image_CHW: Tensor) -> Image.Image:
    """RGB picture of a uint8 tensor CHW."""
    return Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy())
