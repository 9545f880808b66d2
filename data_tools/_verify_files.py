"""What can be wrong with the files of a data set beside what their tars hold."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from data_tools.verify import Defect
from vlp.data.counts import known_counts
from vlp.data.shards import LOCAL
from vlp.types import UserError

_STATS, _PARQUET = "_stats.json", ".parquet"


def count_defects(path: str, num_samples: int) -> list[Defect]:
    """Files beside the shard whose counts are not ``num_samples``, the samples of the tar."""
    defects = []
    for suffix, noun, count in ((_STATS, "successes", _successes), (_PARQUET, "successful rows", _rows)):
        beside = _beside(path, suffix)
        try:
            expected = count(LOCAL.read_all(beside)) if beside and LOCAL.exists(beside, optional=True) else None
        except Exception as error:  # whatever the parsers of JSON and Parquet raise on broken bytes
            detail = " ".join(str(error).split()) or type(error).__name__
            defects.append(Defect(f"unreadable {suffix}", path, detail=detail))
            continue
        if expected is not None and expected != num_samples:
            detail = f"{num_samples:,} samples in the tar, {expected:,} {noun} beside it"
            defects.append(Defect(f"count differs from {suffix}", path, detail=detail))
    return defects


def expected_samples(path: str) -> int | None:
    """How many samples ``_stats.json`` says the shard has; None where it does not say so."""
    beside = _beside(path, _STATS)
    with suppress(Exception):  # count_defects names what is wrong with it
        return _successes(LOCAL.read_all(beside)) if beside and LOCAL.exists(beside, optional=True) else None
    return None


def _beside(path: str, suffix: str) -> str:
    """The file that belongs to a shard; none where its address does not end in its name, as a pipe's."""
    return path.removesuffix(".tar") + suffix if path.endswith(".tar") and not path.startswith("pipe:") else ""


def _successes(content: bytes) -> int | None:
    successes = json.loads(content).get("successes")
    return successes if isinstance(successes, int) else None


def _rows(content: bytes) -> int:
    """img2dataset's table has a row for each picture it tried, and says of each whether it got it."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(content)) as file:
        if "status" not in file.schema_arrow.names:
            return int(file.metadata.num_rows)
        status = file.read(columns=["status"])["status"]
    return int(pc.sum(pc.equal(status, "success")).as_py() or 0)


def listed_defects(paths: Sequence[str], counts: Sequence[int]) -> list[Defect]:
    """Where ``sizes.json`` or a wids file, which list the shards of a folder, say another number than was found."""
    try:
        known = known_counts(paths)
    except UserError as error:
        has_been_named = _STATS in str(error) or "run vlp data index" in str(error)
        return [] if has_been_named else [Defect("unreadable counts", os.path.dirname(paths[0]), detail=str(error))]
    defects = []
    for path, count in zip(paths, counts, strict=True):
        expected, origin = known.get(path, (count, ""))
        if expected != count and origin not in ("index", _STATS):
            detail = f"{count:,} samples in the tar, {expected:,} in {origin}"
            defects.append(Defect(f"count differs from {origin}", path, detail=detail))
    return defects


def folder_defects(paths: Sequence[str]) -> list[Defect]:
    """Leftovers, and shards of which only the files beside them are there.

    Only local folders are looked at of which every tar is among ``paths``: other shards are not asked about.
    """
    known = {os.path.abspath(path) for path in paths if "://" not in path and not path.startswith("pipe:")}
    folders = sorted({os.path.dirname(path) for path in known})
    return [defect for folder in folders for defect in _folder(Path(folder), known)]


def _folder(folder: Path, known: set[str]) -> Iterable[Defect]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    tars = {name for name in names if name.endswith(".tar")}
    if not all(str(folder / name) in known for name in tars):
        return
    partial = {name for name in names if name.endswith((".partial", ".tmp", ".part"))}
    for name in sorted(partial):
        kind = "half-written shard" if ".tar." in name else "leftover file"
        yield Defect(kind, str(folder / name))
    begun = {name.partition(".tar.")[0] for name in partial if ".tar." in name}
    with_stats = {name.removesuffix(_STATS) for name in names if name.endswith(_STATS)}
    for stem in sorted(with_stats - begun):
        if stem + ".tar" not in tars and str(folder / f"{stem}.tar") not in known:
            yield Defect("missing shard", str(folder / f"{stem}.tar"), detail=f"{stem}{_STATS} is there")
    for name in sorted(tars):
        if with_stats and name.removesuffix(".tar") not in with_stats:
            yield Defect("half-written shard", str(folder / name), detail=f"others have {_STATS}, this one has not")
