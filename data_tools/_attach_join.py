"""Rows find their samples: by hashes of names, over shards of any number, without holding the rows in memory.

One pass over the samples brings a hash of each one's name; one over the rows hands each to the shard of its sample, as
a file of that shard's work folder; then every shard writes its layer. In memory are some 25 bytes a sample (2.5 GB for
a hundred million) and at most `HELD` rows. Names count as equal when 64 bits of their hashes are: among a hundred
million rows and as many samples a false match has a chance of 1 in 2,000.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from data_tools._attach_tables import Rows
from vlp.data.captions import SampleTexts
from vlp.data.digest import hash64
from vlp.data.index import open_shard
from vlp.data.layer_files import ARROW, layer_path
from vlp.data.layers import LayerWriter
from vlp.data.samples import BadSample
from vlp.data.shards import stem
from vlp.types import Skipped, UserError

HELD = 200_000  # rows that wait to be handed to their shards
NAMED = 3
Compare = Literal["whole", "name", "stem"]


@dataclass(frozen=True)
class Place:
    """Where the name of a sample stands, ``key`` or ``json.FIELD``, and which part of names is compared."""

    source: str = "key"
    compare: Compare = "stem"

    def compared(self, name: str) -> str:
        """``whole``: all; ``name``: what follows the last slash; ``stem``: of that what precedes the first dot."""
        if self.compare == "whole":
            return name
        last = name.rpartition("/")[2]
        return last if self.compare == "name" else last.partition(".")[0]

    def hash(self, name: str) -> int:
        """64 bits, 0 only for no name."""
        part = self.compared(name)
        return (hash64(part.encode("utf-8", "surrogateescape")) or 1) if part else 0

    @property
    def is_unique(self) -> bool:
        """Whether two samples of one name must be different pictures; the same address may come twice."""
        return self.source == "key" or self.compare != "whole"


@dataclass(frozen=True)
class Named:
    """The samples of one shard: hashes of their names and of their captions (0: none), and what could not be read."""

    names: np.ndarray
    captions: np.ndarray | None
    defects: tuple[Skipped, ...]
    fields: frozenset[str]
    example: str


def caption_hash(text: str) -> int:
    """Equal for captions that differ in white space only; 0 for none."""
    words = " ".join(text.split())
    return (hash64(words.encode("utf-8", "surrogateescape")) or 1) if words else 0


def name_samples(path: str, place: Place, caption: str | None) -> Named:
    """What one shard has to be joined by; its members are read only where ``place`` or ``caption`` stand in them."""
    shard, defects = open_shard(path)
    names = np.zeros(len(shard), np.uint64)
    captions = np.zeros(len(shard), np.uint64) if caption else None
    fields: set[str] = set()
    example = ""
    wanted = {source.partition(".")[0] for source in (place.source, caption or "key")} - {"key"}
    for row in range(len(shard)):
        name: Any = shard.key(row)
        if wanted:
            try:
                texts = SampleTexts(shard.read(row, wanted))
                if place.source != "key":
                    record = texts.record()
                    fields |= record.keys()
                    name = record.get(place.source.removeprefix("json."))
                if captions is not None and caption:
                    captions[row] = caption_hash(next(iter(texts.of(caption)), ""))
            except BadSample as bad:
                defects = [*defects, Skipped(bad.kind, shard.where(row))]
                continue
        if isinstance(name, str | int):
            names[row] = place.hash(str(name))
            example = example or str(name)
    return Named(names, captions, tuple(defects), frozenset(fields), example)


class Samples:
    """The samples of all shards, to be found by the hash of their names. Sample i is row ``i - start`` of its shard.

    Raises:
        UserError: two samples of one name that must be different ones; no sample has a name.
    """

    def __init__(self, paths: Sequence[str], place: Place, named: Iterable[Named]) -> None:
        self.paths, self._place = list(paths), place
        found = list(named)
        sizes = [len(shard.names) for shard in found]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.defects = [defect for shard in found for defect in shard.defects]
        self.example = next((shard.example for shard in found if shard.example), "")
        with_captions = [shard.captions for shard in found if shard.captions is not None]
        self.captions = np.concatenate(with_captions) if with_captions else None
        names = np.concatenate([np.zeros(0, np.uint64), *(shard.names for shard in found)])
        order = np.argsort(names, kind="stable")
        self._order = order[np.searchsorted(names, np.uint64(1), sorter=order) :]
        self._names = names[self._order]
        self.unnamed = len(names) - len(self._names)
        if len(names) and not len(self._names):
            fields = sorted(set().union(*(shard.fields for shard in found)))
            known = f"; fields there: {', '.join(fields)}" if fields else ""
            raise UserError(f"no sample of the {len(paths):,} shards has a {place.source} to be joined by{known}")
        twice = np.flatnonzero(self._names[1:] == self._names[:-1])
        if len(twice) and place.is_unique:
            one, other = (self.where(int(self._order[twice[0] + step])) for step in (0, 1))
            raise UserError(
                f"the samples {one} and {other} have the same {place.source} ({place.compare}), so a row could be of "
                "either: attach to each data set alone, or join by something else (--sample, --compare)"
            )

    def __len__(self) -> int:
        return int(self.starts[-1])

    def where(self, sample: int) -> str:
        shard = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return open_shard(self.paths[shard])[0].where(sample - int(self.starts[shard]))

    def find(self, names: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """(row, sample) of each match, in the order of ``names``; a name may be that of several samples."""
        hashes = np.array([self._place.hash(name) if name else 0 for name in names], np.uint64)
        first = np.searchsorted(self._names, hashes)
        matches = np.where(hashes > 0, np.searchsorted(self._names, hashes, side="right") - first, 0)
        rows = np.repeat(np.arange(len(names)), matches)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(matches) - matches, matches)
        return rows, self._order[np.repeat(first, matches) + within]


@dataclass
class Joined:
    """What became of the rows: counts, and the first names of each kind."""

    rows: int = 0
    unmatched: int = 0
    covered: int = 0
    compared: int = 0
    differing: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def name(self, kind: str, names: Iterable[str]) -> None:
        there = self.examples.setdefault(kind, [])
        for name in names:
            if len(there) >= NAMED:
                return
            there.append(name)


@dataclass(frozen=True)
class Places:
    """Where the layer lies, and the work folder in it."""

    root: str | None
    name: str

    def spilled(self, shard_path: str) -> Path:
        """The file of the rows for one shard: Arrow streams one after another."""
        layer = layer_path(shard_path, self.name, self.root)
        if "://" in layer:
            raise UserError(f"cannot write the layer to {layer}: name a local folder with --root")
        return Path(layer).parent / ".attach" / f"{stem(shard_path)}.arrows"


def hand_out(rows: Iterable[Rows], samples: Samples, places: Places, merge: bool) -> Joined:
    """Each row to the shards of its samples.

    Raises:
        UserError: two rows for one sample, unless they are to be merged.
    """
    joined, seen = Joined(), np.zeros(len(samples), bool)
    waiting: list[tuple[np.ndarray, dict[str, pa.Array]]] = []
    held = 0
    for some in rows:
        found, ids = samples.find(some.names)
        joined.rows += len(some.names)
        nowhere = np.setdiff1d(np.arange(len(some.names)), found)
        joined.unmatched += len(nowhere)
        joined.name("rows of no sample", (repr(some.names[row]) for row in nowhere))
        if not merge:
            _refuse_repeated(some.names, found, ids, seen)
        seen[ids] = True
        if some.captions is not None:
            _compare(some.captions, found, ids, samples, joined)
        waiting.append((ids, {name: values.take(pa.array(found)) for name, values in some.columns.items()}))
        held += len(ids)
        if held >= HELD:
            _spill(waiting, samples, places)
            waiting, held = [], 0
    _spill(waiting, samples, places)
    joined.covered = int(seen.sum())
    joined.name("samples without a row", (samples.where(int(i)) for i in np.flatnonzero(~seen)[:NAMED]))
    return joined


def _refuse_repeated(names: Sequence[str | None], found: np.ndarray, ids: np.ndarray, seen: np.ndarray) -> None:
    again = seen[ids]
    again[np.setdiff1d(np.arange(len(ids)), np.unique(ids, return_index=True)[1])] = True
    if again.any():
        name = names[int(found[np.argmax(again)])]
        raise UserError(
            f"several rows are of the sample '{name}': keep one of them, or gather their texts in a list with "
            "--repeated list"
        )


def _compare(captions: Sequence[str], found: np.ndarray, ids: np.ndarray, samples: Samples, joined: Joined) -> None:
    """Hold the captions that the rows tell against those of their samples, where both exist."""
    assert samples.captions is not None
    told = np.array([caption_hash(caption) for caption in captions], np.uint64)[found]
    own = samples.captions[ids]
    both = (told > 0) & (own > 0)
    differing = np.flatnonzero(both & (told != own))
    joined.compared += int(both.sum())
    joined.differing += len(differing)
    joined.name(
        "other captions",
        (f"{samples.where(int(ids[at]))}, '{captions[int(found[at])]}' in the table" for at in differing[:NAMED]),
    )


def _spill(waiting: Sequence[tuple[np.ndarray, dict[str, pa.Array]]], samples: Samples, places: Places) -> None:
    """Append what waits to the files of its shards."""
    if not sum(len(ids) for ids, _ in waiting):
        return
    ids = np.concatenate([some for some, _ in waiting])
    shards = np.searchsorted(samples.starts, ids, side="right") - 1
    order = np.argsort(shards, kind="stable")
    values = pa.concat_tables([pa.table(columns) for _, columns in waiting]).take(pa.array(order))
    table = values.add_column(0, "", pa.array((ids - samples.starts[shards])[order]))
    used, starts = np.unique(shards[order], return_index=True)
    for shard, start, end in zip(used, starts, [*starts[1:], len(order)], strict=True):
        file = places.spilled(samples.paths[shard])
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.slice(start, end - start))


def write_layer(path: str, places: Places, origin: Mapping[str, Any], kinds: Mapping[str, str], merge: bool) -> bool:
    """Write the layer of one shard, of the rows that were handed to it; False if it was there already."""
    shard, _ = open_shard(path)
    writer = LayerWriter(places.root, places.name, origin, kinds)
    if writer.has(shard):
        return False
    rows: dict[int, list[int]] = {}
    tables = list(_spilled(places.spilled(path)))
    table = pa.concat_tables(tables) if tables else None
    for at, row in enumerate(table.column(0).to_pylist() if table else ()):
        rows.setdefault(row, []).append(at)
    values = {name: table[name].to_pylist() if table else [] for name in kinds}
    if merge:
        columns = {name: [_merged(values[name], ats) for ats in rows.values()] for name in kinds}
    else:
        columns = {name: [values[name][at] for (at,) in rows.values()] for name in kinds}
    writer.write(shard, [shard.key(row) for row in rows], columns)
    return True


def _spilled(file: Path) -> Iterator[pa.Table]:
    if not file.exists():
        return
    size = file.stat().st_size
    with file.open("rb") as source:
        while source.tell() < size:
            with pa.ipc.open_stream(source) as stream:
                yield stream.read_all()


def _merged(values: Sequence[Any], ats: Sequence[int]) -> list[str]:
    texts: list[str] = []
    for at in ats:
        value = values[at]
        texts += [value] if isinstance(value, str) else [text for text in value or () if text is not None]
    return texts


def merged_kinds(kinds: Mapping[str, str]) -> dict[str, str]:
    """The kinds where the texts of several rows are gathered.

    Raises:
        UserError: a column of something else.
    """
    for name, kind in kinds.items():
        if kind not in ("text", "texts"):
            raise UserError(f"--repeated list gathers texts, and '{name}' is {kind}: attach it as a layer of its own")
    assert set(kinds.values()) <= ARROW.keys()
    return dict.fromkeys(kinds, "texts")
