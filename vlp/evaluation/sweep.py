"""Several models on several sets: one model in memory at a time, and what a directory already has is not done again."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlp import distributed
from vlp.encoders import inputs
from vlp.encoders.openclip import load
from vlp.encoders.two_tower import TwoTower
from vlp.evaluation import answers, identity
from vlp.evaluation.directory import ResultsDirectory
from vlp.evaluation.identity import NamedModel
from vlp.evaluation.results import Result
from vlp.evaluation.run import EvaluateOptions
from vlp.evaluation.tasks import captioning
from vlp.evaluation.tasks.base import Task
from vlp.evaluation.team import ALONE, Team
from vlp.types import UserError


@dataclass(frozen=True)
class SetToDo:
    """An opened set, what ``--on`` calls it, and what is to be said of it."""

    entry: str
    task: Task
    suite: str = ""
    note: str = ""


@dataclass(frozen=True)
class _Job:
    model: NamedModel
    set: SetToDo
    made_from: dict[str, Any]
    stored: Result | None = None


def models_of(arguments: Sequence[str]) -> list[str]:
    """MODELs as they are named, and those of files, a line each: MODEL, or ``model,pretrained`` as CLIP_benchmark's.

    Raises:
        UserError: an empty file, one that is no text, or a model named twice.
    """
    found: list[str] = []
    for argument in arguments:
        path = Path(argument)
        if path.suffix != ".txt" or not path.is_file():
            found.append(argument)
            continue
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no text in UTF-8 (byte {error.start}): write one model a line") from error
        listed = [line for line in lines if line and not line.startswith("#")]
        if not listed:
            raise UserError(f"{path} names no model: write one a line, such as ViT-B-32,openai")
        found += [":".join(part.strip() for part in line.split(",", 1)) for line in listed]
    for model in found:
        if found.count(model) > 1:
            raise UserError(f"model {model} is named twice: name it once")
    return found


def sweep(
    models: Sequence[str],
    sets: Sequence[SetToDo],
    options: EvaluateOptions,
    directory: ResultsDirectory | None = None,
    team: Team = ALONE,
    done: Callable[[str], None] = distributed.say,
) -> tuple[list[Result], list[str]]:
    """Results, model by model in the order of ``sets``, and a sentence for each model that cannot be evaluated.

    Args:
        directory: where results are kept; what was made there from the same model, set and options is taken as it is.
        done: is told what begins, a line each.

    Raises:
        UserError: a model that is not there, before any is loaded; or the only one cannot be evaluated.
    """
    named = team.once(lambda: [identity.named(model) for model in models])
    _check_names(named)
    jobs = _jobs(named, sets, options, directory, team)
    found: list[Result] = []
    lost: list[str] = []
    for model in named:
        own = [job for job in jobs if job.model == model]
        todo = [job for job in own if job.stored is None]
        encoder = None
        try:
            with distributed.failing_together():
                encoder = _loaded(model, todo, done) if todo else None
        except UserError as error:  # the others are not lost with it
            if len(named) == 1:
                raise
            done(f"{model.title} is left out: {error}")
            lost.append(f"{model.title} ({error})")
            own = [job for job in own if job.stored is not None]
        for job in own:
            place = f"{1 + jobs.index(job)} of {len(jobs)}: {model.title} on {job.set.task.name}"
            if job.stored is not None:
                done(f"{place}: is there")
                found.append(_in_suite(job.stored, job.set.suite, directory, team))
                continue
            assert encoder is not None
            done(f"{place}: {len(job.set.task.images):,} pictures, {len(job.set.task.texts):,} texts")
            found.append(_evaluated(job, encoder, options.batch_size, team, directory))
        del encoder
        _free()
    return found, lost


def _check_names(models: Sequence[NamedModel]) -> None:
    names = [(model.model, model.pretrained) for model in models]
    for model, name in zip(models, names, strict=True):
        if names.count(name) > 1:
            raise UserError(f"model {model.reference} is named twice: name it once")


def _jobs(
    models: Sequence[NamedModel],
    sets: Sequence[SetToDo],
    options: EvaluateOptions,
    directory: ResultsDirectory | None,
    team: Team,
) -> list[_Job]:
    digests = team.once(lambda: [identity.of_set(one.task) for one in sets])
    jobs = []
    for model in models:
        for one, digest in zip(sets, digests, strict=True):
            section = one.task.section
            asked = getattr(options, section) if section else None
            jobs.append(_Job(model, one, identity.made_from(model, digest, one.task.kind, section, asked)))
    if directory is None:
        return jobs
    there = team.once(lambda: [_stored(job, directory) for job in jobs])
    return [replace(job, stored=stored) for job, stored in zip(jobs, there, strict=True)]


def _stored(job: _Job, directory: ResultsDirectory) -> Result | None:
    task, model = job.set.task, job.model
    path = directory.file_of(task.name, model.pretrained, model.model, task.kind, task.language)
    stored, why = directory.find(path, job.made_from)
    if why:
        distributed.say(f"{path.name} is made anew: {why}")
    return stored


def _loaded(model: NamedModel, jobs: Sequence[_Job], done: Callable[[str], None]) -> TwoTower:
    encoder = load(model.reference, distributed.device())
    for job in jobs:
        job.set.task.check(encoder)
    done(f"{model.title}: {inputs.as_line(encoder)}")
    return encoder


def _evaluated(job: _Job, encoder: TwoTower, batch_size: int, team: Team, directory: ResultsDirectory | None) -> Result:
    task, model = job.set.task, job.model
    if isinstance(task, captioning.Task):
        embeddings, scores = None, task.run(encoder, batch_size, team)
    else:
        embeddings = task.embed(encoder, batch_size, team)
        scores = task.score(embeddings)
    if job.set.note:
        scores = replace(scores, notes=[*scores.notes, job.set.note])
    about = {
        "set": job.set.entry,
        "suites": [job.set.suite] if job.set.suite else [],
        "preprocess": inputs.of_pictures(encoder.picture_format),
        "texts": inputs.of_texts(encoder),
        "weights": encoder.weights,
        "made_from": job.made_from,
    }
    names = (task.name, task.kind, model.model, model.pretrained)
    result = Result(*names, scores, language=task.language, about=about)
    if directory is not None and team.rank == 0:
        directory.write(result, answers.of(task, scores, embeddings))
    return result


def _in_suite(result: Result, suite: str, directory: ResultsDirectory | None, team: Team) -> Result:
    if not suite or suite in result.about.get("suites", []) or directory is None or team.rank:
        return result
    return directory.add_suite(result, suite)


def _free() -> None:
    """A model is gone before the next comes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
