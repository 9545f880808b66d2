"""All shards as one table of rows: what is asked of any picture while neighbours are chosen, without reading all."""

from __future__ import annotations

import json
import mmap
import os
import resource
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_tools._neighbours import facts
from data_tools._neighbours.facts import Captions, Embedded, Pictures
from data_tools._neighbours.job import Job
from vlp.data.digest import hash64
from vlp.data.shards import stem
from vlp.types import UserError

_SPARE_FILES = 256
_MOST_MAPS = 32_768  # of 65,530 that Linux allows a process


def join(paths: Sequence[str], embedded: Sequence[Embedded], job: Job) -> Path:
    """The folder of the table of all shards, made unless it is there; those of other shards and models go.

    Raises:
        UserError: no sample can be used, or files of pass one are gone.
    """
    opened.cache_clear()  # a run before, in this process, may have mapped files that were written anew since
    signatures = [f"{stem(path)} {one.signature}" for path, one in zip(paths, embedded, strict=True)]
    told = "\0".join([job.weights, *job.captions, *signatures])
    folder = job.index(paths[0]) / f"{hash64(told.encode('utf-8', 'surrogateescape')):016x}"
    if not folder.is_dir():
        for old in folder.parent.glob("*"):
            shutil.rmtree(old)
        partial = folder.with_name(f"{folder.name}.partial")
        partial.mkdir(parents=True)
        _write(partial, paths, embedded, job)
        os.replace(partial, folder)
    return folder


def _write(folder: Path, paths: Sequence[str], embedded: Sequence[Embedded], job: Job) -> None:
    """A shard at a time, into files that are mapped: memory holds one shard."""
    rows, captions, width = sum(one.num_samples for one in embedded), 0, 1
    for pictures, _, caption in _facts(paths, job):
        captions, width = captions + len(caption), max(width, pictures.keys.dtype.itemsize)

    def array(name: str, dtype: str, *shape: int) -> np.ndarray:
        return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)

    picture, keys, look = array("picture", "u8", rows), array("keys", f"S{width}", rows), array("look", "u1", rows, 48)
    all_captions, first_caption = array("caption", "u8", captions), array("first_caption", "i8", rows + 1)
    row = at = 0
    for pictures, number, caption in _facts(paths, job):
        own = slice(row, row + len(number))
        picture[own], look[own], keys[own] = pictures.picture, pictures.look, pictures.keys
        all_captions[at : at + len(caption)] = caption
        first_caption[row + 1 : own.stop + 1] = at + np.cumsum(number)
        row, at = own.stop, at + len(caption)
    table = {
        "stems": [stem(path) for path in paths],
        "features": [str(job.features(path).absolute()) for path in paths],
        "first_row": np.cumsum([0, *(one.num_samples for one in embedded)]).tolist(),
        "usable": sum(one.num_usable for one in embedded),
    }
    (folder / "shards.json").write_text(json.dumps(table), encoding="utf-8")


def _facts(paths: Sequence[str], job: Job) -> Iterator[tuple[Pictures, np.ndarray, np.ndarray]]:
    """(pictures, number of captions of each sample, their hashes): none where the picture cannot be used."""
    for path in paths:
        pictures, captions = facts.load(job.pictures(path), Pictures), facts.load(job.captions_of(path), Captions)
        if pictures is None or captions is None:
            raise UserError(f"{job.pictures(path)} has gone since it was written: give the same command again")
        number = np.diff(captions.first_caption)
        good = pictures.defect == 0
        yield pictures, np.where(good, number, 0), captions.caption[np.repeat(good, number)]


class Corpus:
    """The table that `join` wrote, mapped into memory: the processes of a machine share what they read of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        table = json.loads((folder / "shards.json").read_text(encoding="utf-8"))
        self.stems: list[str] = table["stems"]
        self.num_usable: int = table["usable"]
        self._features: list[str] = table["features"]
        self._first = np.array(table["first_row"])
        self._number = {name: number for number, name in enumerate(self.stems)}
        names = ("picture", "look", "caption", "first_caption", "keys")
        self.picture, self.look, self._caption, self._first_caption, self._keys = (
            _mapped(folder / f"{name}.npy") for name in names
        )
        self._open: OrderedDict[int, np.ndarray] = OrderedDict()
        self._most_open = _room_for_files()

    def __len__(self) -> int:
        return int(self._first[-1])

    def rows(self, shard_path: str) -> np.ndarray:
        """The rows of a shard, in its order."""
        number = self._number[stem(shard_path)]
        return np.arange(self._first[number], self._first[number + 1])

    def names(self, rows: np.ndarray) -> list[str]:
        """``STEM/KEY`` of each row."""
        keys = (key.decode("utf-8", "surrogateescape") for key in self._keys[rows].tolist())
        return [f"{self.stems[number]}/{key}" for number, key in zip(self._shards(rows).tolist(), keys, strict=True)]

    def place(self, row: int) -> tuple[int, int]:
        """(number of the shard, row in it)."""
        number = int(self._shards(np.array([row]))[0])
        return number, row - int(self._first[number])

    def num_captions(self, rows: np.ndarray) -> np.ndarray:
        """Of each row; none where its sample cannot be used."""
        return np.asarray(self._first_caption[rows + 1] - self._first_caption[rows])

    def first_captions(self, rows: np.ndarray) -> np.ndarray:
        """The hash of the first caption of each row; all must have one."""
        return np.asarray(self._caption[self._first_caption[rows]])

    def captions(self, row: int) -> set[int]:
        """The hashes of all captions of a row."""
        first, end = self._first_caption[row : row + 2].tolist()
        return set(self._caption[first:end].tolist())

    def features(self, rows: np.ndarray) -> np.ndarray:
        """fp32 [len(rows), D]"""
        shards = self._shards(rows)
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        found = np.empty((len(rows), self._shard(0).shape[1]), dtype=np.float32)
        for number, own in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            found[own] = self._shard(number)[rows[own] - self._first[number]]
        return found

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, fp32 features) of the samples that can be used, a shard at a time, read from start to end."""
        for number, path in enumerate(self._features):
            rows = np.arange(self._first[number], self._first[number + 1])
            usable = self.num_captions(rows) > 0
            if usable.any():
                yield rows[usable], np.load(path)[usable].astype(np.float32)

    def _shards(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._first, rows, side="right") - 1

    def _shard(self, number: int) -> np.ndarray:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= self._most_open:
            self._open.popitem(last=False)
        return self._open.setdefault(number, _mapped(Path(self._features[number])))


@lru_cache(maxsize=1)
def opened(folder: Path) -> Corpus:
    """Kept for the next shards of a process."""
    return Corpus(folder)


def _mapped(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r")
    # Rows are asked for here and there: what lies around them need not be read from the disk.
    array._mmap.madvise(mmap.MADV_RANDOM)
    return array


def _room_for_files() -> int:
    """How many shards may be open at once: each holds a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_MAPS if hard == resource.RLIM_INFINITY else min(hard, _MOST_MAPS)
    if soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(1, min(soft, _MOST_MAPS) - _SPARE_FILES)
