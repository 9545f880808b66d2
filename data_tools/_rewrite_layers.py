"""From what a language model wrote for the captions of a shard to the layer of the rewrites that the gate accepts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vlp
from data_tools._language_models import completions
from data_tools._language_models.base import Completion
from data_tools._language_models.shards import Job, captions_of_shard
from data_tools._rewrite_figures import RewriteFigures, Rewritten, count
from data_tools._rewrite_gate import GateOptions, Verdict, judge
from vlp.data.layers import LayerWriter
from vlp.data.shards import LOCAL

REFUSED = "refused"
_FORMAT = 1


@dataclass(frozen=True)
class Gated:
    """What became of one shard. With texts unanswered it has no layer yet, and does not count in the figures."""

    figures: RewriteFigures
    unanswered: int = 0


def provenance(job: Job, gate: GateOptions) -> dict[str, Any]:
    """All that a layer follows from."""
    return {
        "tool": "vlp data rewrite",
        "version": vlp.__version__,
        **job.origin(),
        "number": job.number,
        "caption": job.caption,
        "gate": gate.model_dump(mode="json"),
    }


def write_layer(path: str, job: Job, gate: GateOptions, keep_rejected: bool, num_drawn: int) -> Gated:
    """Judge what was written for one shard, write its layers unless they lie there, and count.

    ``NAME`` has a row for each sample with a caption, whose column ``rewrites`` may be empty; ``NAME_rejected`` the
    texts that are not used, with the rule that each broke.
    """
    shard, captions, _ = captions_of_shard(path, job.caption)
    texts, _ = completions.read(job.completions(path), job.origin())
    distinct = [caption for caption in dict.fromkeys(captions) if caption]
    wanted = [(caption, number) for caption in distinct for number in range(job.number)]
    if unanswered := sum(key not in texts for key in wanted):
        return Gated(RewriteFigures(num_drawn), unanswered)
    items = [(caption, [texts[caption, number] for number in range(job.number)]) for caption in distinct]
    made_by = provenance(job, gate)
    verdicts = _kept_verdicts(job.completions(path).with_suffix(".verdicts.json"), items, gate, made_by)
    known = {caption: Rewritten(caption, own, judged) for (caption, own), judged in zip(items, verdicts, strict=True)}
    samples = [known.get(caption, Rewritten("")) for caption in captions]
    rows = [row for row, caption in enumerate(captions) if caption]
    keys = [shard.key(row) for row in rows]
    layers = {job.name: {"rewrites": [_accepted(samples[row]) for row in rows]}}
    if keep_rejected:
        rejected = [[verdict for verdict in samples[row].verdicts if verdict.reason] for row in rows]
        layers[f"{job.name}_rejected"] = {
            "rejected": [[verdict.text for verdict in own] for own in rejected],
            "reasons": [[verdict.reason for verdict in own] for own in rejected],
        }
    for name, columns in layers.items():
        writer = LayerWriter(job.root, name, made_by, dict.fromkeys(columns, "texts"))
        if not writer.has(shard):
            writer.write(shard, keys, columns)
    return Gated(count(shard, samples, num_drawn, job.seed))


def _accepted(sample: Rewritten) -> list[str]:
    return [verdict.text for verdict in sample.verdicts if not verdict.reason]


Items = Sequence[tuple[str, Sequence[Completion]]]


def _kept_verdicts(path: Path, items: Items, gate: GateOptions, made_by: dict[str, Any]) -> list[list[Verdict]]:
    """The verdicts on ``items``, from the file ``path`` if it was written for them: to judge takes longest by far."""
    told = json.dumps([_FORMAT, made_by, [[caption, [c.text for c in own]] for caption, own in items]])
    wanted = hashlib.sha256(told.encode()).hexdigest()
    try:
        kept = json.loads(path.read_bytes())
        if kept["made_for"] == wanted:
            return [[Verdict(*fields) for fields in own] for own in kept["verdicts"]]
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not there yet, or of another version: judged again
    verdicts = _judged(items, gate)
    record = {"made_for": wanted, "verdicts": [[(v.text, v.reason, v.detail) for v in own] for own in verdicts]}
    LOCAL.write(str(path), json.dumps(record, ensure_ascii=False).encode())
    return verdicts


def _judged(items: Items, gate: GateOptions) -> list[list[Verdict]]:
    """A verdict for each completion; what a server refused to write was never the gate's to judge."""
    judged = judge(gate, [(caption, [one.text for one in own if not one.problem]) for caption, own in items])
    verdicts = []
    for (_, own), found in zip(items, judged, strict=True):
        rest = iter(found)
        verdicts.append([Verdict("", REFUSED, one.problem) if one.problem else next(rest) for one in own])
    return verdicts
