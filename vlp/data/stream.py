"""The order of samples: a pure function of (seed, position), so that the state of the data is one number.

Nothing here knows of files, workers or processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np

VERSION = 1  # of the orders below: a run that was saved under another one cannot go on where it was

# Purposes that draw: each gets streams of its own, so that none repeats another's numbers.
_SHARDS, _WINDOW, _REPLACEMENT, _SAMPLE, _RUNS, _BLOCK = range(6)


def _philox(seed: int, *counters: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=counters))


def _permutation(n: int, seed: int, *counters: int) -> np.ndarray:
    """Sorting raw words, because numpy keeps those the same over its versions and ``permutation`` not."""
    return np.argsort(_philox(seed, *counters).random_raw(n), kind="stable")


def sample_generator(seed: int, position: int, attempt: int) -> np.random.Generator:
    """The draws of one sample (caption, crop, ...): the same wherever and whenever it is made."""
    return np.random.Generator(_philox(seed, _SAMPLE, position, attempt))


def batch_positions(step: int, global_batch_size: int, rank: int = 0, world: int = 1) -> range:
    """The stream positions of process ``rank`` of ``world`` at ``step``: every ``world``-th of the global batch.

    Strided, because neighbouring positions lie in different streams of the order (see `Order`): where the number of
    processes divides that of the streams, each reads its own shards, but for those at the cuts.
    """
    start = step * global_batch_size
    return range(start + rank, start + global_batch_size, world)


class SampleOrder(Protocol):
    """Position in an endless stream -> (index of the shard, row in it).

    ``shards_in_use`` is about how many shards a stretch of neighbouring positions lies in.
    """

    num_samples: int
    shards_in_use: int

    def sample(self, position: int, attempt: int = 0) -> tuple[int, int]:
        """``attempt`` > 0 gives another sample in its place, for one that cannot be used."""


class Order:
    """Every sample once an epoch: position p lies in epoch p // n, and each epoch has its own permutation.

    The shards are permuted and laid end to end on a line of n samples, which is cut into S stretches, the streams;
    place k of the epoch comes from stream k mod S, so that a batch mixes S places of the data set. In each
    stream samples are permuted inside windows of its share of ``window``. Data of a few windows has fewer than
    ``streams``. O(shards + window) memory; a jump costs a new window of each stream.
    """

    def __init__(self, samples_per_shard: Sequence[int], seed: int, window: int, streams: int = 1) -> None:
        self.num_samples = int(sum(samples_per_shard))
        assert self.num_samples > 0
        assert window > 0
        assert streams > 0
        self.seed = seed
        self.streams = max(1, min(streams, self.num_samples // window, window))
        self.window = window // self.streams
        self._lengths = np.asarray(samples_per_shard, dtype=np.int64)
        of_a_stream = math.ceil(2 * self.window * len(self._lengths) / self.num_samples) + 1
        self.shards_in_use = min(len(self._lengths), self.streams * of_a_stream)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._windows: dict[tuple[int, int, int], tuple[np.ndarray, np.ndarray]] = {}

    def sample(self, position: int, attempt: int = 0) -> tuple[int, int]:
        epoch, place = divmod(position, self.num_samples)
        if attempt and self.num_samples > 1:
            draw = np.random.Generator(_philox(self.seed, _REPLACEMENT, position, attempt)).random()
            other = int(draw * (self.num_samples - 1))
            place = other + (other >= place)
        index, stream = divmod(place, self.streams)
        number, index = divmod(index, self.window)
        where = (epoch, stream, number)
        if where not in self._windows:
            # Of each stream the window in use and the next one, as a batch may straddle them.
            _make_room(self._windows, 2 * self.streams + 2)
            self._windows[where] = self._shuffled_window(*where)
        shards, rows = self._windows[where]
        return int(shards[index]), int(rows[index])

    def _shuffled_window(self, epoch: int, stream: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in self._epochs:
            _make_room(self._epochs, 2)
            shards = _permutation(len(self._lengths), self.seed, _SHARDS, epoch)
            self._epochs[epoch] = shards, np.cumsum(self._lengths[shards])
        shards, ends = self._epochs[epoch]
        length, longer = divmod(self.num_samples, self.streams)
        start = stream * length + min(stream, longer) + number * self.window
        count = min(self.window, length + (stream < longer) - number * self.window)
        places = start + _permutation(count, self.seed, _WINDOW, epoch, number * self.streams + stream)
        return _on_the_line(places, shards, ends, self._lengths)


class Resampled:
    """Samples with replacement, all equally likely: runs of neighbours from anywhere, permuted in windows.

    Runs, a sixteenth of a window each, because single samples from anywhere would touch all shards at a time.
    The stream has no epochs.
    """

    def __init__(self, samples_per_shard: Sequence[int], seed: int, window: int) -> None:
        self.num_samples = int(sum(samples_per_shard))
        assert self.num_samples > 0
        assert window > 0
        self.seed = seed
        self.window = window
        self.run = min(self.num_samples, math.ceil(window / 16))
        self._lengths = np.asarray(samples_per_shard, dtype=np.int64)
        of_a_run = math.ceil(self.run * len(self._lengths) / self.num_samples) + 1
        self.shards_in_use = min(len(self._lengths), 2 * math.ceil(window / self.run) * of_a_run)
        self._ends = np.cumsum(self._lengths)
        self._windows: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def sample(self, position: int, attempt: int = 0) -> tuple[int, int]:
        if attempt:
            draw = np.random.Generator(_philox(self.seed, _REPLACEMENT, position, attempt)).random()
            place = np.array([int(draw * self.num_samples)])
            shards, rows = _on_the_line(place, np.arange(len(self._lengths)), self._ends, self._lengths)
            return int(shards[0]), int(rows[0])
        number, index = divmod(position, self.window)
        if number not in self._windows:
            _make_room(self._windows, 4)
            self._windows[number] = self._drawn_window(number)
        shards, rows = self._windows[number]
        return int(shards[index]), int(rows[index])

    def _drawn_window(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        draws = np.random.Generator(_philox(self.seed, _RUNS, number)).random(math.ceil(self.window / self.run))
        starts = (draws * self.num_samples).astype(np.int64)
        places = (starts[:, None] + np.arange(self.run)).ravel() % self.num_samples
        places = places[_permutation(len(places), self.seed, _WINDOW, number)[: self.window]]
        return _on_the_line(places, np.arange(len(self._lengths)), self._ends, self._lengths)


class Mixture:
    """Several orders in exact proportions: after any whole number of blocks each is within one sample of its share.

    Inside a block the order of the sources is drawn. Each source goes through its own stream at its own pace, so that
    it starts its next epoch when it has given all its samples. ``first_shards`` number the shards over all sources.
    """

    def __init__(
        self, orders: Sequence[SampleOrder], weights: Sequence[float], first_shards: Sequence[int], seed: int
    ) -> None:
        assert len(orders) == len(weights) == len(first_shards)
        self.num_samples = sum(order.num_samples for order in orders)
        self.shards_in_use = sum(order.shards_in_use for order in orders)
        self.seed = seed
        self._orders = orders
        self._first_shards = first_shards
        exact = [Fraction(str(weight)) for weight in weights]  # as typed, not as rounded to binary
        self._ends = np.cumsum(np.array([weight / sum(exact) for weight in exact], dtype=object))
        # Long enough that every source has its turn in each block.
        self.block = max(1000, math.ceil(2 * sum(exact) / min(exact)))
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def sample(self, position: int, attempt: int = 0) -> tuple[int, int]:
        source, place = self.source(position)
        shard, row = self._orders[source].sample(place, attempt)
        return self._first_shards[source] + shard, row

    def source(self, position: int) -> tuple[int, int]:
        """(which source, position in its stream) of ``position``."""
        number, index = divmod(position, self.block)
        if number not in self._blocks:
            _make_room(self._blocks, 4)
            self._blocks[number] = self.drawn_block(number)
        sources, places = self._blocks[number]
        return int(sources[index]), int(places[index])

    def drawn_block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The sources of a block, and the positions in their streams."""
        before, after = self._given(number * self.block), self._given((number + 1) * self.block)
        sources = np.repeat(np.arange(len(self._orders)), after - before)
        places = np.concatenate([np.arange(start, stop) for start, stop in zip(before, after, strict=True)])
        shuffled = sources[_permutation(self.block, self.seed, _BLOCK, number)]
        # Each source's positions in their order, wherever its turns fell.
        in_order = np.empty(self.block, dtype=np.int64)
        in_order[np.argsort(shuffled, kind="stable")] = places
        return shuffled, in_order

    def _given(self, position: int) -> np.ndarray:
        """How many samples each source has given before ``position``; they add up to it."""
        ends = [math.floor(position * end + Fraction(1, 2)) for end in self._ends]
        return np.diff([0, *ends]).astype(np.int64)


def _on_the_line(
    places: np.ndarray, shards: np.ndarray, ends: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(shard, row) of places on the line on which ``shards`` are laid, whose samples end at ``ends``."""
    slots = np.searchsorted(ends, places, side="right")
    return shards[slots], places - (ends[slots] - lengths[shards[slots]])


def _make_room(cache: dict, most: int) -> None:
    if len(cache) >= most:
        del cache[next(iter(cache))]
