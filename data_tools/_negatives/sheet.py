"""The sheet of hard captions: what was made of all captions, by kind and by rule, and captions to look at."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from data_tools._language_models.survey import LeftOut
from data_tools._negatives.blind import Accuracy, BlindTest
from data_tools._negatives.figures import Drawn
from data_tools._negatives.report import NegativesReport, is_loud
from data_tools._rewrite_sheet import picture_of
from data_tools.stats import name_of_data
from vlp.data.index import open_shard
from vlp.data.shards import Shard

KIND, VERSION = "vlp negatives sheet", 1


def sheet(report: NegativesReport) -> dict[str, Any]:
    """The whole sheet, ready for ``json.dumps``; the same data, options and seed give the same sheet."""
    figures, work = report.figures, report.work
    order = {path: number for number, path in enumerate(report.paths)}
    shown = sorted(figures.shown, key=lambda one: (order[one.shard], one.row))
    accepted, rejected = figures.accepted(), figures.rejected()
    accepted_a_caption = figures.figures.table("accepted")
    return {
        "kind": KIND,
        "version": VERSION,
        "name": f"{name_of_data(report.paths)}: {work.place.name}",
        "origin": dict(report.made_by),
        "asked": work.generator.asked(shown[0].caption if shown else None, work.place.seed),
        "shards": len(report.paths),
        "samples": figures.figures.num_samples,
        "captions": figures.num_captions,
        "different_captions": len(figures.captions),
        "without_negative": _named(figures.without),
        "left_out": _named(report.left_out),
        "unanswered": report.unanswered,
        "texts": figures.num_texts,
        "accepted": accepted.total(),
        "accepted_a_caption": [
            (number, number + 1, accepted_a_caption[number]) for number in range(max(accepted_a_caption, default=0) + 1)
        ],
        "rules": [
            {"name": name, "rejects": meaning, "texts": rejected[name]} for name, meaning in report.reasons.items()
        ],
        "kinds": _kinds(report),
        "blind": _blind(report.blind),
        "sheet": _samples(shown, report.paths),
    }


def _blind(found: BlindTest | str) -> dict[str, Any]:
    """``missing`` says why there is none."""
    if isinstance(found, str):
        return {"missing": found, "overall": None, "telling": []}
    return {"missing": "", "overall": _accuracy(found.overall), "telling": [list(one) for one in found.telling]}


def _kinds(report: NegativesReport) -> list[dict[str, Any]]:
    """Those with most accepted texts first."""
    accepted, rejected = report.figures.accepted(), Counter[str]()
    for (kind, reason), texts in report.figures.figures.table("fates").items():
        rejected[kind] += texts if reason else 0
    return [
        {
            "name": kind,
            "accepted": accepted[kind],
            "rejected": rejected[kind],
            "blind": _accuracy(report.measured[kind]) if kind in report.measured else None,
        }
        for kind in sorted({*accepted, *rejected}, key=lambda kind: (-accepted[kind], kind))
    ]


def _accuracy(one: Accuracy) -> dict[str, Any]:
    return {**asdict(one), "loud": is_loud(one)}


def _named(left_out: LeftOut) -> dict[str, Any]:
    return {kind: {"number": count, "examples": left_out.examples[kind]} for kind, count in left_out.counts.items()}


def _samples(shown: Sequence[Drawn], paths: Sequence[str]) -> list[dict[str, Any]]:
    """What is shown of each; they stand in the order of the shards, so that each is opened once."""
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    opened: Shard | None = None
    samples = []
    for one in shown:
        if opened is None or opened.path != one.shard:
            opened = open_shard(one.shard)[0]
        samples.append(
            {
                "key": one.key,
                "shard": os.path.relpath(one.shard, folder),
                **picture_of(opened, one.row),
                "caption": one.caption,
                "texts": [asdict(verdict) for verdict in one.verdicts],
            }
        )
    return samples
