"""The order of samples: a pure function of (seed, position), so that the state of the data is one number.

Nothing here knows of files, workers or processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Purposes that draw: each gets streams of its own, so that none repeats another's numbers.
_SHARDS, _WINDOW, _REPLACEMENT, _SAMPLE = range(4)


def _philox(seed: int, *counters: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=counters))


def _permutation(n: int, seed: int, *counters: int) -> np.ndarray:
    """Sorting raw words, because numpy keeps those the same over its versions and ``permutation`` not."""
    return np.argsort(_philox(seed, *counters).random_raw(n), kind="stable")


def sample_generator(seed: int, position: int, attempt: int) -> np.random.Generator:
    """The draws of one sample (caption, crop, ...): the same wherever and whenever it is made."""
    return np.random.Generator(_philox(seed, _SAMPLE, position, attempt))


def batch_positions(step: int, global_batch_size: int, rank: int = 0, world: int = 1) -> range:
    """The stream positions of process ``rank`` of ``world`` at ``step``: its slice of the global batch."""
    rows = global_batch_size // world
    start = step * global_batch_size + rank * rows
    return range(start, start + rows)


class Order:
    """Position in the endless stream -> (shard, row).

    Position p lies in epoch p // n. In each epoch the shards are permuted and laid end to end, and samples
    are permuted inside windows of ``window`` of them. O(shards + window) memory; a jump costs one new window.
    """

    def __init__(self, samples_per_shard: Sequence[int], seed: int, window: int) -> None:
        self.num_samples = sum(samples_per_shard)
        assert self.num_samples > 0
        assert window > 0
        self.seed = seed
        self.window = window
        self._lengths = np.asarray(samples_per_shard, dtype=np.int64)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._windows: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def sample(self, position: int) -> tuple[int, int]:
        """(index of the shard, row in it) of stream position ``position``."""
        epoch, place = divmod(position, self.num_samples)
        number, index = divmod(place, self.window)
        if (epoch, number) not in self._windows:
            _make_room(self._windows)
            self._windows[epoch, number] = self._shuffled_window(epoch, number)
        shards, rows = self._windows[epoch, number]
        return int(shards[index]), int(rows[index])

    def replacement(self, position: int, attempt: int) -> int:
        """Another position of the same epoch, for a sample that cannot be used; ``attempt`` counts from 1."""
        epoch, place = divmod(position, self.num_samples)
        if self.num_samples == 1:
            return position
        draw = np.random.Generator(_philox(self.seed, _REPLACEMENT, position, attempt)).random()
        other = int(draw * (self.num_samples - 1))
        return epoch * self.num_samples + other + (other >= place)

    def _shuffled_window(self, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in self._epochs:
            _make_room(self._epochs)
            shards = _permutation(len(self._lengths), self.seed, _SHARDS, epoch)
            self._epochs[epoch] = shards, np.cumsum(self._lengths[shards])
        shards, ends = self._epochs[epoch]
        start = number * self.window
        count = min(self.window, self.num_samples - start)
        places = start + _permutation(count, self.seed, _WINDOW, epoch, number)
        slots = np.searchsorted(ends, places, side="right")
        return shards[slots], places - (ends[slots] - self._lengths[shards[slots]])


def _make_room(cache: dict) -> None:
    """Keep the last few: a batch may straddle two windows, and a replacement may look into a third."""
    if len(cache) >= 4:
        del cache[next(iter(cache))]
