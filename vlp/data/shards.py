"""Naming tar shards, and what one holds: which samples, and where their members lie.

A shard is a plain WebDataset tar: the members ``KEY.EXTENSION`` of one sample share KEY (all before the first
dot of the file name, folders included).
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import braceexpand
import numpy as np

from vlp.data.store import Store, is_remote
from vlp.types import UserError

LOCAL = Store()
_NEAR = 64 * 1024  # bytes between members that are cheaper to read than a second request


@dataclass(frozen=True, eq=False)
class Shard:
    """The samples of one tar that hold a picture, and where their members lie.

    Row i of ``offset`` and ``size`` has a column an extension; the size of a member that the sample lacks is -1.
    Arrays, not objects: a million samples of three members take some 60 MB and are shared by the workers.
    """

    path: str
    keys: np.ndarray
    extensions: tuple[str, ...]
    offset: np.ndarray
    size: np.ndarray
    store: Store = LOCAL

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        return self.keys[row].decode("utf-8", "surrogateescape")

    def row_of(self, key: str) -> int | None:
        """The row of the sample ``key``; None if there is none."""
        found = np.flatnonzero(self.keys == key.encode("utf-8", "surrogateescape"))
        return int(found[0]) if len(found) else None

    def where(self, row: int) -> str:
        """How logs name a sample."""
        return f"{self.path}: {self.key(row)}"

    def extents(self, row: int, wanted: Collection[str]) -> list[tuple[int, int]]:
        """(offset, size) of the reads that bring the ``wanted`` members of sample ``row``: one, if they lie close."""
        spans = sorted(
            (int(self.offset[row, column]), int(self.size[row, column]))
            for column, extension in enumerate(self.extensions)
            if extension in wanted and self.size[row, column] >= 0
        )
        reads: list[tuple[int, int]] = []
        for offset, size in spans:
            if reads and offset - sum(reads[-1]) <= _NEAR:
                start = reads[-1][0]
                reads[-1] = (start, max(sum(reads[-1]), offset + size) - start)
            else:
                reads.append((offset, size))
        return reads

    def members(self, row: int, wanted: Collection[str], data: Mapping[int, bytes]) -> dict[str, bytes]:
        """The ``wanted`` members of sample ``row`` out of what was read at its `extents` (offset -> bytes)."""
        found = {}
        for column, extension in enumerate(self.extensions):
            offset, size = int(self.offset[row, column]), int(self.size[row, column])
            if extension in wanted and size >= 0:
                start = max(at for at in data if at <= offset)
                found[extension] = data[start][offset - start : offset - start + size]
        return found

    def read(self, row: int, wanted: Collection[str]) -> dict[str, bytes]:
        """The members of sample ``row`` whose extension is ``wanted``.

        Raises:
            BadSample: "unreadable shard", if the file has gone or has become shorter since it was indexed.
        """
        data = {at: self.store.read_at(self.path, at, size) for at, size in self.extents(row, wanted)}
        return self.members(row, wanted, data)


def stem(path: str) -> str:
    """The name of a shard without folder and ``.tar``; of ``pipe:`` commands that of the first tar they name."""
    if path.startswith("pipe:"):
        named = re.search(r"([^/\s\"']+)\.tar\b", path)
        return named.group(1) if named else re.sub(r"\W+", "_", path)
    return path.partition("?")[0].rpartition("/")[2].removesuffix(".tar")


def folder(path: str) -> str:
    """The folder in which a shard lies: of ``pipe:`` commands the one in which the command runs."""
    if path.startswith("pipe:"):
        return "."
    return path.partition("?")[0].rpartition("/")[0] or ("/" if path.startswith("/") else ".")


def find_shards(sources: str | Sequence[str], store: Store = LOCAL, named: str = "data.train") -> list[str]:
    """The tar files that ``sources`` name, in order.

    A source is a tar, a directory (its ``*.tar``, sorted), a glob or a brace pattern (``{000..009}.tar``), local or
    behind any ``protocol://`` that the store knows; or ``pipe:COMMAND`` that prints a tar. A file that only a
    brace pattern names may be missing: it is counted when it is opened. ``named``: what errors call the sources.

    Raises:
        UserError: something named is missing, is no tar, or is named twice.
    """
    sources = [sources] if isinstance(sources, str) else list(sources)
    if not all(sources) or not sources:
        raise UserError(f"{named} is empty: name a tar, a directory of tars or a pattern")
    paths = [path for source in sources for path in _expand(source, store, named)]
    twice = {path for path in paths if paths.count(path) > 1} if len(set(paths)) < len(paths) else set()
    if twice:
        raise UserError(f"{named} names {min(twice)} twice: its samples would count double, remove one")
    return paths


def _expand(source: str, store: Store, named: str) -> Iterator[str]:
    has_braces = "{" in source and not os.path.exists(source)
    try:
        names = list(braceexpand.braceexpand(source)) if has_braces else [source]
    except ValueError as error:
        raise UserError(f"{named}: the braces of {source} do not match: write {{00000..00099}}.tar") from error
    missing = []
    for name in names:
        if is_remote(name):
            yield from store.expand(name)
        else:
            name = os.path.expanduser(name)
            found = list(_expand_local(name, named))
            if not found:
                missing.append(name)
            yield from found or [name]
    if missing and (len(missing) == len(names) or not all(name.endswith(".tar") for name in missing)):
        raise UserError(f"{named}: {missing[0]} does not exist: check the path")


def _expand_local(name: str, named: str) -> Iterator[str]:
    """The tars that one local name stands for; none if there is no such file."""
    if os.path.isdir(name):
        found = sorted(str(path) for path in Path(name).glob("*.tar"))
        if not found:
            raise UserError(f"{named}: no .tar file in the directory {name}: name the directory of the shards")
        yield from found
    elif os.path.exists(name):
        yield _with_tar_extension(name, named)
    elif glob.has_magic(name):
        found = sorted(glob.glob(name, recursive=True))
        if not found:
            raise UserError(f"{named}: no file matches {name}: check the pattern")
        yield from (_with_tar_extension(path, named) for path in found)


def _with_tar_extension(path: str, named: str) -> str:
    if not path.endswith(".tar"):
        raise UserError(f"{named}: {path} is not a .tar file: name plain WebDataset tar shards")
    return path
