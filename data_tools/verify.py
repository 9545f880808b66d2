"""Read every shard once and name each defect by shard and key; exit code 1 if there is any.

What is read is what training reads, by the same rules: the header of every member of every tar, every picture
decoded in full, every caption and JSON. Beside the tars, the counts in ``_stats.json`` and Parquet tables are
compared and leftovers of unfinished writing are named. The kinds are those that training counts and logs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools._console import write_json
from data_tools._map_shards import add_engine_arguments, map_shards
from vlp.types import UserError

if TYPE_CHECKING:
    import numpy as np

NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong: in a sample (``key``), or in a shard or file as a whole (no ``key``)."""

    kind: str
    shard: str
    key: str = ""
    detail: str = ""

    def __str__(self) -> str:
        return self.shard + (f": {self.key}" if self.key else "") + (f" ({self.detail})" if self.detail else "")


@dataclass
class Verification:
    """What was read and what was found; ``num_bytes`` are those of the tars' pictures, texts and other members."""

    num_shards: int = 0
    num_samples: int = 0
    num_bytes: int = 0
    defects: list[Defect] = field(default_factory=list)

    def by_kind(self) -> Counter[str]:
        return Counter(defect.kind for defect in self.defects)

    def to_json(self) -> dict[str, Any]:
        return {
            "shards": self.num_shards,
            "samples": self.num_samples,
            "bytes": self.num_bytes,
            "kinds": dict(self.by_kind().most_common()),
            "defects": [asdict(defect) for defect in self.defects],
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit code: 0 without a defect, 1 with defects, 2 if the shards cannot be found."
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, directories of tars, globs, brace patterns")
    add_caption_argument(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every defect as JSON, not only the table")
    add_engine_arguments(parser)


def add_caption_argument(parser: argparse.ArgumentParser) -> None:
    """``--caption``: where the captions stand."""
    parser.add_argument(
        "--caption",
        action="append",
        dest="captions",
        metavar="SOURCE",
        help="where the captions stand, as in data.captions: txt or json.FIELD; repeatable (default txt)",
    )


def run(arguments: argparse.Namespace) -> None:
    sources = caption_sources(arguments.captions)
    check_output("--json", arguments.json)
    found = verify(arguments.shards, sources, arguments.workers, arguments.ray)
    if arguments.json:
        write_json(arguments.json, found.to_json())
    print(f"{found.num_shards:,} shards, {found.num_samples:,} samples, {found.num_bytes:,} bytes read")
    print(printable(table(found.defects)))
    if found.defects:
        sys.exit(1)


def check_output(option: str, path: Path | None) -> None:
    """Refuse a file that could not be written after hours of reading.

    Raises:
        UserError: it is a directory, or lies in none.
    """
    if path is not None and path.is_dir():
        raise UserError(f"{option} {path} is a directory: name a file")
    if path is not None and not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no directory {path.parent}: make it first")


def printable(text: str) -> str:
    """``text`` with the bytes of names that are not UTF-8 written out, as JSON does."""
    return text.encode("utf-8", "backslashreplace").decode()


def caption_sources(given: Sequence[str] | None) -> tuple[str, ...]:
    """The sources named by ``--caption``, checked.

    Raises:
        UserError: something else.
    """
    for source in given or ():
        if not re.fullmatch(r"txt|json\..+", source):
            raise UserError(f"--caption {source} is no text inside the tars: write txt or json.FIELD")
    return tuple(dict.fromkeys(given or ("txt",)))


def verify(
    sources: Sequence[str], captions: Sequence[str] = ("txt",), workers: int | None = None, ray: str | None = None
) -> Verification:
    """Read all shards that ``sources`` name and compare keys across them.

    Memory: some 30 bytes a sample, and one shard's headers and one sample a worker.

    Raises:
        UserError: ``sources`` name no shard at all.
    """
    from data_tools._verify_files import folder_defects, listed_defects
    from data_tools._verify_shard import check_shard, keys_in_two_shards
    from vlp.data.shards import find_shards

    paths = find_shards(list(sources), named="SHARDS")
    result = Verification(num_shards=len(paths))
    keys: list[np.ndarray] = []
    counts: list[int] = []
    check = partial(check_shard, captions=tuple(captions))
    for _, one in map_shards(check, paths, "verifying", workers, ray):
        result.num_samples += one.num_samples
        result.num_bytes += one.num_bytes
        result.defects += one.defects
        keys.append(one.keys)
        counts.append(one.num_samples)
    result.defects += keys_in_two_shards(paths, keys) + listed_defects(paths, counts) + folder_defects(paths)
    return result


def table(defects: Sequence[Defect]) -> str:
    """A line a kind, the most frequent first, with its first examples below one another."""
    if not defects:
        return "no defects"
    counts = Counter(defect.kind for defect in defects)
    width = max(len("kind"), *map(len, counts))
    lines = [f"{'kind':<{width}}  {'number':>9}  such as"]
    for kind, count in counts.most_common():
        examples = [str(defect) for defect in defects if defect.kind == kind][:NUM_EXAMPLES]
        more = [f"and {count - len(examples):,} more"] if count > len(examples) else []
        lines.append(f"{kind:<{width}}  {count:>9,}  {examples[0]}")
        lines += [" " * (width + 13) + line for line in examples[1:] + more]
    return "\n".join(lines)
