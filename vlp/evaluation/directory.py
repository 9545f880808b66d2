"""A directory of results: a JSON for each model and set, named as CLIP_benchmark names them.

``clip_benchmark build DIR/*.json`` makes its table of them. Beside ``NAME.json`` lies ``NAME.details.npz``: how each
question was answered, for comparisons of models.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from vlp.evaluation.answers import Arrays
from vlp.evaluation.results import Result, slug, title, write_json, write_results, write_text
from vlp.types import UserError

DETAILS = ".details.npz"
PARTS = ("model", "task", "options", "set", "vlp")  # of `identity.made_from`; the prompts of a set follow its options


class ResultsDirectory:
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output-dir {path} is a file: name a directory")

    def file_of(self, dataset: str, pretrained: str, model: str, task: str, language: str) -> Path:
        return self.path / f"{'_'.join(slug(part) for part in (dataset, pretrained, model, language, task))}.json"

    def find(self, path: Path, made_from: Mapping[str, Any]) -> tuple[Result | None, str]:
        """The result in ``path`` if it was made from the same; else why it has to be made anew ("" if it is new)."""
        if not path.exists():
            return None, ""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            before = content.get("made_from") or {}
            differs = [part for part in PARTS if before.get(part) != made_from[part]]
            found = None if differs else Result.from_json(content)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None, "its file is damaged"
        return found, f"other {differs[0]}" if differs else ""

    def write(self, result: Result, arrays: Arrays) -> Path:
        """The JSON comes last: where it is, the rest is."""
        names = (result.dataset, result.pretrained, result.model, result.task, result.language)
        path = self.file_of(*names)
        path.parent.mkdir(parents=True, exist_ok=True)
        if arrays:
            partial = path.with_suffix(DETAILS + ".partial")
            with open(partial, "wb") as file:
                np.savez_compressed(file, **cast(Any, arrays))
            partial.replace(path.with_suffix(DETAILS))
        return write_results([result], path)[0]

    def add_suite(self, result: Result, suite: str) -> Result:
        """Note that a result belongs to one more suite."""
        suites = [*result.about.get("suites", []), suite]
        changed = replace(result, about={**result.about, "suites": suites})
        path = self.file_of(result.dataset, result.pretrained, result.model, result.task, result.language)
        content = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**content, "suites": suites})
        return changed

    def read(self) -> list[dict[str, Any]]:
        """All results as JSON, each with ``file``, its name without .json; other files are left alone."""
        found = []
        for path in sorted(self.path.glob("*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                continue
            if isinstance(content, dict) and {"dataset", "model", "task", "metrics"} <= content.keys():
                found.append({**content, "file": path.stem})
        return found

    def answers(self, file: str) -> Arrays:
        """What `write` kept of each question; nothing where there is none."""
        path = self.path / f"{file}{DETAILS}"
        if not path.exists():
            return {}
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def write_tables(self) -> None:
        """``results.csv`` and ``results.md`` of all results that are there."""
        found = self.read()
        write_text(self.path / "results.csv", _csv(found))
        write_text(self.path / "results.md", _markdown(found))


def _rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a metric."""
    rows = []
    for result in results:
        about = {key: result.get(key) for key in ("dataset", "task", "model", "pretrained", "language")}
        for metric, value in result["metrics"].items():
            low, high = (result.get("intervals") or {}).get(metric) or (None, None)
            chance = (result.get("chance") or {}).get(metric)
            rows.append(about | {"metric": metric, "value": value, "chance": chance, "low": low, "high": high})
    return rows


def _csv(results: Sequence[Mapping[str, Any]]) -> str:
    names = ["dataset", "task", "model", "pretrained", "language", "metric", "value", "chance", "low", "high"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(results))
    return text.getvalue()


def _markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """In per cent, a column a model."""
    models = list(dict.fromkeys(title(result["model"], result["pretrained"]) for result in results))
    table: dict[tuple[str, str], dict[str, str]] = {}
    for row in _rows(results):
        if row["value"] is None:
            continue
        cells = table.setdefault((row["dataset"], row["metric"]), {})
        interval = f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})" if row["low"] is not None else ""
        cells[title(row["model"], row["pretrained"])] = f"{100 * row['value']:.1f}{interval}"
        if row["chance"] is not None:
            cells["chance"] = f"{100 * row['chance']:.2g}"
    heads = ["set", "metric", *models, "chance"]
    lines = [f"| {' | '.join(heads)} |", f"|---|---|{'---:|' * (len(models) + 1)}"]
    for (dataset, metric), cells in table.items():
        values = [cells.get(name, "") for name in (*models, "chance")]
        lines.append(f"| {' | '.join((dataset, metric, *values))} |")
    return "Per cent; in brackets the 95 % interval.\n\n" + "\n".join(lines) + "\n"
