"""The data sheet of shards: sizes, captions, duplicates, languages, fields, defects and a sample, as JSON and HTML.

Every shard is read in full, like by ``vlp data verify``, and every figure is exact: quantities are counted to
four digits, duplicates by 64-bit digests. Two captions are duplicates if they are the same text; two pictures, if
they have the same bytes, or the same perceptual hash (they look alike, which does not make them the same).
Languages are guessed by py3langid and counted only where it is sure, which on captions of a few words is rare.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_tools._console import write_json
from data_tools._map_shards import add_engine_arguments, map_shards
from data_tools.verify import add_caption_argument, caption_sources, check_output, printable
from vlp.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, directories of tars, globs, brace patterns")
    add_caption_argument(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the sheet as JSON; vlp report FILE shows it")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the sheet as one self-contained page")
    parser.add_argument(
        "--sample", type=int, default=48, metavar="N", help="pictures shown; 0 keeps all pictures out (default 48)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which samples are shown (default 0)")
    add_engine_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    check_output("--out", arguments.out)
    check_output("--html", arguments.html)
    sources = caption_sources(arguments.captions)
    sheet = stats(
        arguments.shards, sources, arguments.sample, arguments.seed, workers=arguments.workers, ray=arguments.ray
    )
    if arguments.out:
        write_json(arguments.out, sheet)
    if arguments.html:
        from vlp.evaluation.report.data_sheet import write_page

        write_page(sheet, arguments.html)
    print(printable(summary(sheet)))


def stats(
    sources: Sequence[str],
    captions: Sequence[str] = ("txt",),
    sample: int = 48,
    seed: int = 0,
    workers: int | None = None,
    ray: str | None = None,
) -> dict[str, Any]:
    """The data sheet of all shards that ``sources`` name, ready for ``json.dumps``.

    Memory: some 100 bytes a sample for the search for duplicates (10 GB for a hundred million), counts of at most
    a few ten thousand values a quantity, and one shard's headers and one sample a worker.

    Raises:
        UserError: ``sources`` name no shard, or no sample could be used.
    """
    from data_tools._stats_shard import survey
    from data_tools._stats_sheet import DataSet, data_sheet
    from vlp.data.shards import find_shards

    if sample < 0:
        raise UserError(f"--sample {sample} must not be negative")
    paths = find_shards(list(sources), named="SHARDS")
    data = DataSet(paths, captions)
    for _, shard in map_shards(partial(survey, captions=tuple(captions)), paths, "reading shards", workers, ray):
        data.add(shard)
    return data_sheet(data, name_of_data(paths), sample, seed)


def name_of_data(paths: Sequence[str]) -> str:
    """What the shards lie in; a folder that is named for its part of a data set takes that one's name along."""
    folder = Path(os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]))
    return f"{folder.parent.name}/{folder.name}" if folder.name in ("train", "val", "valid", "test") else folder.name


def summary(sheet: dict[str, Any]) -> str:
    """The main figures, for a terminal."""
    captions, pictures, looks = sheet["captions"], sheet["pictures"], sheet["duplicates"]["look"]
    lines = [("samples", f"{sheet['samples']:,} in {sheet['shards']:,} shards, {sheet['bytes']:,} bytes")]
    if pictures["width"]:
        width, height = (pictures[side]["quantiles"]["50 %"] for side in ("width", "height"))
        formats = ", ".join(f"{name} {number:,}" for name, number in pictures["formats"].items())
        lines.append(("pictures", f"median {width:,} x {height:,} pixels; {formats}"))
    if captions["words"]:
        words = captions["words"]["quantiles"]
        lines.append(("words a caption", f"median {words['50 %']:,}, 95 % have at most {words['95 %']:,}"))
        lines.append(("captions", f"{captions['number']:,}, {captions['distinct']:,} of them different"))
    same = sheet["duplicates"]["bytes"]
    lines.append(("same bytes", f"{same['repeated']:,} pictures share theirs with another"))
    alike = looks if isinstance(looks, str) else f"{looks['repeated']:,} pictures look like another"
    lines.append(("same look", alike))
    languages = sheet["languages"]
    if isinstance(languages, str):
        lines.append(("languages", languages))
    else:
        first = [f"{name} {number:,}" for name, number in list(languages["sure"].items())[:5]]
        lines.append(("languages", ", ".join([*first, f"not sure {languages['unsure']:,}"])))
    for kind, defect in sheet["defects"].items():
        lines.append((kind, f"{defect['number']:,}, such as {defect['example']}"))
    width_of = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width_of}}  {text}" for name, text in lines)
