"""The sheet of rewrites: figures of all shards, where the texts come from, and samples to look at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from PIL import Image

from data_tools._language_models.base import Request
from data_tools._language_models.prompts import Prompt
from data_tools._language_models.shards import Job
from data_tools._rewrite_figures import Drawn, RewriteFigures
from data_tools._rewrite_gate import REASONS, GateOptions
from data_tools._rewrite_layers import UNWRITTEN
from data_tools._stats_figures import Figures, ordered
from data_tools._stats_sheet import thumbnail
from data_tools._verify_sample import check_sample
from data_tools.stats import name_of_data
from vlp.data.index import open_shard
from vlp.data.samples import BadSample
from vlp.data.shards import Shard

KIND, VERSION = "vlp rewrite sheet", 1
NUM_WORDS = 40  # most frequent new words shown
_NOTHING: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


def sheet(
    paths: Sequence[str],
    job: Job,
    gate: GateOptions,
    counted: RewriteFigures,
    unanswered: int = 0,
    left_out: Mapping[str, Mapping[str, Any]] = _NOTHING,
) -> dict[str, Any]:
    """The whole sheet, ready for ``json.dumps``; the same data, texts and seed give the same sheet.

    Args:
        counted: the sum of what `_rewrite_figures.count` gave for each of ``paths``. Only the shards of the samples
            that it drew are opened here, for their pictures.
        unanswered: texts that are still to be written; their shards do not count.
        left_out: kind of defect -> ``number`` of samples, and ``examples`` of their names.
    """
    figures = counted.figures
    order = {path: number for number, path in enumerate(paths)}
    drawn = sorted(counted.drawn, key=lambda one: (order[one.shard], one.row))
    reasons = figures.table("reasons")
    tokens = figures.table("tokens")
    return {
        "kind": KIND,
        "version": VERSION,
        "name": f"{name_of_data(paths)}: {job.name}",
        "origin": {**job.origin(), "number": job.number, "caption": job.caption},
        "prompt": filled_in(job.prompt, drawn[0].caption if drawn else None, job.seed),
        "gate": gate.model_dump(mode="json"),
        "shards": len(paths),
        "samples": figures.num_samples,
        "without_caption": figures.table("without")["caption"],
        "captions": len(counted.captions),
        "texts": reasons.total(),
        "accepted": reasons[""],
        "unanswered": unanswered,
        "left_out": {kind: dict(found) for kind, found in left_out.items()},
        "rules": [
            {"name": name, "rejects": REASONS.get(name, UNWRITTEN), "off": name in gate.off, "texts": reasons[name]}
            for name in dict.fromkeys([*REASONS, *filter(None, reasons)])
        ],
        "accepted_a_sample": [
            (number, number + 1, figures.table("accepted")[number]) for number in range(job.number + 1)
        ],
        "tokens": {"read": tokens["read"], "written": tokens["written"]},
        "words": {"before": figures.spread("words_before"), "after": figures.spread("words_after")},
        "vocabulary": _vocabulary(figures),
        "sheet": _samples(drawn, paths),
    }


def _vocabulary(figures: Figures) -> dict[str, Any]:
    originals, rewrites = figures.table("originals"), figures.table("rewrites")
    new = {word: number for word, number in rewrites.items() if word not in originals}
    return {
        "originals": len(originals),
        "with_rewrites": len(originals) + len(new),
        "most_frequent_new": list(ordered(new).items())[:NUM_WORDS],
    }


def filled_in(prompt: Prompt, caption: str | None, seed: int) -> dict[str, Any]:
    """The prompt as it stands in its file, and filled in for the first caption that is shown, if there is one."""
    example = None if caption is None else prompt.request(caption, 0, seed)
    return {**prompt.model_dump(mode="json", exclude={"sampling"}), "example": _plain(example) if example else None}


def _plain(request: Request) -> str:
    if isinstance(request.prompt, str):
        return request.prompt
    return "\n".join(f"{role}: {text}" for role, text in request.prompt)


def _samples(drawn: Sequence[Drawn], paths: Sequence[str]) -> list[dict[str, Any]]:
    """What is shown of each; ``drawn`` stand in the order of the shards, so that each is opened once."""
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    opened: Shard | None = None
    samples = []
    for one in drawn:
        if opened is None or opened.path != one.shard:
            opened = open_shard(one.shard)[0]
        samples.append(
            {
                "key": one.key,
                "shard": os.path.relpath(one.shard, folder),
                **picture_of(opened, one.row),
                "original": one.caption,
                "accepted": [verdict.text for verdict in one.verdicts if not verdict.reason],
                "rejected": [
                    {"text": verdict.text, "reason": verdict.reason, "detail": verdict.detail}
                    for verdict in one.verdicts
                    if verdict.reason
                ],
            }
        )
    return samples


def picture_of(shard: Shard, row: int) -> dict[str, Any]:
    """A thumbnail and the size of the picture itself; none where it cannot be used."""
    image: Image.Image | None = None
    with suppress(BadSample):
        image = check_sample(shard.read(row, shard.extensions), ()).image
    if image is None:
        return {"thumbnail": None, "width": 0, "height": 0}
    return {"thumbnail": thumbnail(image), "width": image.width, "height": image.height}
