"""Writes docs/recipes.md, every key of a recipe, from the options in the code: ``make docs``."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vlp import resolve
from vlp.durations import Schedule
from vlp.objectives.base import Objective
from vlp.recipe import Recipe

PAGE = Path(__file__).with_name("recipes.md")
INTRODUCTION = """\
# Recipes: every key

A recipe is a YAML file that describes a run: `vlp train RECIPE [key=value ...]`. RECIPE is a file, or the name of one
in `recipes/`; `vlp inspect` says what it would run, and an unknown key is refused with the nearest valid one.

- **Overrides** reach into sections and lists: `train.lr=1e-3`, `objectives.0.weight=0.5`, `evaluate.sets=[a, b]`. In a
  shell, put quotes around lists.
- **`base: other.yaml`** inherits another recipe, beside this one or in `recipes/`. Sections merge, lists and values
  replace, and `null` takes an inherited key away.
- **`profiles:`** holds named changes; `profile=smoke` merges one. Every recipe here has `smoke`: the same run, small.
- **Durations** (`train.warmup`, `train.cooldown`) are steps, or `"1e6 samples"`, `"0.5 epochs"`, `"5%"` of the run.
- **Schedules** change a number during the run: `{start: 0, end: 1, over: 1 epochs}` rises, and
  `{start: 1, end: 0, after: 50%}` ends; `after` and `over` are durations, `shape` is `linear` or `cosine`.
- Numbers and words are YAML 1.2: `1e-3` is a number, `on` and `no` are words.

The resolved recipe, every default written out, lies in the run as `recipe.yaml`. A run goes on with the same recipe
only; `run_dir`, `track`, `checkpoint`, `evaluate`, `data.workers`, `data.cache`, `data.read_ahead_mb` and
`data.max_bad_fraction` may change on the way, and so may the paths in `data.train` that lead to the same shards.

This page is written by `make docs` from the options in the code.
"""
OBJECTIVES = """\
## `objectives`

A list of `{name: ..., weight: ..., ...}`; their weighted sum is the loss. A dotted name reaches a module of your own
(see CONTRIBUTING.md). `vlp objectives` lists what there is.
"""


def page() -> str:
    """The whole text of docs/recipes.md."""
    sections = [INTRODUCTION, *_section("", Recipe, "## The run")]
    at = next(i for i, text in enumerate(sections) if text.startswith("## `train`"))
    return "\n".join([*sections[:at], *_objectives(), *sections[at:]])


def _section(key: str, model: type[BaseModel], title: str, docstring: str = "") -> Iterator[str]:
    """The table of a model's own keys, then a section for each model among its fields."""
    schema = model.model_json_schema()
    inner, rows = [], []
    for name, field in schema["properties"].items():
        path = f"{key}.{name}".lstrip(".")
        part = _model_of(model, name)
        if path == "objectives":
            continue
        if part is not None:
            is_list = "items" in field or any("items" in option for option in field.get("anyOf", ()))
            inner.append((f"{path}.N" if is_list else path, part))
        if part is None or "description" in field:
            required = name in schema.get("required", ())
            rows.append(f"| `{path}` | {_type(field)} | {_default(field, required)} | {field.get('description', '')} |")
    heading = f"{title}\n" + (f"\n{docstring}\n" if docstring else "")
    yield "\n".join([heading, "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])
    for path, part in inner:
        yield from _section(path, part, f"{'###' if '.' in path else '##'} `{path}`", _docstring(part))


def _objectives() -> Iterator[str]:
    yield OBJECTIVES
    for name in resolve.names("vlp.objectives"):
        objective: type[Objective] = resolve.module("vlp.objectives", name, "objective").Objective
        needs = ", ".join(f"`{need}`" for need in sorted(objective.model_construct(name=name).needs))
        (text,) = _section("", objective, f"### `{name}`", f"{resolve.summary('vlp.objectives', name)} Needs {needs}.")
        yield text


def _model_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The options class of a field, or of the entries of its list."""
    return _model_in(model.model_fields[name].annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if annotation is Schedule:  # has its line above, instead of a table under every key that may be one
        return None
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in typing.get_args(annotation))
    return next((model for model in found if model is not None), None)


def _docstring(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "").replace("``", "`")


def _type(schema: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if "$ref" in schema:
        return "schedule" if schema["$ref"].endswith("/Schedule") else "mapping"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"] if option != {"type": "null"})
    if "prefixItems" in schema:
        return f"[{', '.join(_type(item) for item in schema['prefixItems'])}]"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    names = {
        "integer": "integer",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "object": "mapping",
    }
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[bound]:g}" for bound, sign in bounds.items() if bound in schema]
    return " ".join([names[schema.get("type", "object")], ", ".join(limits)]).strip()


def _default(schema: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = schema.get("default")
    return "" if default in (None, "") else f"`{json.dumps(default)}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
