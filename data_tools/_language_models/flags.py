"""The flags of tools that let a language model write: engines and their fields, prompt, sampling, parts of the work."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from data_tools._language_models.base import Engine, Sampling
from vlp import resolve
from vlp.options import explain
from vlp.types import UserError

ENGINES = "data_tools._language_models.engines"
DRAWN = ("temperature", "top_p", "max_tokens")  # what flags may change of a prompt's sampling

Options = TypeVar("Options", bound=BaseModel)


def flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def add_field(group: Any, prefix: str, name: str, info: FieldInfo, help: str) -> None:
    """One field of an options class as a flag, whose text is left to the class to understand."""
    kinds = [kind for kind in (get_args(info.annotation) or (info.annotation,)) if kind is not NoneType]
    origin = get_origin(info.annotation)
    keywords: dict[str, Any] = {"metavar": {int: "N", float: "X"}.get(kinds[0], name.upper())}
    if origin is Literal:
        keywords["metavar"] = "{" + ",".join(map(str, kinds)) + "}"
    elif origin is tuple:
        keywords |= {"nargs": "+", "action": "extend"}
    elif kinds[0] is bool:
        keywords = {"action": argparse.BooleanOptionalAction}
    group.add_argument(flag(name), dest=f"{prefix}_{name}", default=None, help=help.replace("%", "%%"), **keywords)


def default_of(info: FieldInfo) -> str:
    if info.is_required():
        return "needed"
    value = info.get_default(call_default_factory=True)
    return "default none" if value in (None, (), "") else f"default {value}"


def given(arguments: argparse.Namespace, prefix: str, names: Iterable[str]) -> dict[str, Any]:
    """The values of those flags of `add_field` that were given."""
    values = {name: getattr(arguments, f"{prefix}_{name}") for name in names}
    return {name: value for name, value in values.items() if value is not None}


def checked(model: type[Options], values: Mapping[str, Any]) -> Options:
    """The options.

    Raises:
        UserError: one sentence about the first that is wrong, which names flags.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        sentence = str(explain(error, model, "")).removeprefix(": ")
    for name in model.model_fields:
        if "_" in name or sentence.startswith(f"{name}:"):
            sentence = re.sub(rf"(?<![\w-]){name}(?![\w-])", flag(name), sentence)
    raise UserError(sentence)


def engines() -> dict[str, type[Engine]]:
    return {name: resolve.module(ENGINES, name, "engine").Engine for name in resolve.names(ENGINES)}


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """``--engine`` and every field of every engine; a name that several engines share is one flag."""
    known = engines()
    parser.add_argument(
        "--engine", default="local", metavar="NAME", help=f"what writes: {', '.join(known)} (default local)"
    )
    owners: dict[str, list[str]] = {}
    for engine, model in known.items():
        for name in model.model_fields:
            owners.setdefault(name, []).append(engine)
    shared = parser.add_argument_group("options of several engines")
    groups = {engine: parser.add_argument_group(f"options of --engine {engine}") for engine in known}
    for name, having in owners.items():
        infos = {engine: known[engine].model_fields[name] for engine in having}
        if len(having) == 1:
            info = infos[having[0]]
            add_field(groups[having[0]], "engine", name, info, f"{info.description} ({default_of(info)})")
        else:
            helps = (f"{engine}: {info.description} ({default_of(info)})" for engine, info in infos.items())
            add_field(shared, "engine", name, infos[having[0]], "; ".join(helps))


def engine(arguments: argparse.Namespace) -> Engine:
    """The engine that was chosen.

    Raises:
        UserError: an unknown one, an option of another engine, one that is missing or wrong.
    """
    known, name = engines(), arguments.engine
    if name not in known:
        raise UserError(
            f"--engine: unknown engine '{name}'{resolve.nearest(name, list(known))}; known: {', '.join(known)}"
        )
    all_names = dict.fromkeys(field for model in known.values() for field in model.model_fields)
    values = given(arguments, "engine", all_names)
    fields = known[name].model_fields
    for other in values:
        if other not in fields:
            having = [f"--engine {engine}" for engine, model in known.items() if other in model.model_fields]
            raise UserError(
                f"{flag(other)} has no effect on --engine {name}: it is an option of {' and '.join(having)}"
            )
    needed = [flag(field) for field, info in fields.items() if info.is_required() and field not in values]
    if needed:
        raise UserError(
            f"--engine {name} needs {' and '.join(needed)}: {fields[needed[0][2:].replace('-', '_')].description}"
        )
    return checked(known[name], values)


def add_prompt_arguments(parser: argparse.ArgumentParser, prompt: str) -> None:
    """``--prompt``, and what changes the sampling that stands in it."""
    group = parser.add_argument_group("prompt")
    group.add_argument(
        "--prompt",
        default=prompt,
        metavar="NAME",
        help="what the model is asked: one of ours (laclip for models that go on with a text, instruct for models that "
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
