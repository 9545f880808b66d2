"""A directory of results: a JSON for each model and set, named as CLIP_benchmark names them.

``clip_benchmark build DIR/*.json`` makes its table of them. Beside ``NAME.json`` lies ``NAME.details.npz``: how each
question was answered, for comparisons of models.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from vlp import distributed
from vlp.evaluation.answers import Arrays
from vlp.evaluation.results import Result, is_result, slug, title, write_bytes, write_json, write_results, write_text
from vlp.types import UserError

DETAILS = ".details.npz"
LONGEST_NAME = 180  # bytes; file systems take 255 with all that is added
PARTS = ("model", "task", "options", "set", "vlp")  # of `identity.made_from`; the prompts of a set follow its options


class ResultsDirectory:
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output-dir {path} is a file: name a directory")

    def make(self) -> None:
        """Now, so that a place where nothing can be written is told before anything is computed."""
        self.path.mkdir(parents=True, exist_ok=True)

    def file_of(self, dataset: str, pretrained: str, model: str, task: str, language: str) -> Path:
        """Where a result lies: under CLIP_benchmark's name, with a digest where that is too long, or is another's."""
        names = (dataset, pretrained, model, language, task)
        name = "_".join(slug(part) for part in names)
        digest = hashlib.blake2b("\n".join(names).encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
        long = len(name.encode()) > LONGEST_NAME
        name = name.encode()[:LONGEST_NAME].decode(errors="ignore")
        plain, own = self.path / f"{name}.json", self.path / f"{name}-{digest}.json"
        return own if long or own.exists() or _named(plain) not in (None, names) else plain

    def find(self, path: Path, made_from: Mapping[str, Any]) -> tuple[Result | None, str]:
        """The result in ``path`` if it was made from the same; else why it has to be made anew ("" if it is new)."""
        if not path.exists():
            return None, ""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            before = content.get("made_from") or {}
            differs = [part for part in PARTS if before.get(part) != made_from[part]]
            if not is_result(content):
                return None, "its file is damaged"
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
            content = io.BytesIO()
            np.savez_compressed(content, **cast(Any, arrays))
            write_bytes(self.path / f"{path.stem}{DETAILS}", content.getvalue())
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
        """All results as JSON; other files are left alone.

        Each has besides ``file``, its name without .json, and ``name``, that of the set with its language where there
        are results in several.
        """
        found = []
        for path in sorted(self.path.glob("*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                continue
            if is_result(content):
                found.append({"pretrained": "", **content, "file": path.stem})
        languages = {(content["dataset"], content.get("language")) for content in found}
        several = Counter(dataset for dataset, _ in languages)
        for content in found:
            language = f" ({content.get('language')})" if several[content["dataset"]] > 1 else ""
            content["name"] = content["dataset"] + language
        return found

    def answers(self, file: str) -> Arrays:
        """What `write` kept of each question; nothing where there is none."""
        path = self.path / f"{file}{DETAILS}"
        if not path.exists():
            return {}
        try:
            with np.load(path) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
            distributed.say(f"{path} is damaged and was left out: remove {file}.json, and vlp eval makes both anew")
            return {}

    def write_tables(self) -> None:
        """``results.csv`` and ``results.md`` of all results that are there."""
        found = self.read()
        write_text(self.path / "results.csv", _csv(found))
        write_text(self.path / "results.md", _markdown(found))


def _named(path: Path) -> tuple[str, ...] | None:
    """What the result in ``path`` is of; None where there is none, or one that cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return tuple(content[name] for name in ("dataset", "pretrained", "model", "language", "task"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a metric."""
    rows = []
    for result in results:
        about = {key: result.get(key) for key in ("dataset", "name", "task", "model", "pretrained", "language")}
        for metric, value in (result["metrics"] | (result.get("figures") or {})).items():
            low, high = (result.get("intervals") or {}).get(metric) or (None, None)
            chance = (result.get("chance") or {}).get(metric)
            rows.append(about | {"metric": metric, "value": value, "chance": chance, "low": low, "high": high})
    return rows


def _csv(results: Sequence[Mapping[str, Any]]) -> str:
    names = ["dataset", "task", "model", "pretrained", "language", "metric", "value", "chance", "low", "high"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(results))
    return text.getvalue()


def _markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """In per cent, a column a model."""
    models = list(dict.fromkeys(title(result["model"], result["pretrained"]) for result in results))
    table: dict[tuple[str, str], dict[str, str]] = {}
    for row in _rows([{**result, "figures": None} for result in results]):
        if row["value"] is None:
            continue
        cells = table.setdefault((row["name"], row["metric"]), {})
        interval = f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})" if row["low"] is not None else ""
        cells[title(row["model"], row["pretrained"])] = f"{100 * row['value']:.1f}{interval}"
        if row["chance"] is not None:
            cells["chance"] = f"{100 * row['chance']:.3g}"
    heads = ["set", "metric", *models, "chance"]
    lines = [_line(heads), f"|---|---|{'---:|' * (len(models) + 1)}"]
    for (dataset, metric), cells in table.items():
        values = [cells.get(name, "") for name in (*models, "chance")]
        lines.append(_line((dataset, metric, *values)))
    return "Per cent; in brackets the 95 % interval.\n\n" + "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
