"""The scores of one model on one set, as JSON in CLIP_benchmark's shape."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlp.evaluation.tasks.base import Category, Scores
from vlp.types import UserError

CAPTIONS = ".captions.jsonl"  # in place of the .json of a result: what a captioner said
ABOUT = (
    "set",
    "suites",
    "preprocess",
    "texts",
    "weights",
    "made_from",
)  # fields of the JSON that `Result.about` may have
NAMES = ("dataset", "model", "task")
KINDS: dict[str, type] = (
    dict.fromkeys(("labels", "intervals", "preprocess", "made_from"), dict)
    | dict.fromkeys(("categories", "notes", "suites"), list)
    | dict.fromkeys(("pretrained", "language", "set"), str)
)
# Of each line the first metric that a set has.
MAIN_METRICS = {
    "zeroshot_retrieval": (("text_retrieval_recall@1",), ("image_retrieval_recall@1",)),
    "zeroshot_classification": (("acc1", "mean_average_precision"),),
    "image_caption_selection": (("acc", "image_acc_macro", "text_acc_macro_official", "text_acc_macro", "text_acc"),),
    "image_association": (("jaccard_score_10-12", "jaccard_score_5-6", "avg_jaccard_score"),),
    "captioning": (("slot_acc", "CIDEr", "CLIPScore"),),
}


@dataclass(frozen=True)
class Result:
    """The scores of one model on one set; ``about`` are further fields of the JSON, such as ``preprocess``."""

    dataset: str
    task: str
    model: str
    pretrained: str
    scores: Scores
    step: int | None = None
    language: str = "en"
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """CLIP_benchmark's fields, then ours; null where CLIP_benchmark writes NaN, which is no JSON."""
        scores = self.scores
        return {
            "dataset": self.dataset,
            "model": self.model,
            "pretrained": self.pretrained,
            "task": self.task,
            "metrics": _without_nan(scores.metrics),
            "language": self.language,
            "labels": scores.labels,
            "chance": _without_nan(scores.chance),
            "intervals": {name: limits for name, limits in scores.intervals.items() if not math.isnan(limits[0])},
            "categories": [
                {**asdict(row), "interval": None if math.isnan(row.interval[0]) else row.interval}
                for row in scores.categories
            ],
            "num_images": scores.num_images,
            "num_texts": scores.num_texts,
            **({} if math.isnan(scores.tie_rate) else {"tie_rate": scores.tie_rate}),
            "geometry": _without_nan(scores.geometry),
            **({"figures": _without_nan(scores.figures)} if scores.figures else {}),
            **({"notes": scores.notes} if scores.notes else {}),
            **({} if self.step is None else {"step": self.step}),
            **self.about,
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Result:
        """What `to_json` has written, without what it leaves out: the log, details and records of the scores."""
        scores = Scores(
            metrics=_with_nan(content["metrics"]),
            chance=_with_nan(content["chance"]),
            tie_rate=content.get("tie_rate", math.nan),
            num_images=content["num_images"],
            num_texts=content["num_texts"],
            log={},
            labels=content["labels"],
            intervals={name: (low, high) for name, (low, high) in content["intervals"].items()},
            categories=[
                Category(**{**row, "interval": tuple(row["interval"] or (math.nan, math.nan))})
                for row in content["categories"]
            ],
            geometry=_with_nan(content["geometry"]),
            figures=_with_nan(content.get("figures", {})),
            notes=content.get("notes", []),
        )
        named = {name: content[name] for name in ("dataset", "task", "model", "pretrained", "language")}
        about = {name: content[name] for name in ABOUT if name in content}
        return Result(**named, scores=scores, step=content.get("step"), about=about)


def main_metrics(task: str, metrics: Mapping[str, Any]) -> list[str]:
    """The names of one or two metrics that stand for a result of the kind ``task``."""
    defined = [name for name, value in metrics.items() if value is not None and value == value]
    lines = MAIN_METRICS.get(task, (tuple(defined),))
    return [name for line in lines for name in [n for n in line if n in defined][:1]]


def write_results(results: Sequence[Result], output: str | Path) -> list[Path]:
    """Write ``output`` as JSON and return the files: one a result where the path has ``{dataset}`` (or ``{model}``).

    One result is an object, as CLIP_benchmark writes it; several in one file are a list. What a captioner said goes to
    ``NAME.captions.jsonl`` beside ``NAME.json``, a picture a line.
    """
    check_output(output)
    of_file: dict[Path, list[Result]] = {}
    for result in results:
        place = str(output).replace("{dataset}", slug(result.dataset)).replace("{model}", slug(result.model))
        of_file.setdefault(Path(place), []).append(result)
    for path, found in of_file.items():
        objects = [result.to_json() for result in found]
        write_json(path, objects[0] if len(objects) == 1 else objects)
        lines = [{"dataset": result.dataset, **record} for result in found for record in result.scores.records]
        if lines:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_text(path.with_suffix(CAPTIONS), text)
    return list(of_file)


def check_output(output: str | Path) -> None:
    """Refuse, before anything is computed, a place where no file can be written."""
    path = Path(output)
    if path.is_dir():
        raise UserError(f"{path} is a directory: name a file, such as {path}/{{dataset}}.json")
    if "{" not in str(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)


def title(model: str, pretrained: str) -> str:
    """A model as tables call it; where the weights come from is told of open_clip's own names alone."""
    return model if pretrained in ("model", "ema") else f"{model}:{pretrained}"


def slug(name: str) -> str:
    """``name`` as part of a file's name."""
    return re.sub(r"[^\w.@+=-]+", "_", name).strip("_")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """What is no Unicode, as in names of files, is written as JSON writes it."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """The file has its name only when it is whole, also where another process writes the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def is_result(content: Any) -> bool:
    """Whether JSON is what `Result.to_json` or CLIP_benchmark writes, as far as tables and reports read it."""
    if not isinstance(content, dict) or not all(isinstance(content.get(name), str) for name in NAMES):
        return False
    if not all(isinstance(content[name], kind) for name, kind in KINDS.items() if name in content):
        return False
    shares = [content.get("metrics"), *(content.get(name, {}) for name in ("chance", "geometry", "figures"))]
    limits = [limits for limits in content.get("intervals", {}).values() if limits is not None]
    return all(isinstance(values, dict) and all(map(_is_figure, values.values())) for values in shares) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(limit, int | float) for limit in pair)
        for pair in limits
    )


def _is_figure(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _with_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}
