"""Finding tar shards and indexing them, so that any process reads any sample at once.

A shard is a plain WebDataset tar: the members ``KEY.EXTENSION`` of one sample share KEY (all before the first
dot of the file name, folders included).
"""

from __future__ import annotations

import glob
import os
import tarfile
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import braceexpand
import numpy as np

from vlp.data.samples import IMAGE_EXTENSIONS, BadSample
from vlp.types import Skipped, UserError

_SCAN_THREADS = 8  # a scan is one small read after another, so threads hide the latency of network file systems
_BLOCK = 512


@dataclass(frozen=True, eq=False)
class Shard:
    """The samples of one tar that hold a picture, and where their members lie.

    Members ``first[row]`` to ``first[row + 1]`` belong to sample ``row``; ``extension`` is
    an index into ``extensions``.
    Arrays, not objects: a million samples take some 60 MB and are shared by the workers.
    """

    path: str
    keys: np.ndarray
    extensions: tuple[str, ...]
    first: np.ndarray
    extension: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        return self.keys[row].decode("utf-8", "surrogateescape")

    def where(self, row: int) -> str:
        """How logs name a sample."""
        return f"{self.path}: {self.key(row)}"

    def read(self, row: int, wanted: Collection[str]) -> dict[str, bytes]:
        """The members of sample ``row`` whose extension is ``wanted``.

        Raises:
            BadSample: "unreadable shard", if the file has gone or has become shorter since it was indexed.
        """
        members = {}
        for member in range(self.first[row], self.first[row + 1]):
            extension = self.extensions[self.extension[member]]
            if extension in wanted:
                members[extension] = _read_at(self.path, int(self.offset[member]), int(self.size[member]))
        return members


def find_shards(sources: str | Sequence[str]) -> list[str]:
    """The tar files that ``sources`` name, in order.

    A source is a tar, a directory (its ``*.tar``, sorted), a glob or a brace pattern (``{000..009}.tar``).

    Raises:
        UserError: something named is missing, is no tar, or is named twice.
    """
    sources = [sources] if isinstance(sources, str) else list(sources)
    if not all(sources) or not sources:
        raise UserError("data.train is empty: name a tar, a directory of tars or a pattern")
    paths = [path for source in sources for path in _expand(source)]
    twice = {path for path in paths if paths.count(path) > 1} if len(set(paths)) < len(paths) else set()
    if twice:
        raise UserError(f"data.train names {min(twice)} twice: its samples would count double, remove one")
    return paths


def _expand(source: str) -> Iterator[str]:
    if "://" in source or source.startswith("pipe:"):
        raise UserError(f"data.train: {source} is not a local path: download the shards and name their directory")
    has_braces = "{" in source and not os.path.exists(source)
    try:
        named = list(braceexpand.braceexpand(source)) if has_braces else [source]
    except ValueError as error:
        raise UserError(f"data.train: the braces of {source} do not match: write {{00000..00099}}.tar") from error
    for name in named:
        name = os.path.expanduser(name)
        if os.path.isdir(name):
            found = sorted(str(path) for path in Path(name).glob("*.tar"))
            if not found:
                raise UserError(f"data.train: no .tar file in the directory {name}: name the directory of the shards")
            yield from found
        elif os.path.exists(name):
            yield _with_tar_extension(name)
        elif glob.has_magic(name):
            found = sorted(glob.glob(name, recursive=True))
            if not found:
                raise UserError(f"data.train: no file matches {name}: check the pattern")
            yield from map(_with_tar_extension, found)
        else:
            raise UserError(f"data.train: {name} does not exist: check the path")


def _with_tar_extension(path: str) -> str:
    if not path.endswith(".tar"):
        raise UserError(f"data.train: {path} is not a .tar file: name plain WebDataset tar shards")
    return path


def index_shards(paths: Sequence[str]) -> tuple[list[Shard], list[Skipped]]:
    """Index every shard; also what had to be left out, by kind and name.

    Kinds: "not a tar", "empty shard", "truncated shard" (its whole samples are kept), "duplicate key" (the
    first is kept), "no picture".

    Raises:
        UserError: no shard holds a usable sample.
    """
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        indexed = list(pool.map(index_shard, paths))
    shards = [shard for shard, _ in indexed if len(shard)]
    defects = [defect for _, found in indexed for defect in found]
    if not shards:
        example = f" ({defects[0].kind}: {defects[0].where})" if defects else ""
        raise UserError(
            f"data.train: no usable sample in {len(paths)} shards{example}: each sample needs KEY.jpg "
            "(or .png, .webp ...) and KEY.txt in a tar"
        )
    return shards, defects


def index_shard(path: str) -> tuple[Shard, list[Skipped]]:
    """Index one tar by its headers; the contents are not read."""
    _open.pop(path, None)  # another file may have come to this path since it was opened
    defects: list[Skipped] = []
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    last_key, cut_key, whole = "", "", True
    duplicates: set[str] = set()
    try:
        for name, offset, size, complete in _members(path):
            key, extension = _split(name)
            if not complete:
                cut_key, whole = key, False
            elif extension:
                members = samples.setdefault(key, {})
                if extension in members:
                    duplicates.add(key)
                else:
                    members[extension] = (offset, size)
                    last_key = key
    except _CutError:
        whole = False
    except (tarfile.TarError, OSError) as error:
        return _pack(path, {}), [Skipped("not a tar", f"{path} ({error})")]
    if not whole:
        defects.append(Skipped("truncated shard", path))
        # A cut between two members may have taken some of the last sample: it is whole if it has what the first has.
        first_key = next(iter(samples), "")
        if not cut_key and (last_key == first_key or _kinds(samples[last_key]) != _kinds(samples[first_key])):
            cut_key = last_key
        samples.pop(cut_key, None)
    elif not samples:
        defects.append(Skipped("empty shard", path))
    defects += [Skipped("duplicate key", f"{path}: {key}") for key in sorted(duplicates)]
    pictured = {key: members for key, members in samples.items() if not members.keys().isdisjoint(IMAGE_EXTENSIONS)}
    defects += [Skipped("no picture", f"{path}: {key}") for key in samples if key not in pictured]
    return _pack(path, pictured), defects


class _CutError(Exception):
    """The archive ends without its end mark."""


def _members(path: str) -> Iterator[tuple[str, int, int, bool]]:
    """(name, offset, size, whether it is all there) of each regular member; _CutError at a premature end."""
    length = os.path.getsize(path)
    with open(path, "rb") as stream:
        if length >= _BLOCK and not any(stream.read(_BLOCK)):  # nothing but the end mark: Python 3.10 trips over it
            return
        stream.seek(0)
        tar = tarfile.TarFile(fileobj=stream)
        last = -1
        while True:
            try:
                member = tar.next()
            except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
                raise _CutError from error
            if member is None:
                break
            if member.offset <= last:  # a broken size pointed backwards
                raise _CutError
            last = member.offset
            tar.members.clear()  # type: ignore[attr-defined]  # or it keeps a kilobyte for each
            complete = member.size >= 0 and member.offset_data + member.size <= length
            if member.isreg() and not member.issparse():
                yield member.name, member.offset_data, member.size, complete
            if not complete:
                return
        stream.seek(tar.offset)
        end = stream.read(_BLOCK)
        if len(end) < _BLOCK or any(end):  # tarfile takes a broken header for the end
            raise _CutError


def _split(name: str) -> tuple[str, str]:
    """``a/b.c.jpg`` -> (``a/b``, ``c.jpg``), as webdataset splits; hidden files have no key."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem else ("", "")


def _kinds(members: Iterable[str]) -> set[str]:
    return {"picture" if extension in IMAGE_EXTENSIONS else extension for extension in members}


def _pack(path: str, samples: dict[str, dict[str, tuple[int, int]]]) -> Shard:
    extensions = tuple(sorted({extension for members in samples.values() for extension in members}))
    codes = {extension: code for code, extension in enumerate(extensions)}
    flat = [(codes[e], offset, size) for members in samples.values() for e, (offset, size) in members.items()]
    table = np.array(flat, dtype=np.int64).reshape(-1, 3)
    return Shard(
        path=path,
        keys=np.array([key.encode("utf-8", "surrogateescape") for key in samples], dtype=np.bytes_),
        extensions=extensions,
        first=np.cumsum([0, *(len(members) for members in samples.values())], dtype=np.int64),
        extension=table[:, 0].astype(np.int32),
        offset=table[:, 1].copy(),
        size=table[:, 2].copy(),
    )


class _Descriptor:
    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_OPEN_FILES = 64  # a window touches a handful of shards; a data set may have more than a process may open
_open: OrderedDict[str, _Descriptor] = OrderedDict()


def _read_at(path: str, offset: int, size: int) -> bytes:
    """``os.pread`` keeps no position, so forked workers may share the descriptor."""
    try:
        if path not in _open:
            if len(_open) >= _OPEN_FILES:
                _open.popitem(last=False)
            _open[path] = _Descriptor(path)
        _open.move_to_end(path)
        data = os.pread(_open[path].number, size, offset)
    except OSError as error:
        raise BadSample("unreadable shard", str(error)) from error
    if len(data) < size:
        raise BadSample("unreadable shard", f"{path} is shorter than when it was indexed")
    return data
