"""What neighbours of a corpus cost: bytes by arithmetic, hours by what this machine was seen to do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_tools._neighbours.embed import embed_first
from data_tools._neighbours.index import KINDS, POINTS_A_LIST, IndexOptions, factory, num_lists, untrained
from data_tools._neighbours.job import Job
from data_tools._neighbours.searchers import faiss
from vlp.data.index import open_shard

MEASURED_PICTURES = 128
_FACTS = 88  # bytes a picture beside the features, with one caption and a key of nine characters; twice, see `corpus`
_ID = 8  # bytes a picture in an index of faiss
_CENTROID_ROUNDS = 10  # faiss's k-means for the lists


@dataclass(frozen=True)
class Rates:
    """What one process does in a second."""

    pictures: float
    """read, decoded and embedded"""
    flops: float
    """of the inner products of large blocks"""
    codes: float
    """of the index, compared with a query"""
    candidates: float
    """compared exactly, their features being in memory"""


@dataclass(frozen=True)
class Plan:
    """Bytes and core-hours of one corpus. Hours of reading from disks are not among them."""

    num_pictures: int
    dim: int
    options: IndexOptions
    lists: int
    code_bytes: int
    candidates: int
    hours: dict[str, float]
    """pass -> hours of one process"""

    @property
    def features_bytes(self) -> int:
        return 2 * self.dim * self.num_pictures

    @property
    def facts_bytes(self) -> int:
        return 2 * _FACTS * self.num_pictures

    @property
    def index_bytes(self) -> int:
        """One file, mapped by all processes of a machine."""
        return (self.code_bytes + _ID) * self.num_pictures + self.centroid_bytes if self.lists else 0

    @property
    def centroid_bytes(self) -> int:
        """In each process that searches."""
        return 4 * self.dim * self.lists

    @property
    def training_bytes(self) -> int:
        return POINTS_A_LIST * self.centroid_bytes

    @property
    def building_bytes(self) -> int:
        """The largest that one process holds: while the lists grow they may have twice the room they need."""
        return max(self.training_bytes, 2 * self.index_bytes)

    def lines(self, processes: int, num_shards: int) -> list[str]:
        """For a terminal."""
        found = [
            f"pictures  {self.num_pictures:,} in {num_shards:,} shards, {self.dim} dimensions",
            f"on disk   {_size(self.features_bytes)} of features ({2 * self.dim:,} bytes a picture), "
            f"{_size(self.facts_bytes)} of what tells duplicates and equal captions",
        ]
        if self.lists:
            whole, each = _size(self.index_bytes), _size(self.centroid_bytes)
            found += [
                f"index     {self.options.kind}: {self.lists:,} lists, {self.code_bytes + _ID} bytes a picture, "
                f"{whole}; {self.options.probes} lists are searched at first",
                f"memory    {_size(self.building_bytes)} at most while the index is made, by one process; then {whole} "
                f"that all processes share, and {each} each",
                f"reading   {self.candidates} features a picture here and there: fast if their "
                f"{_size(self.features_bytes)} fit in memory too, else the disk sets the pace",
            ]
        else:
            found.append("index     exact: all pairs are compared; memory holds a shard a process")
        hours = ", ".join(f"{name} {_spelled(one / processes)}" for name, one in self.hours.items())
        return [*found, f"time      {hours}; with {processes} {'process' if processes == 1 else 'processes'}"]


def _size(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def _spelled(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


def plan(num_pictures: int, dim: int, options: IndexOptions, number: int, rates: Rates) -> Plan:
    """The costs of ``number`` neighbours for each of so many pictures, all of which can be used."""
    seconds = {"embedding": num_pictures / rates.pictures}
    if options.kind == "exact":
        seconds["searching"] = 2.0 * num_pictures**2 * dim / rates.flops
        return Plan(num_pictures, dim, options, 0, 0, max(16, 4 * number), _hours(seconds))
    kind, lists = KINDS[options.kind], num_lists(num_pictures)
    parts = factory(options.kind, num_pictures, dim).partition("PQ")[2]
    candidates = kind.oversampling * (number + 1)
    assigning = 2.0 * lists * dim / rates.flops  # of one picture to its list, or of a query to those to search
    seconds["training"] = POINTS_A_LIST * lists * assigning * _CENTROID_ROUNDS
    seconds["indexing"] = num_pictures * assigning
    seconds["searching"] = num_pictures * (
        assigning + options.probes * num_pictures / lists / rates.codes + candidates / rates.candidates
    )
    return Plan(num_pictures, dim, options, lists, int(parts or dim), candidates, _hours(seconds))


def _hours(seconds: dict[str, float]) -> dict[str, float]:
    return {name: one / 3600 for name, one in seconds.items()}


def num_samples(path: str) -> int:
    """Samples of a shard, by its index or the headers of its tar."""
    return len(open_shard(path)[0])


def measure(paths: Sequence[str], job: Job, kind: str) -> Rates:
    """What this machine does, with one process: some seconds of work on pictures of the first shard that has some."""
    shard = next((shard for shard in (open_shard(path)[0] for path in paths) if len(shard)), None)
    assert shard is not None, "counted before"
    number = min(len(shard), MEASURED_PICTURES)
    embed_first(shard, 1, job)  # loads the model
    pictures = number / _seconds(lambda: embed_first(shard, number, job))
    return Rates(pictures, *_search_rates(job.dim, kind))


def _search_rates(dim: int, kind: str) -> tuple[float, float, float]:
    """(flops, codes, candidates) of `Rates`, on random vectors."""
    random = np.random.default_rng(0)
    points = random.standard_normal((10_240, dim), dtype=np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    faiss.omp_set_num_threads(1)
    exact = _seconds(lambda: faiss.knn(points[:1024], points, 16, metric=faiss.METRIC_INNER_PRODUCT))
    stored, places = points.astype(np.float16), random.integers(0, len(points), 4096)
    compared = _seconds(lambda: np.einsum("d,nd->n", points[0], stored[places].astype(np.float32)))
    codes = 1.0
    if kind != "exact":
        index = untrained(kind, len(points), dim)
        index.train(points)
        index.add(points)
        index.nprobe = index.nlist
        codes = 64 * len(points) / _seconds(lambda: index.search(points[:64], 64))
    return 2.0 * 1024 * len(points) * dim / exact, codes, len(places) / compared


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
