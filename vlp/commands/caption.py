"""What pictures show, told by a captioner; of shards as a layer beside them.

The captioner is a CoCa, or a run with model.captioner.

  vlp caption MODEL picture.jpg other.png             a line each: name, tab, caption
  vlp caption MODEL photos --json captions.json       a directory with all its pictures, however deep
  vlp caption MODEL data/train --report page.html     shards: a layer beside them, for data.captions

Of pictures that cannot be read the others are captioned, they are named, and the exit code is 1. Of shards, the same
command again captions what is missing, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools._captions import command as on_shards
from data_tools._console import write_json
from vlp.commands import _model
from vlp.flags import add_field, checked, default_of, flag, given
from vlp.generation_options import GenerationOptions
from vlp.types import UserError

_PREFIX = "generation"
_DECODERS = min(8, os.cpu_count() or 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model.add_arguments(parser)
    add("inputs", nargs="+", metavar="IMAGE|DIR|SHARDS", help="pictures, directories of them, or shards (.tar)")
    add(
        "--json",
        metavar="FILE",
        help="of pictures: the captions as a list of {file, caption} (a line each where FILE ends with .jsonl; -: "
        "standard output); of shards: counts and a sample, which vlp report FILE shows",
    )
    add("--batch-size", type=int, default=64, metavar="N", help="pictures at once (default %(default)s)")
    writing = parser.add_argument_group("how captions are written")
    for name, info in GenerationOptions.model_fields.items():
        default = "" if info.default in (None, "") else f" ({default_of(info)})"
        add_field(writing, _PREFIX, name, info, f"{info.description}{default}")
    on_shards.add_arguments(parser.add_argument_group("for shards"))


def run(arguments: argparse.Namespace) -> None:
    """Write the captions; ends with exit code 1 if some of the pictures have none.

    Raises:
        UserError: options that exclude each other, inputs that are no pictures or shards, a model that tells none.
    """
    _model.heed(arguments)
    options = checked(GenerationOptions, given(arguments, _PREFIX, GenerationOptions.model_fields))
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size} must be at least 1")
    from vlp.data.picture_files import is_shards

    shards = [name for name in arguments.inputs if is_shards(name)]
    if len(shards) == len(arguments.inputs):
        return on_shards.run(arguments, options)
    if shards:
        other = next(name for name in arguments.inputs if name not in shards)
        raise UserError(f"{shards[0]} is shards and {other} is not: give a command for each")
    idle = [name for name in on_shards.FLAGS if getattr(arguments, name) is not None]
    if idle:
        raise UserError(f"{flag(idle[0])} has no effect on pictures: it is for shards, leave it away")
    _caption_pictures(arguments, options)


def _caption_pictures(arguments: argparse.Namespace, options: GenerationOptions) -> None:
    from data_tools.verify import check_output, printable

    if arguments.json not in (None, "-"):
        check_output("--json", Path(arguments.json))
    from vlp import distributed
    from vlp.captioning import captions_where_possible
    from vlp.data.picture_files import Picture, find_pictures
    from vlp.data.samples import BadSample
    from vlp.encoders.openclip import load

    pictures = find_pictures(arguments.inputs)
    model = load(arguments.model, distributed.device())
    without: list[str] = []
    with _output(arguments.json) as tell, _progress(len(pictures), arguments.json) as advance:
        for batch in captions_where_possible(model, pictures, Picture.read, arguments.batch_size, options, _DECODERS):
            for picture, caption in batch:
                if isinstance(caption, BadSample):
                    without.append(f"{picture.name}: {caption}")
                else:
                    tell(picture.name, caption)
            advance(len(batch))
    if without:
        print(f"{len(without):,} of {len(pictures):,} pictures have no caption:", file=sys.stderr)
        print(printable("\n".join(without)), file=sys.stderr)
        sys.exit(1)


@contextmanager
def _output(to: str | None) -> Iterator[Callable[[str, str], None]]:
    """Takes names with their captions: lines as they come, a JSON list in the end."""
    from data_tools.verify import printable

    entries: list[dict[str, str]] = []
    if to is None:
        yield lambda name, caption: print(printable(f"{name}\t{caption}"), flush=True)
    elif to.endswith(".jsonl"):
        with open(to, "w", encoding="utf-8", buffering=1) as file:

            def write(name: str, caption: str) -> None:
                file.write(_line({"file": name, "caption": caption}) + "\n")

            yield write
    else:
        yield lambda name, caption: entries.append({"file": name, "caption": caption})
        if to == "-":
            print("[\n" + ",\n".join(f" {_line(entry)}" for entry in entries) + "\n]")
        else:
            write_json(Path(to), entries)


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


@contextmanager
def _progress(total: int, to: str | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, but where the captions appear there themselves."""
    from rich.console import Console
    from rich.progress import Progress

    hidden = not sys.stderr.isatty() or (to is None and sys.stdout.isatty())
    with Progress(console=Console(stderr=True), redirect_stdout=False, disable=hidden) as bar:
        task = bar.add_task("captioning", total=total)
        yield lambda number: bar.advance(task, number)
