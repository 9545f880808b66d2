"""List the layers of a data set and check them: coverage, unknown keys, files of other samples.

A layer is a Parquet file a shard, ROOT/NAME/00000.parquet for 00000.tar, a row a key. A file is stale if it was
written for other samples than its shard holds now; it is then not used. Ends with exit code 2 if a file is stale,
unreadable or holds keys that its shard lacks.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools._console import write_json
from data_tools._map_shards import add_engine_arguments, map_shards
from vlp.types import UserError

if TYPE_CHECKING:
    from vlp.data.layers import LayerCheck
    from vlp.data.shards import Shard


@dataclass
class LayerSummary:
    """One layer over all shards. ``coverage`` is the share of all samples that have a row."""

    name: str
    columns: dict[str, str] = field(default_factory=dict)
    shards: int = 0
    shards_covered: int = 0
    samples: int = 0
    covered: int = 0
    unknown_keys: int = 0
    stale: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)

    @property
    def coverage(self) -> float:
        return self.covered / self.samples if self.samples else 0.0

    def add(self, samples: int, check: LayerCheck | None) -> None:
        """Count one shard of ``samples`` samples; ``check`` is None if the layer has no file for it."""
        self.shards += 1
        self.samples += samples
        if check is None:
            return
        self.shards_covered += 1
        self.covered += check.covered
        self.columns = self.columns or check.columns
        self.unknown_keys += check.num_unknown
        if check.unreadable:
            self.unreadable.append(f"{check.path} ({check.unreadable})")
        if check.stale:
            self.stale.append(check.path)
        if check.unknown:
            self.unknown.append(f"{check.path}: {', '.join(check.unknown)}")
        if check.provenance is not None and check.provenance not in self.provenance:
            self.provenance.append(check.provenance)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, directories or patterns, as in data.train")
    parser.add_argument("--root", metavar="DIR", help="where the layers lie (default: 'layers' beside the shards)")
    parser.add_argument("--name", action="append", metavar="NAME", help="this layer only; may be given several times")
    parser.add_argument("--preview", type=int, default=0, metavar="N", help="also show N samples with their values")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    add_engine_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    from vlp.data.shards import find_shards

    paths = find_shards(arguments.shards, named="SHARDS")
    summaries = check_layers(paths, arguments.root, arguments.name, arguments.workers, arguments.ray)
    show(summaries)
    if arguments.preview:
        preview(paths, [summary.name for summary in summaries], arguments.root, arguments.preview)
    if arguments.json:
        figures = [asdict(summary) | {"coverage": summary.coverage} for summary in summaries]
        write_json(arguments.json, {"layers": figures})
    complain(summaries)


def check_layers(
    paths: Sequence[str],
    root: str | None = None,
    names: Sequence[str] | None = None,
    workers: int | None = 1,
    ray: str | None = None,
) -> list[LayerSummary]:
    """Hold the files of each layer against their shards.

    Raises:
        UserError: a layer of ``names`` does not exist, or shards would share a file.
    """
    from vlp.data.layer_files import check_file_names, layers_root, list_layers, no_layer

    check_file_names(paths, root)
    there = list_layers(paths, root)
    names = sorted(set(names)) if names else there
    for name in names:
        # A store without a listing names none, so there it can only be asked shard by shard.
        if there and name not in there:
            raise no_layer("--name", name, there, layers_root(paths[0], root))
    if not names:
        raise UserError(f"{layers_root(paths[0], root)} holds no layer: give --root, or --name if it cannot be listed")
    summaries = [LayerSummary(name) for name in names]
    check = partial(_check_shard, names=tuple(names), root=root)
    for _, (samples, checks) in map_shards(check, paths, "checking layers", workers, ray):
        for summary, found in zip(summaries, checks, strict=True):
            summary.add(samples, found)
    return summaries


def _check_shard(path: str, names: Sequence[str], root: str | None) -> tuple[int, list[LayerCheck | None]]:
    from vlp.data.layers import check_layer

    shard = _open(path)
    return len(shard), [check_layer(shard, name, root) for name in names]


def _open(path: str) -> Shard:
    from vlp.data.index import open_shard

    return open_shard(path)[0]


def show(summaries: Sequence[LayerSummary]) -> None:
    """A line a layer, then its columns and where its values come from."""
    head = ["layer", "shards", "samples", "coverage", "unknown keys", "stale", "unreadable"]
    rows = [
        [
            s.name,
            f"{s.shards_covered:,} of {s.shards:,}",
            f"{s.covered:,} of {s.samples:,}",
            f"{s.coverage:.1%}",
            f"{s.unknown_keys:,}",
            f"{len(s.stale):,}",
            f"{len(s.unreadable):,}",
        ]
        for s in summaries
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row, summary in zip([head, *rows], [None, *summaries], strict=True):
        name, *figures = row
        cells = [name.ljust(widths[0]), *(f.rjust(w) for f, w in zip(figures, widths[1:], strict=True))]
        print("  ".join(cells))
        if summary:
            print(f"    columns: {', '.join(f'{name} ({kind})' for name, kind in summary.columns.items()) or 'none'}")
            for provenance in summary.provenance[:3]:
                print(f"    made by: {json.dumps(provenance, ensure_ascii=False)}")
            if len(summary.provenance) > 3:
                print(f"    and {len(summary.provenance) - 3:,} more ways of making")


def preview(paths: Sequence[str], names: Sequence[str], root: str | None, num_samples: int) -> None:
    """The first samples with their captions and values."""
    from vlp.data.captions import SampleTexts
    from vlp.data.layer_files import layer_columns
    from vlp.data.layers import LayerReader
    from vlp.data.samples import BadSample

    readers = {name: LayerReader(root, name, layer_columns(name, paths, root) or {}) for name in names}
    left = num_samples
    for path in paths:
        shard = _open(path)
        values = {name: reader.columns_of(shard) for name, reader in readers.items()}
        for row in range(min(left, len(shard))):
            try:
                caption = next(iter(SampleTexts(shard.read(row, {"txt"})).of("txt")), "(no .txt)")
            except BadSample as bad:
                caption = f"({bad.kind})"
            print(f"\n{shard.key(row)}  {caption}")
            for name, columns in values.items():
                for column, array in columns.items():
                    print(f"    {name}.{column}: {_shown(array[row])}")
        left -= min(left, len(shard))
        if not left:
            return


def _shown(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def complain(summaries: Iterable[LayerSummary]) -> None:
    """Nothing, if all is well.

    Raises:
        UserError: it counts what is wrong and names the first file and its cure.
    """
    problems: Counter[str] = Counter()
    first = ""
    for s in summaries:
        for kind, named, verb, cure in (
            ("unreadable", s.unreadable, "cannot be used", "remove it and let the tool that made it write it again"),
            (
                "stale",
                s.stale,
                "was written for other samples than its shard holds",
                "run the tool that made it again, which redoes just such files, or remove it",
            ),
            (
                "with unknown keys",
                s.unknown,
                "are keys that the shard lacks",
                "write the file for the keys of its shard",
            ),
        ):
            problems[kind] += len(named)
            if named and not first:
                first = f"{named[0]} {verb}: {cure}"
    if first:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in problems.items() if count)
        raise UserError(f"layer files: {counts}; {first}")
