"""The fields of an options class as flags of a command."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from vlp.options import explain
from vlp.types import UserError

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
    elif origin in (tuple, list):
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
