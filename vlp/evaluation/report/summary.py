"""The head of the report and its tables: what the run is, its main figures, each beside its chance level."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlp.evaluation.report.gather import RunContents, SetResult
from vlp.evaluation.report.values import Tile, format_value

TASK_NAMES = {
    "zeroshot_retrieval": "zero-shot retrieval",
    "zeroshot_classification": "zero-shot classification",
    "image_caption_selection": "true caption above a false one",
}
MAIN_METRICS = {
    "zeroshot_retrieval": ("text_retrieval_recall@1", "image_retrieval_recall@1"),
    "zeroshot_classification": ("acc1",),
    "image_caption_selection": ("text_acc",),
}
COUNTS = (("num_images", "pictures"), ("num_texts", "texts"))
MAX_RESULT_TILES = 6


@dataclass(frozen=True)
class Row:
    """One metric; shares are from 0 to 1, ``chance`` is None where it is not known."""

    label: str
    name: str
    value: float
    chance: float | None


@dataclass(frozen=True)
class Table:
    """One evaluation set."""

    name: str
    facts: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Skips:
    """Samples of one kind that could not be used."""

    kind: str
    count: int
    example: str
    when: str


def sentence(run: RunContents) -> str:
    """What the run is, in a sentence or two."""
    if run.recipe is None:
        return "A training run of vlp."
    recipe = run.recipe
    start = f"fine-tuned from {recipe.model.init}" if recipe.model.init else "trained from scratch"
    data = f" on {run.sheet.num_samples:,} pictures with captions" if run.sheet else ""
    objectives = " and ".join(objective.name for objective in recipe.objectives)
    batch = f"{recipe.train.global_batch_size:,} pairs a step"
    about = f"A CLIP-style image-text model, {start}{data} with {objectives}, {batch}"
    step, total = last_step(run), run.total_steps
    if total is not None and step is not None and step < total:
        return f"{about}. It stands at step {step:,} of {total:,}: training has not finished."
    num_sets = len(run.results)
    return f"{about}, evaluated on {num_sets} {'set' if num_sets == 1 else 'sets'}." if num_sets else f"{about}."


def last_step(run: RunContents) -> int | None:
    """The newest step that metrics or checkpoints know of."""
    steps = [int(run.rows[-1]["step"])] if run.rows else []
    steps += [run.checkpoint_step] if run.checkpoint_step is not None else []
    return max(steps, default=None)


def tiles(run: RunContents) -> list[Tile]:
    """Main scores, then the size of the run."""
    found = []
    for result in run.results:
        metrics, chance = result.content["metrics"], result.content["chance"]
        for name in MAIN_METRICS.get(result.content["task"], ()):
            if is_figure(metrics.get(name)):
                label = "true above false" if name == "text_acc" else plain_name(result, name)
                note = f"chance {format_value(chance[name], 'percent')}" if name in chance else ""
                title = f"{result.content['dataset']}: {label}"
                found.append(Tile(format_value(metrics[name], "percent"), title, note))
    found = found[:MAX_RESULT_TILES]
    step = last_step(run)
    if step is not None:
        note = f"of {run.total_steps:,}" if run.total_steps else ""
        found.append(Tile(f"{step:,}", "steps", note))
    if run.rows:
        epochs = f"{run.rows[-1]['samples'] / run.sheet.num_samples:.1f} epochs" if run.sheet else ""
        found.append(Tile(f"{int(run.rows[-1]['samples']):,}", "samples seen", epochs))
    if run.model is not None:
        count = run.model.parameters_by_tower()
        note = f"image {_short(count['image'])}, text {_short(count['text'])}"
        found.append(Tile(_short(sum(count.values())), "parameters", note))
    return found


def tables(results: Sequence[SetResult]) -> list[Table]:
    """A table a set, with every metric that is defined on it."""
    found = []
    for result in results:
        content = result.content
        facts = [TASK_NAMES.get(content["task"], content["task"])]
        facts += [f"{content[key]:,} {noun}" for key, noun in COUNTS if key in content]
        if "tie_rate" in content:
            facts.append(f"ties {100 * content['tie_rate']:.2f} %")
        if content.get("step") is not None:
            facts.append(f"at step {content['step']:,}")
        if result.computed:
            facts.append("computed for this report")
        rows = [
            Row(plain_name(result, name), name, value, content["chance"].get(name))
            for name, value in content["metrics"].items()
            if is_figure(value)
        ]
        found.append(Table(content["dataset"], facts, rows))
    return found


def is_figure(value: Any) -> bool:
    """Whether a metric is defined: CLIP_benchmark writes NaN where it is not, we write null."""
    return isinstance(value, int | float) and math.isfinite(value)


def plain_name(result: SetResult, metric: str) -> str:
    """What people call a metric; its name where nothing better is known."""
    return result.labels.get(metric, metric).replace("->", "→").replace("_", " ")


def skipped(run: RunContents) -> list[Skips]:
    """Samples that could not be used by kind, the most frequent first."""
    found = []
    for kind, count in Counter(run.skipped.get("kinds", {})).most_common():
        found.append(Skips(kind, count, run.skipped.get("examples", {}).get(kind, ""), "during training"))
    defects = run.sheet.defects if run.sheet else []
    first = {defect.kind: defect.where for defect in reversed(defects)}
    for kind, count in Counter(defect.kind for defect in defects).most_common():
        found.append(Skips(kind, count, first[kind], "when the shards were listed"))
    return found


def _short(count: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)
