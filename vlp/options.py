"""Turning pydantic's validation errors into one sentence with the key and the cure."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from vlp.resolve import nearest
from vlp.types import UserError


def explain(error: ValidationError, model: type[BaseModel], where: str) -> UserError:
    """The first problem of ``error`` as a `UserError`; ``where`` names the file or the section."""
    problem = error.errors()[0]
    location = list(problem["loc"])
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        known = list(owner.model_fields) if owner else []
        return UserError(f"{where}: unknown key '{key}'{nearest(str(location[-1]), known)}")
    if problem["type"] == "missing":
        return UserError(f"{where}: the key '{key}' is missing")
    message = problem["msg"].removeprefix("Value error, ")
    scalar = not isinstance(problem["input"], dict | list)
    got = f" (got {problem['input']!r})" if scalar and problem["type"] != "value_error" else ""
    return UserError(f"{where}: {key + ': ' if key else ''}{message}{got}")


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
