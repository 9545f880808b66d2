"""The sheet of a caption layer: figures, and samples with the caption they had and the one that was told."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from data_tools._captions.job import Job
from data_tools._captions.layer import CaptionsReport
from data_tools._console import by_kind
from data_tools._stats_sheet import sample_shown
from data_tools.stats import name_of_data
from vlp.data.index import open_shard
from vlp.data.samples import BadSample
from vlp.data.shards import Shard

KIND, VERSION = "vlp captions sheet", 1
NUM_SHOWN = 48


def sheet(report: CaptionsReport, job: Job) -> dict[str, Any]:
    """The whole sheet, ready for ``json.dumps``; the same layer gives the same sheet."""
    same = report.repeats()
    return {
        "kind": KIND,
        "version": VERSION,
        "name": f"{name_of_data(report.paths)}: {job.name}",
        "origin": job.provenance(),
        "shards": len(report.paths),
        "samples": report.samples,
        "captions": report.captions,
        "distinct": same.distinct,
        "most_frequent": [
            {"caption": report.caption(position, job), "number": number} for number, position in same.groups
        ],
        "words": report.words().to_json(),
        "left_out": {kind: {"number": n, "examples": names} for kind, n, names in by_kind(report.skipped)},
        "sheet": _samples(report, job),
    }


def _samples(report: CaptionsReport, job: Job) -> list[dict[str, Any]]:
    """Drawn evenly, in the order of the shards."""
    drawn = np.random.default_rng(0).choice(report.captions, min(NUM_SHOWN, report.captions), replace=False)
    opened: Shard | None = None
    samples = []
    for position in sorted(drawn.tolist()):
        number, row = report.place(position)
        if opened is None or opened.path != report.paths[number]:
            opened = open_shard(report.paths[number])[0]
        with suppress(BadSample):  # a .txt that is no text has no part in the captions
            shown = sample_shown(opened, row, ("txt",))
            samples.append(shown | {"told": report.caption(position, job)})
    return samples
