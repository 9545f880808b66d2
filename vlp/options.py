"""Turning pydantic's validation errors into one sentence with the key and the cure."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vlp.resolve import nearest
from vlp.types import UserError


def explain(error: ValidationError, model: type[BaseModel], where: str) -> UserError:
    """The first problem of ``error`` as a `UserError`; ``where`` names the file or the section."""
    problems = _of_what_was_given(error.errors(), model)
    problem = problems[0]
    location = list(problem["loc"])
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        known = list(owner.model_fields) if owner else []
        return UserError(f"{where}: unknown key '{key}'{nearest(str(location[-1]), known)}")
    if problem["type"] == "missing":
        return UserError(f"{where}: the key '{key}' is missing")
    key = _known_part(model, location)
    if problem["type"] == "value_error":
        return UserError(f"{where}: {key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}")
    # A value that may be of several types has a problem with each of them.
    messages = [_plain(p["msg"]) for p in problems if _known_part(model, list(p["loc"])) == key]
    scalar = not isinstance(problem["input"], dict | list)
    got = f" (got {problem['input']!r})" if scalar else ""
    return UserError(f"{where}: {key}: must be {' or '.join(dict.fromkeys(messages))}{got}")


def _of_what_was_given(problems: list[ErrorDetails], model: type[BaseModel]) -> list[ErrorDetails]:
    """Where a mapping was given, the problems of the options class that it is, not of the number that it is not."""
    first = problems[0]
    key = _known_part(model, list(first["loc"])).split(".")
    owner = _model_at(model, list(key))
    if not isinstance(first["input"], dict) or owner is None:
        return problems
    found = []
    for problem in problems:
        branch, rest = problem["loc"][: len(key) + 1], problem["loc"][len(key) + 1 :]
        if [str(part) for part in branch[:-1]] == key and owner.__name__ in str(branch[-1]):
            found.append(ErrorDetails(**{**problem, "loc": (*branch[:-1], *rest)}))
    return found or problems


_WORDS = {
    r"^Input should be ": "",
    r"a valid (list|tuple)": "a list, such as [a, b]",
    r"a valid dictionary( or instance of \w+)?": "a mapping, such as {key: value}",
    r"a valid string": "text (quote it where it looks like a number)",
    r"a valid (integer|number)": r"a \1",
    r"a integer": "an integer",
    r"a valid boolean": "true or false",
    r"^String should match pattern": "text of the form",
    r"^(List|Tuple) should have at least 1 item.*": "a list of at least one entry",
}


def _plain(message: str) -> str:
    """pydantic's words in those of YAML."""
    for theirs, ours in _WORDS.items():
        message = re.sub(theirs, ours, message)
    return message


def _known_part(model: type[BaseModel], location: list[int | str]) -> str:
    """The key that ``location`` points at; pydantic adds the names of the types that it tried."""
    parts: list[str] = []
    for number, part in enumerate(location):
        owner = _model_at(model, location[:number])
        if isinstance(part, str) and (owner is None or part not in owner.model_fields):
            break
        parts.append(str(part))
    return ".".join(parts)


def _model_at(model: type[BaseModel], location: list[int | str]) -> type[BaseModel] | None:
    """The options class that a path of keys leads to, through optional types and lists."""
    node: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        field = getattr(node, "model_fields", {}).get(part)
        if field is None:
            return None
        node = _first_model(field.annotation)
    return node if isinstance(node, type) and issubclass(node, BaseModel) else None


def _first_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_first_model(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)
