"""Attach texts or figures that others made, as a layer beside the shards: tables by key, name or URL, LaCLIP's release.

--table takes Parquet, JSON lines, CSV or TSV with a header, several files as one table, of any length; --on names the
column that says whose row it is, --column what becomes a column of the layer. --laclip takes the rewrites that LaCLIP's
authors released: their CSV (path,caption; no header) and its text files of a rewrite a line, whose alignment is checked
by their lengths and by the captions of the samples. Train with `data.captions: [{source: layer.NAME}]`.

Rows are joined to samples by name: --sample key, or a field of the sample's JSON such as json.url or json.file; of
names --compare takes the whole, the last part of the path, or that without its extension. Rows of no sample and
samples without a row are counted and named. A run that was killed reads again, and writes only what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools._console import check_caption_source, track, write_json
from data_tools._map_shards import add_engine_arguments, map_shards
from vlp.types import UserError

if TYPE_CHECKING:
    from data_tools._attach_join import Joined, Samples
    from data_tools._attach_laclip import LaclipRelease
    from data_tools._attach_tables import Tables

MOST_DIFFERING = 0.01
TOOL = "vlp data attach"


@dataclass(frozen=True)
class AttachOptions:
    """What ``vlp data attach`` is asked for; see ``add_arguments`` for the meaning of each."""

    shards: tuple[str, ...]
    name: str
    tables: tuple[Path, ...] = ()
    on: str | None = None
    columns: tuple[str, ...] = ()
    laclip: tuple[Path, ...] = ()
    sample: str = "key"
    compare: str | None = None
    repeated: str = "error"
    caption: str = "txt"
    max_differing: float = MOST_DIFFERING
    root: str | None = None
    workers: int | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        if bool(self.tables) == bool(self.laclip):
            raise UserError("give either --table or --laclip")
        if self.tables and not (self.on and self.columns):
            raise UserError("--table needs --on COLUMN (whose row it is) and --column COLUMN (what to attach)")
        if self.laclip and (self.on or self.columns):
            raise UserError("--on and --column have no effect with --laclip: its files have no named columns")
        if self.laclip and len(self.laclip) < 2:
            raise UserError("--laclip needs the CSV and one or several text files")
        if self.tables and (self.caption != "txt" or self.max_differing != MOST_DIFFERING):
            raise UserError("--caption and --max-differing have no effect without --laclip: tables are not compared")
        if not re.fullmatch(r"key|json\..+", self.sample):
            raise UserError(f"--sample {self.sample} is no place in a sample: write key or json.FIELD")
        check_caption_source(self.caption)
        if not 0 <= self.max_differing <= 1:
            raise UserError(f"--max-differing {self.max_differing:g} is no share: give a number from 0 to 1")


@dataclass
class AttachReport:
    """What was attached, what was not, with the first names of each kind."""

    columns: dict[str, str]
    samples: int
    joined: Joined
    compares: bool
    written: int = 0
    defects: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("columns", "samples", "written", "defects", "left_out")}
        return own | vars(self.joined)

    def show(self, name: str) -> None:
        found = self.joined
        print(f"layer {name}: {', '.join(f'{column} ({kind})' for column, kind in self.columns.items())}")
        print(f"  {found.covered:,} of {self.samples:,} samples have a row ({found.covered / self.samples:.1%})")
        lines = {"rows of no sample": found.unmatched, "samples without a row": self.samples - found.covered}
        for kind, count in lines.items():
            if count:
                print(f"  {count:,} {kind}: {', '.join(found.examples[kind])}{' ...' if count > 3 else ''}")
        if self.compares:
            share = found.differing / max(1, found.compared)
            print(f"  {found.compared:,} captions compared with those of the samples, {share:.2%} are other ones")
            for example in found.examples.get("other captions", ()):
                print(f"    {example}")
        for kind, count in (self.defects | self.left_out).items():
            print(f"  {count:,} x {kind}")
        print(f"  wrote {self.written:,} files; the others were there")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("shards", nargs="+", metavar="SHARDS", help="tars, directories of tars, globs, brace patterns")
    add("--name", required=True, help="name of the layer")
    add("--root", metavar="DIR", help="where layers lie (default: 'layers' beside the shards)")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    add_engine_arguments(parser)
    tables = parser.add_argument_group("tables")
    tables.add_argument(
        "--table", nargs="+", type=Path, default=[], metavar="FILE", help=".parquet .jsonl .csv .tsv, those also .gz"
    )
    tables.add_argument("--on", metavar="COLUMN", help="the column that says whose row it is")
    tables.add_argument(
        "--column",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN[=NAME[:KIND]]",
        help="what to attach, its name in the layer, and its kind where the first rows mislead: "
        "text, texts, float, int, bool",
    )
    tables.add_argument(
        "--repeated",
        choices=("error", "list"),
        default="error",
        help="several rows of one sample: refuse them, or gather their texts in a list (default error)",
    )
    laclip = parser.add_argument_group("LaCLIP's release")
    laclip.add_argument(
        "--laclip", nargs="+", type=Path, default=[], metavar="FILE", help="the CSV, then its text files of rewrites"
    )
    laclip.add_argument(
        "--caption", default="txt", metavar="SOURCE", help="what the CSV's captions must be: txt or json.FIELD"
    )
    laclip.add_argument(
        "--max-differing",
        type=float,
        default=MOST_DIFFERING,
        metavar="SHARE",
        help=f"refuse files if a larger share of captions is another than the sample's (default {MOST_DIFFERING})",
    )
    join = parser.add_argument_group("whose row it is")
    join.add_argument("--sample", default="key", metavar="PLACE", help="its name: key or json.FIELD (default key)")
    join.add_argument(
        "--compare",
        choices=("whole", "name", "stem"),
        help="of names: all, the last part of the path, that up to its first dot (default: stem for key, else whole)",
    )


def run(arguments: argparse.Namespace) -> None:
    report = attach(
        AttachOptions(
            shards=tuple(arguments.shards),
            name=arguments.name,
            tables=tuple(arguments.table),
            on=arguments.on,
            columns=tuple(arguments.column),
            laclip=tuple(arguments.laclip),
            sample=arguments.sample,
            compare=arguments.compare,
            repeated=arguments.repeated,
            caption=arguments.caption,
            max_differing=arguments.max_differing,
            root=arguments.root,
            workers=arguments.workers,
            ray=arguments.ray,
        )
    )
    if arguments.json:
        write_json(arguments.json, report.to_json())
    report.show(arguments.name)


def attach(options: AttachOptions) -> AttachReport:
    """Write the layer; nothing is written before all rows have found their samples and all checks have passed.

    Raises:
        UserError: files that cannot be read or are out of line, no row for any sample, repeated rows, captions that
            are others than the samples', a layer of this name that is of another tool or has other columns.
    """
    from data_tools import _attach_join as join
    from vlp.data.layer_files import check_file_names
    from vlp.data.layers import LayerWriter
    from vlp.data.shards import find_shards

    paths = find_shards(options.shards, named="SHARDS")
    check_file_names(paths, options.root)
    table = _opened(options)
    merge = options.repeated == "list"
    kinds = join.merged_kinds(table.kinds) if merge else table.kinds
    _check_layer(paths, options, kinds)
    compare: Any = options.compare or ("stem" if options.sample == "key" else "whole")
    place, places = join.Place(options.sample, compare), join.Places(options.root, options.name)
    origin = _provenance(options, table.files, place.compare)
    LayerWriter(options.root, options.name, origin, kinds)  # refuses a name that cannot be used
    folders = {places.spilled(path).parent for path in paths}
    over = partial(map_shards, workers=options.workers, ray=options.ray)
    _remove(folders)  # of a run that was killed
    try:
        name = partial(join.name_samples, place=place, caption=options.caption if options.laclip else None)
        samples = join.Samples(paths, place, (found for _, found in over(name, paths, "reading names")))
        joined = join.hand_out(track(table.rows(), "reading rows"), samples, places, merge)
        _check(options, samples, joined, table)
        write = partial(join.write_layer, places=places, origin=origin, kinds=kinds, merge=merge)
        written = sum(new for _, new in over(write, paths, "writing layers"))
    finally:
        _remove(folders)
    defects: Counter[str] = Counter()
    for defect in samples.defects:
        defects[defect.kind] += defect.samples
    left_out = {f"sample without {options.sample}": samples.unnamed, "row that is no picture's": table.not_pictures}
    return AttachReport(
        dict(kinds),
        len(samples),
        joined,
        bool(options.laclip),
        written,
        dict(defects),
        {kind: count for kind, count in left_out.items() if count},
    )


def _opened(options: AttachOptions) -> Tables | LaclipRelease:
    from data_tools._attach_laclip import LaclipRelease
    from data_tools._attach_tables import Tables

    for file in [*options.tables, *options.laclip]:
        if not file.is_file():
            raise UserError(f"{file} is no file: name the files themselves")
    if options.laclip:
        return LaclipRelease(options.laclip[0], options.laclip[1:])
    assert options.on
    return Tables(options.tables, options.on, [_column(text) for text in options.columns])


def _column(text: str) -> Any:
    from data_tools._attach_tables import Column
    from vlp.data.layer_files import ARROW

    there, equals, rest = text.rpartition("=") if "=" in text else (text, "", "")
    here, _, kind = rest.partition(":")
    if (equals and not here) or (kind and kind not in ARROW):
        raise UserError(
            f"--column {text}: write COLUMN, COLUMN=NAME or COLUMN=NAME:KIND, KIND one of {', '.join(ARROW)}"
        )
    return Column(there, here or there, kind or None)


def _check_layer(paths: Sequence[str], options: AttachOptions, kinds: dict[str, str]) -> None:
    """Refuse to change a layer into another one."""
    from vlp.data.layer_files import layer_columns, layer_path, refuse_layers_of_others

    refuse_layers_of_others(paths, options.name, options.root, TOOL)
    there = layer_columns(options.name, paths, options.root)
    if there is not None and there != kinds:
        folder = Path(layer_path(paths[0], options.name, options.root)).parent
        raise UserError(f"{folder} has other columns: choose another --name, or remove that layer")


def _check(options: AttachOptions, samples: Samples, joined: Joined, table: Any) -> None:
    if not joined.covered:
        rows = (joined.examples.get("rows of no sample") or ["none"])[0]
        raise UserError(
            f"no row of {table.files[0]} is of a sample: the rows' names are such as {rows}, the samples' "
            f"{options.sample} such as '{samples.example}': say what to join by with --on, --sample and --compare"
        )
    if joined.differing > options.max_differing * joined.compared:
        raise UserError(
            f"{joined.differing:,} of {joined.compared:,} captions in {table.files[0]} are others than their samples' "
            f"(such as {joined.examples['other captions'][0]}): these files are of other data or out of line; if not, "
            "allow it with --max-differing"
        )


def _provenance(options: AttachOptions, files: Sequence[Path], compare: str) -> dict[str, Any]:
    import vlp

    return {
        "tool": TOOL,
        "version": vlp.__version__,
        "files": [{"name": file.name, "sha256": _sha256(file)} for file in files],
        "on": options.on,
        "columns": list(options.columns),
        "sample": options.sample,
        "compare": compare,
        "repeated": options.repeated,
    }


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _remove(folders: set[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # the layer itself, where nothing was written
            folder.parent.rmdir()
