"""The head of the report and its tables: what the run is, its main figures, each beside its chance level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlp.evaluation.report.gather import RunContents, SetResult
from vlp.evaluation.report.results import NO_RESULT
from vlp.evaluation.report.scores import Row, Score, is_figure, side_by_side
from vlp.evaluation.report.values import Tile, format_value
from vlp.evaluation.results import main_metrics

TASK_NAMES = {
    "zeroshot_retrieval": "zero-shot retrieval",
    "zeroshot_classification": "zero-shot classification",
    "image_caption_selection": "true caption above the false ones",
    "image_association": "pictures that go with a cue",
    "captioning": "captions of pictures",
}
TWINS = "two pictures, each with its own of two captions"
COUNTS = (("num_images", "pictures"), ("num_texts", "texts"))
MAX_RESULT_TILES = 6
WHOLE_DASH = "\u2060–\u2060"  # where no line breaks


@dataclass(frozen=True)
class Table:
    """One evaluation set."""

    name: str
    facts: list[str]
    rows: list[Row]

    def has_intervals(self) -> bool:
        return any(score and score.interval for row in self.rows for score in row.scores)


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
        names = main_metrics(result.content["task"], result.content["metrics"])
        found += [_result_tile(result, name) for name in names]
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


def tables(run: RunContents) -> list[Table]:
    """A table a set, with every metric that is defined on it, of this run and of those beside it."""
    found = []
    for name, contents in run.by_set().items():
        own = next((result for result in run.results if result.content["dataset"] == name), None)
        metrics = dict.fromkeys(metric for content in contents if content for metric in content["metrics"])
        rows = [_row(metric, contents, own) for metric in metrics]
        found.append(Table(name, _facts(contents, own), [row for row in rows if any(row.scores)]))
    return found


def _row(metric: str, contents: Sequence[dict[str, Any] | None], own: SetResult | None) -> Row:
    known = [content or NO_RESULT for content in contents]
    scores = side_by_side([(content["metrics"].get(metric), content["intervals"].get(metric)) for content in known])
    chance = next((content["chance"][metric] for content in known if is_figure(content["chance"].get(metric))), None)
    return Row(plain_name(own, metric), metric, scores, chance)


def _facts(contents: Sequence[dict[str, Any] | None], own: SetResult | None) -> list[str]:
    first = next(content for content in contents if content)
    twins = first["task"] == "image_caption_selection" and "image_acc" in first["metrics"]
    facts = [TWINS if twins else TASK_NAMES.get(first["task"], first["task"])]
    facts += [f"{first[key]:,} {noun}" for key, noun in COUNTS if key in first]
    ties = [f"{100 * content['tie_rate']:.2f} %" for content in contents if content and "tie_rate" in content]
    facts += [f"ties {', '.join(ties)}"] if ties else []
    steps = [f"{content['step']:,}" for content in contents if content and content.get("step") is not None]
    facts += [f"at step {', '.join(steps)}"] if steps else []
    return facts + (["computed for this report"] if own and own.computed else [])


def _result_tile(result: SetResult, metric: str) -> Tile:
    content = result.content
    score = side_by_side([(content["metrics"][metric], content["intervals"].get(metric))])[0]
    assert isinstance(score, Score)
    notes = []
    if metric in content["chance"]:
        notes.append(f"chance {format_value(content['chance'][metric], 'percent')}")
    if score.interval:
        notes.append(f"95 % interval {score.range().replace('–', WHOLE_DASH)}")
    return Tile(score.text(), f"{content['dataset']}: {plain_name(result, metric)}", ", ".join(notes))


def plain_name(result: SetResult | None, metric: str) -> str:
    """What people call a metric; its name where nothing better is known."""
    labels = result.labels if result else {}
    return labels.get(metric, metric).replace("->", "→").replace("_", " ")


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
