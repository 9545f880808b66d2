"""The shards of a run: which there are, how many samples each gives, and how they are mixed."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from vlp import distributed
from vlp.data.cache import CacheOptions
from vlp.data.counts import known_counts
from vlp.data.expression import LayerFilter
from vlp.data.index import load, scan
from vlp.data.samples import BadSample
from vlp.data.shards import Shard, find_shards, stem
from vlp.data.store import Store, is_remote
from vlp.data.stream import VERSION, Mixture, Order, Resampled, SampleOrder
from vlp.types import Skipped, UserError

_THREADS = 8  # a scan is one small read after another, so threads hide the latency of network file systems
_MANY = 200  # shards that take a while to look at
_SPARE_TABLES = 8  # for replacements of bad samples, which come from anywhere
_MEASURED_SHARDS = 16  # whose lengths tell that the data is the same
_SMALLEST_SHARE = 1e-5  # a block of a mixture is long enough for two samples of the rarest source
_LOST_SAMPLES = frozenset({"missing shard", "unreadable shard", "not a tar", "truncated shard"})


class Source(BaseModel, frozen=True, extra="forbid"):
    """One of several data sets that a run draws from."""

    shards: str | list[str] = Field(description="as `data.train`: a tar, a directory, a glob, a brace pattern")
    weight: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="share of the batches, relative to the other sources"
    )
    replacement: bool = Field(default=False, description="draw with replacement, instead of every sample once a pass")
    index: str | None = Field(default=None, description="folder of the index; by default `index` beside the shards")
    layers: str | None = Field(default=None, description="folder of the layers; by default `layers` beside the shards")


@dataclass
class _Entry:
    """What is known of one shard: ``count`` samples, of which ``rows`` pass the filter (None: all)."""

    path: str
    source: Source
    count: int = 0
    table: Shard | None = None
    rows: np.ndarray | None = None
    origin: str = "scan"

    @property
    def used(self) -> int:
        return self.count if self.rows is None else len(self.rows)


@dataclass
class Sources:
    """All shards of a run. Cheap to send to worker processes, which open the tables of indexed shards when needed."""

    entries: list[_Entry]
    store: Store
    defects: list[Skipped]
    notes: list[str]
    _sizes: list[int] = field(default_factory=list)
    kept_shards: int = _SPARE_TABLES
    """Tables of indexed shards that each process keeps: some 600 KB for ten thousand samples."""
    _tables: OrderedDict[int, Shard] = field(default_factory=OrderedDict)
    _lost: dict[int, list[Skipped]] = field(default_factory=dict)  # what opened shards lack of their counts

    @property
    def num_samples(self) -> int:
        return sum(entry.used for entry in self.entries)

    def digest(self) -> dict[str, Any]:
        """Of all that the order depends on, by what it is: where one differs, a run cannot go on where it was.

        Folders do not count, so that shards can be moved. ``bytes`` are the lengths of some shards from all over, by
        name: they tell other data that has the same names and counts.
        """
        mixed = [(self.entries[first].source, size) for first, size in zip(self._firsts(), self._sizes, strict=True)]
        weights = [(source.weight, source.replacement, size) for source, size in mixed if source.weight]
        rows = [b"" if entry.rows is None else entry.rows.tobytes() for entry in self.entries]
        some = self.entries[:: math.ceil(len(self.entries) / _MEASURED_SHARDS)]
        with ThreadPoolExecutor(_THREADS) as pool:
            lengths = zip(some, pool.map(self._length, some), strict=True)
        return {
            "version": VERSION,
            "layers": [source.layers for source, _ in mixed],
            "names": _hash(repr([stem(entry.path) for entry in self.entries]).encode()),
            "counts": _hash(repr([entry.count for entry in self.entries]).encode()),
            "weights": _hash(repr(weights or mixed[0][0].replacement).encode()),
            "filter": _hash(b"".join(rows)),
            "bytes": {stem(entry.path): length for entry, length in lengths if length is not None},
        }

    def room(self, cache: CacheOptions) -> list[str]:
        """A warning if the copies of remote shards that are in use at a time do not fit the cache."""
        copied = [e for e in self.entries if is_remote(e.path) and (cache.folder or e.origin != "index")]
        lengths = [length for entry in copied[:_MEASURED_SHARDS] if (length := self._length(entry))]
        wanted = median(lengths or [0]) * min(self.kept_shards, len(copied)) / 1e9
        if wanted <= cache.gigabytes:
            return []
        return [
            f"data.cache.gigabytes: a batch mixes samples of {min(self.kept_shards, len(copied))} shards of "
            f"{wanted:.3g} GB together, more than the {cache.gigabytes:g} GB for their copies, so they are fetched "
            "again and again: raise it, lower data.shuffle_streams, or index the shards (vlp data index)"
        ]

    def _length(self, entry: _Entry) -> int | None:
        try:
            return None if entry.path.startswith("pipe:") else self.store.length(entry.path)
        except UserError:  # gone: its samples are counted when they come
            return None

    def order(self, seed: int, window: int, streams: int) -> SampleOrder:
        """Every sample once an epoch, or a mixture where the sources have weights."""
        order = self._order(seed, window, streams)
        self.kept_shards = order.shards_in_use + _SPARE_TABLES
        return order

    def keep_more_tables(self, number: int) -> None:
        """Keep ``number`` tables more, for samples that are read out of order."""
        self.kept_shards = min(self.kept_shards + number, len(self.entries) + _SPARE_TABLES)

    def _order(self, seed: int, window: int, streams: int) -> SampleOrder:
        groups = [self.entries[start : start + size] for start, size in zip(self._firsts(), self._sizes, strict=True)]
        weights = [group[0].source.weight for group in groups]
        if len(groups) == 1 or weights[0] is None:
            return _order_of(self.entries, seed, window, streams)
        orders = [
            _order_of(group, distributed.seed_of(seed, "source", number), window, streams)
            for number, group in enumerate(groups)
        ]
        return Mixture(orders, [weight for weight in weights if weight is not None], self._firsts(), seed)

    def _firsts(self) -> list[int]:
        return np.cumsum([0, *self._sizes[:-1]]).tolist()

    def shard(self, number: int) -> Shard:
        """The table of a shard, opened if need be."""
        entry = self.entries[number]
        if entry.table is not None:
            return entry.table
        if number not in self._tables:
            if len(self._tables) >= self.kept_shards:
                self._tables.popitem(last=False)
            self._tables[number] = self._open(number)
        self._tables.move_to_end(number)
        return self._tables[number]

    def _open(self, number: int) -> Shard:
        entry = self.entries[number]
        table, defects = _open_shard(entry, self.store, True)
        if len(table) > entry.count:
            raise UserError(
                f"{entry.path} holds {len(table):,} samples, but {entry.origin} counts {entry.count:,}, so some would "
                "never be seen: correct that file, or run vlp data index"
            )
        defects = sorted(defects, key=lambda bad: bad.kind in _LOST_SAMPLES)  # what is lost may be any number
        self._lost[number] = [bad for bad in defects for _ in range(bad.samples)]
        return table

    def row(self, number: int, row: int) -> tuple[Shard, int]:
        """The shard and the row in it of the ``row``-th sample that is used of shard ``number``.

        Raises:
            BadSample: the shard holds fewer samples than its count says.
        """
        entry = self.entries[number]
        shard = self.shard(number)
        if entry.rows is not None:
            row = int(entry.rows[row])
        if row >= len(shard):
            lost = self._missing(number, row - len(shard))
            raise BadSample(lost.kind, f"{len(shard)} of {entry.count} are there")
        return shard, row

    def _missing(self, number: int, place: int) -> Skipped:
        """Why the ``place``-th of the samples that a shard lacks is not there."""
        lost = self._lost.get(number) or [Skipped("missing sample", self.entries[number].path)]
        return lost[min(place, len(lost) - 1)]

    def where(self, number: int, row: int) -> str:
        """How logs name a sample."""
        entry, shard = self.entries[number], self.shard(number)
        row = row if entry.rows is None else int(entry.rows[row])
        if row < len(shard):
            return shard.where(row)
        lost = self._missing(number, row - len(shard)).where
        return lost if lost.startswith(f"{entry.path}: ") else f"{entry.path}: sample {row}"


def _order_of(entries: Sequence[_Entry], seed: int, window: int, streams: int) -> SampleOrder:
    """The order of what is drawn as one data set."""
    counts = [entry.used for entry in entries]
    if entries[0].source.replacement:
        return Resampled(counts, seed, window)
    return Order(counts, seed, window, streams)


def open_sources(sources: Sequence[Source], expression: str | None, store: Store) -> Sources:
    """Find all shards, count their samples and apply the filter.

    Counts come from an index or the files of other tools; without any the tars are scanned, shared by the ranks.

    Raises:
        UserError: shards missing or unusable, weights for some sources only, a filter that keeps nothing.
    """
    _check_weights(sources)
    entries, sizes = [], []
    for source in sources:
        paths = find_shards(source.shards, store)
        known = known_counts(paths, source.index, store)
        entries += [_Entry(path, source, *_known(known, path)) for path in paths]
        sizes.append(len(paths))
    _check_distinct([entry.path for entry in entries])
    notes = _notes(entries, expression)
    filters = _filters(expression, entries, store)
    # What is called empty is soon looked at, if it is.
    found = _look([e for e in entries if expression is not None or not e.count], filters, store)
    defects: list[Skipped] = []
    for entry in entries:
        if entry.path in found:
            seen = found[entry.path]
            entry.count, entry.table, entry.rows = seen.count, seen.table, seen.rows
            defects += seen.defects
    if expression is not None:
        notes.append(_kept(entries, sum(seen.lacking for seen in found.values())))
    defects = _weighed(defects, entries)
    used, sizes = _used(entries, sizes)
    opened = Sources(used, store, defects, notes, sizes)
    if not used:
        example = f" ({defects[0].kind}: {defects[0].where})" if defects else ""
        raise UserError(
            f"data.train: no usable sample in {len(entries)} shards{example}: each sample needs KEY.jpg "
            "(or .png, .webp ...) and KEY.txt in a tar"
        )
    return opened


def _used(entries: Sequence[_Entry], sizes: Sequence[int]) -> tuple[list[_Entry], list[int]]:
    """The shards that give samples, and how many there are of each source."""
    ends = np.cumsum([0, *sizes]).tolist()
    groups = [[e for e in entries[start:stop] if e.used] for start, stop in pairwise(ends)]
    weighted = entries[0].source.weight is not None
    if weighted and not all(groups):
        empty = entries[ends[next(i for i, group in enumerate(groups) if not group)]].source
        raise UserError(f"data.train: the source {empty.shards} has no usable sample: mend or remove it")
    return [entry for group in groups for entry in group], [len(group) for group in groups if group]


def _known(known: dict[str, tuple[int, str]], path: str) -> tuple[int, None, None, str]:
    count, origin = known.get(path, (0, "scan"))
    return count, None, None, origin


def _check_weights(sources: Sequence[Source]) -> None:
    weighted = [source.weight is not None for source in sources]
    if any(weighted) and not all(weighted):
        raise UserError("data.train: some sources have a weight and some have none: give one to each, or to none")
    if len(sources) == 1 and weighted[0]:
        raise UserError("data.train: the weight of the only source would have no effect: remove it, or add a source")
    weights = [source.weight for source in sources if source.weight is not None]
    if weights and min(weights) < _SMALLEST_SHARE * sum(weights):
        raise UserError(
            f"data.train: the weight {min(weights):g} is less than a {round(1 / _SMALLEST_SHARE):,}th of all: "
            "raise it, or remove its source"
        )
    if len(sources) > 1 and not weighted[0] and any(source.replacement for source in sources):
        raise UserError("data.train: replacement among several sources needs a weight for each of them")


def _check_distinct(paths: Sequence[str]) -> None:
    if len(set(paths)) < len(paths):
        seen: set[str] = set()
        twice = next(path for path in paths if path in seen or seen.add(path))  # type: ignore[func-returns-value]
        raise UserError(f"data.train names {twice} twice: its samples would count double, remove one")


def _notes(entries: Sequence[_Entry], expression: str | None) -> list[str]:
    """What people should know of how the samples were counted; said at once if it takes a while."""
    scanned = sum(entry.origin == "scan" for entry in entries)
    unindexed = sum(entry.origin != "index" for entry in entries)
    notes = []
    if scanned:
        notes.append(
            f"{scanned:,} of {len(entries):,} shards are scanned now, as nothing says what they hold; "
            "`vlp data index` would make starting and resuming instant"
        )
    elif unindexed:
        origins = ", ".join(sorted({entry.origin for entry in entries} - {"index"}))
        notes.append(
            f"{unindexed:,} of {len(entries):,} shards have no index (counted by {origins}) and are scanned when they "
            "come; `vlp data index` would make resuming instant"
        )
    fetched = sum(is_remote(entry.path) and entry.origin not in ("index", "scan") for entry in entries)
    if expression is not None and fetched:
        notes.append(
            f"data.filter: {fetched:,} remote shards without an index are fetched whole to know their keys; "
            "`vlp data index` would spare that"
        )
        distributed.say(notes[-1])
    if scanned >= _MANY:
        distributed.say(notes[0])
    if expression is not None and len(entries) >= _MANY:
        distributed.say(f"data.filter: reading the layers of {len(entries):,} shards")
    return notes


def _filters(expression: str | None, entries: Sequence[_Entry], store: Store) -> dict[str | None, LayerFilter]:
    """``data.filter`` for each folder of layers."""
    if expression is None:
        return {}
    roots = dict.fromkeys(entry.source.layers for entry in entries)
    paths = {root: [entry.path for entry in entries if entry.source.layers == root] for root in roots}
    return {root: LayerFilter(expression, paths[root], root, store) for root in roots}


def _open_shard(entry: _Entry, store: Store, keep_copy: bool) -> tuple[Shard, list[Skipped]]:
    """As `index.open_shard`; ``keep_copy``: a remote shard without an index is fetched once for all that is to come."""
    if (opened := load(entry.path, entry.source.index, store)) is None:
        if keep_copy:
            store.keep_copy(entry.path)
        opened = scan(entry.path, store)
    return opened


@dataclass(frozen=True)
class _Seen:
    """What the start has to know of a shard that it looked at."""

    count: int
    table: Shard | None
    rows: np.ndarray | None
    lacking: int
    defects: list[Skipped]


def _look(entries: Sequence[_Entry], filters: dict[str | None, LayerFilter], store: Store) -> dict[str, _Seen]:
    """Open shards, each by one of the ranks, and apply the filter. Scanned tables are kept: others open quickly."""

    def seen(entry: _Entry) -> _Seen:
        keeps_table = entry.origin == "scan"
        # With its table kept a remote shard is read in parts from now on, so that it need not lie here as a whole.
        table, defects = _open_shard(entry, store, not keeps_table or entry.path.startswith("pipe:"))
        rows, lacking = None, 0
        if filters:
            mask, lacking, unusable = filters[entry.source.layers].mask(table)
            if unusable:
                raise UserError(
                    f"data.filter: {unusable[0].kind} {unusable[0].where}: write it again (vlp data layers)"
                )
            rows = np.flatnonzero(mask).astype(np.int32)
        return _Seen(len(table), table if keeps_table else None, rows, lacking, defects)

    mine = entries[distributed.rank() :: distributed.world_size()]
    found, sentence = {}, ""
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            found = dict(zip((entry.path for entry in mine), pool.map(seen, mine), strict=True))
    except UserError as error:
        sentence = str(error)
    # Tables of local shards stay with the rank that made them: others make them when they need them.
    told = {path: one if is_remote(path) else replace(one, table=None) for path, one in found.items()}
    parts = distributed.from_all_ranks((told, sentence))
    if sentences := [sentence for _, sentence in parts if sentence]:
        raise UserError(sentences[0])
    everything = {path: one for part, _ in parts for path, one in part.items()} | found
    # Tables of other ranks come with a store of theirs, whose copies lie in a folder that they remove.
    own = {p: replace(one, table=replace(one.table, store=store)) for p, one in everything.items() if one.table}
    return {**everything, **own}


def _kept(entries: Sequence[_Entry], lacking: int) -> str:
    """How many samples pass the filter."""
    kept, total = sum(entry.used for entry in entries), sum(entry.count for entry in entries)
    note = f"data.filter keeps {kept:,} of {total:,} samples"
    if lacking:
        note += f"; {lacking:,} are left out because a layer lacks them"
    if not kept:
        raise UserError(f"{note}: check the expression and the layers (vlp data layers)")
    return note


def _weighed(defects: Sequence[Skipped], entries: Sequence[_Entry]) -> list[Skipped]:
    """A lost shard counts as the samples that the others hold."""
    whole = {entry.path: entry.count for entry in entries}
    typical = int(median([count for count in whole.values() if count] or [1]))
    return [
        replace(bad, samples=max(1, typical - whole.get(bad.where, 0))) if bad.kind in _LOST_SAMPLES else bad
        for bad in defects
    ]


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
