"""The flags of tools that let a language model write: engines and their fields, prompt, sampling, parts of the work."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from inspect import isclass
from typing import Any

from pydantic import BaseModel

from data_tools._language_models.base import Engine, Sampling
from vlp import resolve
from vlp.flags import Options, add_field, checked, default_of, flag, given
from vlp.types import UserError

ENGINES = "data_tools._language_models.engines"
DEFAULT_ENGINE = "local"
DRAWN = ("temperature", "top_p", "max_tokens")  # what flags may change of a prompt's sampling


def add_choice_arguments(parser: argparse.ArgumentParser, what: str, known: Mapping[str, type[BaseModel]]) -> None:
    """A flag for every field of what ``--WHAT`` chooses from; a name that several of ``known`` share is one flag.

    Fields that are options classes themselves have flags of their own, which others add.
    """
    owners: dict[str, list[str]] = {}
    for choice, model in known.items():
        for name in _flags_of(model):
            owners.setdefault(name, []).append(choice)
    shared = parser.add_argument_group(f"options of several {what}s")
    groups = {choice: parser.add_argument_group(f"options of --{what} {choice}") for choice in known}
    for name, having in owners.items():
        infos = {choice: known[choice].model_fields[name] for choice in having}
        if len(having) == 1:
            info = infos[having[0]]
            add_field(groups[having[0]], what, name, info, f"{info.description} ({default_of(info)})")
        else:
            helps = (f"{choice}: {info.description} ({default_of(info)})" for choice, info in infos.items())
            add_field(shared, what, name, infos[having[0]], "; ".join(helps))


def _flags_of(model: type[BaseModel]) -> list[str]:
    fields = model.model_fields.items()
    return [name for name, info in fields if not (isclass(info.annotation) and issubclass(info.annotation, BaseModel))]


def chosen(
    arguments: argparse.Namespace,
    what: str,
    name: str,
    known: Mapping[str, type[Options]],
    parts: Callable[[type[Options]], Mapping[str, Any]] = lambda _: {},
) -> Options:
    """What ``--WHAT name`` chose from ``known``; ``parts`` gives its fields that are options classes.

    Raises:
        UserError: an unknown one, an option of another one, an option that is missing or wrong.
    """
    if name not in known:
        raise UserError(
            f"--{what}: unknown {what} '{name}'{resolve.nearest(name, list(known))}; known: {', '.join(known)}"
        )
    values = given(arguments, what, dict.fromkeys(field for model in known.values() for field in _flags_of(model)))
    fields = {field: known[name].model_fields[field] for field in _flags_of(known[name])}
    for other in values:
        if other not in fields:
            having = [f"--{what} {choice}" for choice, model in known.items() if other in _flags_of(model)]
            raise UserError(
                f"{flag(other)} has no effect on --{what} {name}: it is an option of {' and '.join(having)}"
            )
    needed = [flag(field) for field, info in fields.items() if info.is_required() and field not in values]
    if needed:
        raise UserError(
            f"--{what} {name} needs {' and '.join(needed)}: {fields[needed[0][2:].replace('-', '_')].description}"
        )
    return checked(known[name], {**values, **parts(known[name])})


def engines() -> dict[str, type[Engine]]:
    return {name: resolve.module(ENGINES, name, "engine").Engine for name in resolve.names(ENGINES)}


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """``--engine`` and every field of every engine."""
    known = engines()
    parser.add_argument("--engine", metavar="NAME", help=f"what writes: {', '.join(known)} (default {DEFAULT_ENGINE})")
    add_choice_arguments(parser, "engine", known)


def engine(arguments: argparse.Namespace) -> Engine:
    """The engine that was chosen.

    Raises:
        UserError: an unknown one, an option of another engine, one that is missing or wrong.
    """
    return chosen(arguments, "engine", arguments.engine or DEFAULT_ENGINE, engines())


def about_language_models(arguments: argparse.Namespace) -> list[str]:
    """Those flags of engines, prompt and sampling that were given."""
    fields = [field for model in engines().values() for field in model.model_fields]
    names = [*given(arguments, "engine", fields), *given(arguments, "sampling", DRAWN)]
    return [flag(name) for name in ("engine", "prompt") if getattr(arguments, name)] + [flag(name) for name in names]


def add_prompt_arguments(parser: argparse.ArgumentParser, prompt: str, chat: str) -> None:
    """``--prompt``, and what changes the sampling that stands in it."""
    group = parser.add_argument_group("prompt")
    group.add_argument(
        "--prompt",
        metavar="NAME",
        help=f"what the model is asked: one of ours ({prompt} for models that go on with a text, {chat} for those that "
        f"chat), or a .yaml file (default {prompt})",
    )
    meanings = {
        "temperature": "how freely words are drawn; 0: always the likeliest",
        "top_p": "words are drawn from the likeliest that together have this probability",
        "max_tokens": "most tokens of a text",
    }
    for name in DRAWN:
        add_field(
            group, "sampling", name, Sampling.model_fields[name], f"{meanings[name]} (default: as the prompt says)"
        )


def sampling(arguments: argparse.Namespace, prompts: Sampling) -> Sampling:
    return checked(Sampling, {**prompts.model_dump(), **given(arguments, "sampling", DRAWN)})


def add_share_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="only every N-th shard from the I-th on, counted from 0: one machine of N, such as "
        "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT with --array=0-15",
    )
    parser.add_argument(
        "--gpus", type=float, metavar="G", help="with --ray: GPUs that a task of the model takes (default 0)"
    )


def part_of(paths: Sequence[str], part: str | None) -> list[str]:
    """The shards of ``--part``.

    Raises:
        UserError: it is not of the form I/N, or out of range.
    """
    if part is None:
        return list(paths)
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if match is None:
        raise UserError(f"--part {part} is not of the form I/N: write 0/16 for the first of sixteen parts")
    number, parts = map(int, match.groups())
    if number >= parts:
        raise UserError(
            f"--part {part}: parts count from 0, so the last of {parts} is {max(parts - 1, 0)}/{parts}: "
            f"with SLURM write --array=0-{max(parts - 1, 0)}"
        )
    return list(paths)[number::parts]
