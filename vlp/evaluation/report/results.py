"""Result JSON of evaluations: what a run has left, and other runs that stand beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlp.types import UserError

NO_RESULT: dict[str, Any] = {"metrics": {}, "chance": {}, "intervals": {}, "categories": []}
CATEGORY = {"table", "name", "number", "score"}
SAME = ("task", "num_images", "num_texts")  # or two results are not of the same questions


@dataclass(frozen=True)
class StoredResults:
    """The results of one run, or of one file, by set."""

    name: str
    of_set: dict[str, dict[str, Any]]


def read_directory(directory: Path) -> tuple[dict[str, dict[str, Any]], list[Path]]:
    """The results in ``directory/*.json`` by set, and the files that are none."""
    found: dict[str, dict[str, Any]] = {}
    others = []
    for path in sorted(directory.glob("*.json")):
        results = _read_file(path)
        found |= results
        others += [] if results else [path]
    return found, others


def read_beside(path: Path, name: str) -> StoredResults:
    """What was evaluated in ``path``, a run directory or a file of ``vlp eval --output``.

    Raises:
        UserError: there is nothing, or no result.
    """
    if not path.exists():
        raise UserError(f"there is no {path}: give run directories, or files of vlp eval --output, to stand beside")
    of_set = read_directory(path / "evaluation")[0] if path.is_dir() else _read_file(path)
    if not of_set:
        place = f"{path}/evaluation" if path.is_dir() else path
        raise UserError(f"{place} has no result of an evaluation: vlp eval MODEL --on DIR --output FILE writes one")
    return StoredResults(name, of_set)


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or all of it where that is not enough to tell them apart."""
    names = [path.resolve().name.removesuffix(".json") for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def without_other_questions(
    beside: Sequence[StoredResults], own: dict[str, dict[str, Any]]
) -> tuple[list[StoredResults], list[str]]:
    """``beside`` without sets that have the name of one of ``own`` and are another, and sentences that name these."""
    kept, sentences = [], []
    for other in beside:
        of_set = {}
        for name, content in other.of_set.items():
            differs = [key for key in SAME if name in own and content.get(key) != own[name].get(key)]
            if differs:
                has = ", ".join(f"{key} {content.get(key)} and not {own[name].get(key)}" for key in differs)
                sentences.append(f"The figures of {other.name} on {name} are of another set ({has}) and were left out.")
            else:
                of_set[name] = content
        kept.append(StoredResults(other.name, of_set))
    return kept, sentences


def _read_file(path: Path) -> dict[str, dict[str, Any]]:
    """The results by set; none where the file holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    results = content if isinstance(content, list) else [content]
    if not all(_is_result(result) for result in results):
        return {}
    return {result["dataset"]: {**NO_RESULT, **result} for result in results}


def _is_result(result: Any) -> bool:
    if not isinstance(result, dict) or not all(isinstance(result.get(name), str) for name in ("dataset", "task")):
        return False
    whole = {**NO_RESULT, **result}
    if not all(isinstance(whole[name], type(empty)) for name, empty in NO_RESULT.items()):
        return False
    return all(isinstance(row, dict) and row.keys() >= CATEGORY for row in whole["categories"])
