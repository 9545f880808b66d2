"""The steps of ``vlp data filter``, each a function of one shard, and what is done with all of them between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vlp
from data_tools._filter_corpus import Corpus, different_partners, first_samples, sample_numbers, vocabulary
from data_tools._filter_fingerprints import (
    UNREADABLE,
    Fingerprints,
    fingerprints,
    is_done,
    load,
    load_all,
    shard_signature,
)
from data_tools._filter_rules import Decisions, FilterRules, decide
from vlp.data.digest import hash64
from vlp.data.index import open_shard
from vlp.data.layer_files import layer_path
from vlp.data.layers import LayerWriter
from vlp.data.shards import stem
from vlp.types import Skipped, UserError

TOOL = "vlp data filter"
NUM_EXAMPLES = 3
COLUMNS = {
    "keep": "bool",
    "reason": "text",
    "caption_pictures": "int",
    "picture_captions": "int",
    "num_words": "int",
    "width": "int",
    "height": "int",
}


@dataclass(frozen=True)
class Places:
    """Where the layer lies, and the work folder in it."""

    root: Path | None
    name: str

    def fingerprints(self, shard_path: str) -> Path:
        return self._work_folder(shard_path) / f"{stem(shard_path)}.npz"

    def corpus(self, first_shard: str) -> Path:
        return self._work_folder(first_shard) / "corpus"

    def _work_folder(self, shard_path: str) -> Path:
        layer = layer_path(shard_path, self.name, self.root)
        if "://" in layer:
            raise UserError(f"cannot write the layer to {layer}: name a local folder with --root")
        return Path(layer).parent / ".counts"


@dataclass(frozen=True)
class Counted:
    """What pass one tells of a shard; ``defects`` are what its tar has that is no sample.

    ``signature`` is that of the shard and of which samples could not be read: when they can, the corpus is another.
    """

    num_samples: int
    signature: int
    defects: tuple[Skipped, ...]


def count_shard(path: str, places: Places, caption: str) -> Counted:
    """Pass one: leave the fingerprints of the samples in the work folder, unless they lie there."""
    shard, defects = open_shard(path)
    signature = shard_signature(shard, caption)
    file = places.fingerprints(path)
    if not is_done(file, signature):
        fingerprints(shard, caption).save(file)
    return Counted(len(shard), _with_unreadable(signature, file), tuple(defects))


def _with_unreadable(signature: int, file: Path) -> int:
    names, defect = load(file, "defects", "defect")
    unreadable = np.flatnonzero(names[defect] == UNREADABLE)
    return hash64(np.append(unreadable, signature).astype(np.uint64).tobytes()) if len(unreadable) else signature


def count_corpus(files: Sequence[Path], num_samples: int, rules: FilterRules, evaluation: np.ndarray) -> Corpus:
    """Everything the rules ask of the whole corpus, but which of the duplicates is the first."""
    shared, shared_pictures = different_partners(files, "caption", "picture", num_samples)
    busy, busy_captions = different_partners(files, "picture", "caption", num_samples)
    none = np.zeros(0, dtype=np.uint64)
    grams = vocabulary(files, rules.vocabulary, rules.min_count or 1) if rules.needs_vocabulary else none
    return Corpus(shared, shared_pictures, busy, busy_captions, grams, evaluation, repeated=none, first_sample=none)


def passing_pictures(path: str, places: Places, corpus: Path, rules: FilterRules) -> tuple[np.ndarray, np.ndarray]:
    """(pictures, sample numbers) of what passes every other rule."""
    found, samples, decisions = _decided(path, places, corpus, rules)
    passing = decisions.reason == ""
    return found.picture[passing], samples[passing]


def with_duplicates(corpus: Corpus, passing: Iterable[tuple[np.ndarray, np.ndarray]]) -> Corpus:
    """``corpus`` with the first sample of each picture that comes again, shards in order."""
    repeated, first = first_samples(passing)
    return Corpus(**(vars(corpus) | {"repeated": repeated, "first_sample": first}))


def provenance(
    rules: FilterRules, caption: str, signatures: Sequence[int], against: Sequence[str], evaluation: np.ndarray
) -> dict[str, Any]:
    """What the decisions follow from; only which duplicate is kept depends on the order of the shards."""
    order = signatures if rules.duplicates else sorted(signatures)
    corpus = hash64(np.array(order, dtype=np.uint64).tobytes() + b"against" + evaluation.tobytes())
    return {
        "tool": TOOL,
        "version": vlp.__version__,
        "caption": caption,
        "rules": asdict(rules),
        "against": sorted(Path(directory).name for directory in against),
        "corpus": f"{corpus:016x}",
    }


@dataclass(frozen=True)
class Decided:
    """What pass two tells of a shard: reasons, and the first keys of each."""

    num_samples: int
    dropped: Counter[str]
    examples: dict[str, list[str]]


def write_decisions(path: str, places: Places, corpus: Path, rules: FilterRules, origin: dict[str, Any]) -> Decided:
    """Pass two: write the layer of one shard, unless it lies there."""
    found, _, decisions = _decided(path, places, corpus, rules)
    shard, _ = open_shard(path)
    if shard_signature(shard, origin["caption"]) != int(found.signature):
        raise UserError(f"{path} was changed while the filter was at work: start it again when the shards are whole")
    writer = LayerWriter(places.root, places.name, origin, COLUMNS)
    if not writer.has(shard):
        columns = {
            "keep": decisions.reason == "",
            "reason": decisions.reason,
            "caption_pictures": decisions.caption_pictures,
            "picture_captions": decisions.picture_captions,
            "num_words": found.num_words,
            "width": found.width,
            "height": found.height,
        }
        writer.write(shard, [shard.key(row) for row in range(len(shard))], columns)
    dropped = Counter(reason for reason in decisions.reason.tolist() if reason)
    rows = {reason: np.flatnonzero(decisions.reason == reason)[:NUM_EXAMPLES] for reason in dropped}
    examples = {reason: [f"{stem(path)}: {shard.key(int(row))}" for row in rows[reason]] for reason in rows}
    return Decided(len(shard), dropped, examples)


def _decided(path: str, places: Places, corpus: Path, rules: FilterRules) -> tuple[Fingerprints, np.ndarray, Decisions]:
    found = load_all(places.fingerprints(path))
    samples = sample_numbers(hash64(path.encode("utf-8", "surrogateescape")), len(found))
    return found, samples, decide(found, Corpus.load(corpus), rules, samples)
