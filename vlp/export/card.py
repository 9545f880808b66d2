"""The README of an exported directory: how to load it, what was compared, and what is known of the run it came from."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vlp import __version__, resolve
from vlp.encoders import inputs
from vlp.encoders.source import Source
from vlp.encoders.two_tower import TwoTower
from vlp.export.formats.base import Format

_FRONT = """---
# license: not known to vlp; fill it in, with an eye on those of the data and of the weights it began with
library_name: {library}
pipeline_tag: zero-shot-image-classification
tags:
- clip
- zero-shot-image-classification
- vlp
---"""
_SOURCE = re.compile(r"^Source: (.*?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)


def model_card(
    model: TwoTower, found: Source, title: str, form: Format, differences: Mapping[str, float] | None = None
) -> str:
    """The card of ``model``, which was loaded from ``found``, in the format ``form``."""
    counts = model.parameters_by_tower()
    height, width = model.picture_format.size
    average = " The weights are their average over the run (EMA)." if model.weights == "ema" else ""
    parts = [
        _FRONT.format(library=form.LIBRARY),
        f"# {title}",
        f"An image tower ({counts['image']:,} parameters, {width} x {height} pixels) and a text tower "
        f"({counts['text']:,} parameters, {model.tokenizer.context_length} tokens) with a common space of "  # type: ignore[attr-defined]
        f"{model.openclip_config['model_cfg']['embed_dim']} dimensions.{average}",
        f"## Use\n\n```python\n{form.usage(model)}\n```",
        f"## Inputs\n\nMade of {inputs.as_line(model)}. The multiplier of the cosines is {_scale(model)}.",
        *form.left_out(model),
    ]
    if differences:
        told = ", ".join(f"{name.replace('_', ' ')} {value:.2g}" for name, value in differences.items())
        parts.append(f"Compared at export with the model it was made of (vlp {__version__}): {told}.")
    if found.directory is not None:
        parts += _run_facts(found.directory)
    parts.append(
        "## Licence\n\nNot stated here: whoever publishes the model fills in `license` above. It may depend on the "
        "data it was trained on and on the weights it began with."
    )
    return "\n\n".join(parts) + "\n"


def _scale(model: TwoTower) -> str:
    bias = model.clip.logit_bias
    told = f"{model.logit_scale.exp().item():.4g}"
    return told if bias is None else f"{told}, the bias added to them {bias.item():.4g}"


def citation(objective: str) -> str:
    """Where the objective of that name comes from: the paragraph ``Source:`` of its module's docstring."""
    text = inspect.getdoc(resolve.module("vlp.objectives", objective, "objective")) or ""
    found = _SOURCE.search(text)
    return " ".join(found[1].split()) if found else "no source is stated"


def _run_facts(checkpoint: Path) -> list[str]:
    """Step, data, objectives, scores and recipe, as far as the checkpoint's run has them."""
    parts, step = [], None
    if (checkpoint / "state.json").is_file():
        step = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"]
        parts.append(f"Trained by vlp for {step:,} steps.")
    path = checkpoint / "recipe.yaml"
    recipe_text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    recipe = yaml.safe_load(recipe_text) or {}
    parts += _origins(recipe)
    rows = _scores(checkpoint.parent.parent, step) if checkpoint.parent.name == "checkpoints" else []
    if rows:
        head = "| set | metric | score | 95 % interval | chance |\n|---|---|---|---|---|"
        parts.append("## Evaluation\n\n" + "\n".join([head, *rows]))
    if recipe_text:
        parts.append(f"## Recipe\n\n```yaml\n{recipe_text}\n```")
    return parts


def _origins(recipe: Mapping[str, Any]) -> list[str]:
    """What it was trained on, from what, and by which objectives."""
    parts = []
    data = (recipe.get("data") or {}).get("train")
    if data:
        parts.append(f"## Data\n\n{_sources(data)}")
    init = (recipe.get("model") or {}).get("init")
    if init:
        parts.append(f"It began with the weights `{init}`.")
    objectives = recipe.get("objectives") or []
    if objectives:
        lines = [f"- `{entry['name']}`, weight {_weight(entry)}: {citation(entry['name'])}" for entry in objectives]
        parts.append("## Objectives\n\n" + "\n".join(lines))
    return parts


def _weight(entry: Mapping[str, Any]) -> str:
    weight = entry.get("weight", 1)
    return f"{weight:g}" if isinstance(weight, int | float) else "on a schedule (see the recipe)"


def _sources(data: Any) -> str:
    """A recipe's ``data.train``: a place, or a mixture of several with their weights."""
    if isinstance(data, str):
        return f"Pairs of pictures and captions in `{data}`."
    lines = []
    for entry in data if isinstance(data, list) else [data]:
        told = entry if isinstance(entry, Mapping) else {"shards": entry}
        lines.append("- " + ", ".join(f"{name} `{value}`" for name, value in told.items() if value is not None))
    return "Pairs of pictures and captions:\n\n" + "\n".join(lines)


def _scores(run: Path, step: int | None) -> list[str]:
    """Rows of a table; a run keeps the scores of one step, which another of its checkpoints does not have."""
    rows = []
    for path in sorted((run / "evaluation").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for result in content if isinstance(content, list) else [content]:
            if result.get("step") not in (None, step):
                continue
            chances, intervals = result.get("chance", {}), result.get("intervals") or {}
            for metric, score in result["metrics"].items():
                if score is None:
                    continue
                chance = "" if chances.get(metric) is None else f"{chances[metric]:.4f}"
                interval = " to ".join(f"{limit:.4f}" for limit in intervals.get(metric) or [])
                rows.append(f"| {result['dataset']} | {metric} | {score:.4f} | {interval} | {chance} |")
    return rows
