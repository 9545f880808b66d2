"""What a captioner said of pictures, the worst first, beside the true captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from vlp.evaluation.report.captions import caption, mark_differences
from vlp.evaluation.report.failures import spread
from vlp.evaluation.report.gather import CaptionedSet, RunContents
from vlp.evaluation.report.pictures import img
from vlp.evaluation.report.scores import is_figure
from vlp.evaluation.report.space import Figure
from vlp.evaluation.report.values import format_value
from vlp.evaluation.tasks import captioning

SCORES = ("slots", "CIDEr", "CLIPScore")  # by the first that there is captions are good or bad
NUM_WORST = 24
NUM_OTHERS = 6


@dataclass(frozen=True)
class ShownCaption:
    """A picture; words of its caption that the one true caption lacks are marked, where something is wrong."""

    image: Markup
    caption: Markup
    true: list[Markup]
    score: str
    wrong: str


@dataclass(frozen=True)
class View:
    """One set. ``is_judged``: it is known of each caption what is wrong; else they are only better and worse."""

    name: str
    about: str
    score: str
    is_judged: bool
    number: int
    num_wrong: int
    worst: list[ShownCaption]
    others: list[ShownCaption]
    figures: list[Figure]
    notes: list[str]


def views(run: RunContents) -> list[View]:
    contents = {result.content["dataset"]: result.content for result in run.results}
    return [_view(shown, contents.get(shown.task.name, {})) for shown in run.captioned]


def _view(shown: CaptionedSet, content: dict[str, Any]) -> View:
    score = next(name for name in SCORES if name in shown.records[0])
    is_judged = score == "slots"
    ranked = sorted(range(len(shown.records)), key=lambda row: shown.records[row][score])
    wrong = [row for row in ranked if shown.records[row]["wrong"]] if is_judged else ranked
    worst = wrong[:NUM_WORST]
    rest = ranked[len(wrong) :] if is_judged else ranked[NUM_WORST:]
    step = content.get("step")
    return View(
        shown.task.name,
        f"of the checkpoint at step {step:,}" if step is not None else "of the last evaluation",
        score,
        is_judged,
        len(ranked),
        len(wrong),
        [_shown(shown, row, score) for row in worst],
        [_shown(shown, row, score) for row in spread(rest, NUM_OTHERS)],
        _figures(content),
        content.get("notes", []),
    )


def _shown(shown: CaptionedSet, row: int, score: str) -> ShownCaption:
    record = shown.records[row]
    said, true = record["caption"], record["true"]
    wrong: Sequence[str] = record.get("wrong", ())
    differs = len(true) == 1 and (wrong or score != "slots")
    marked = mark_differences(said, true[0])[0] if differs else caption(said)
    return ShownCaption(
        img(shown.task.image(row), true[0]),
        marked if said.strip() else Markup("<i>nothing</i>"),
        [caption(text) for text in true],
        f"{100 * record[score]:.0f} % of slots" if score == "slots" else f"{score} {100 * record[score]:.1f}",
        ", ".join(wrong),
    )


def _figures(content: dict[str, Any]) -> list[Figure]:
    values = content.get("figures", {})
    return [
        Figure(
            name.replace("_", " "),
            format_value(values[name], "number") if is_figure(values[name]) else "–",
            meaning,
        )
        for name, meaning in captioning.FIGURES.items()
        if name in values
    ]
