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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from data_tools._captions import command as on_shards
from data_tools._console import write_json
from vlp.flags import add_field, checked, default_of, flag, given
from vlp.generation_options import GenerationOptions
from vlp.types import UserError

_PREFIX = "generation"
_DECODERS = min(8, os.cpu_count() or 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help="run, checkpoint or exported directory, NAME:TAG of open_clip, hf-hub:, local-dir:")
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
    options = checked(GenerationOptions, given(arguments, _PREFIX, GenerationOptions.model_fields))
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size} must be at least 1")
    shards = [name for name in arguments.inputs if _is_shards(name)]
    if len(shards) == len(arguments.inputs):
        return on_shards.run(arguments, options)
    if shards:
        other = next(name for name in arguments.inputs if name not in shards)
        raise UserError(f"{shards[0]} is shards and {other} is not: give a command for each")
    idle = [name for name in on_shards.FLAGS if getattr(arguments, name) is not None]
    if idle:
        raise UserError(f"{flag(idle[0])} has no effect on pictures: it is for shards, leave it away")
    _caption_pictures(arguments, options)


def _is_shards(name: str) -> bool:
    """
    Raises:
        UserError: it is neither shards nor pictures, or both.
    """
    from vlp.data.samples import IMAGE_EXTENSIONS
    from vlp.data.store import is_remote

    path, ending = Path(name).expanduser(), name.rpartition(".")[2].lower()
    if path.is_dir():
        endings = {entry.suffix.lower().lstrip(".") for entry in path.iterdir()}
        if "tar" in endings and not endings.isdisjoint(IMAGE_EXTENSIONS):
            raise UserError(f"{name} holds both shards and pictures: name {name}/*.tar, or the pictures")
        return "tar" in endings
    if is_remote(name) and ending in IMAGE_EXTENSIONS:
        raise UserError(f"{name} is not on this machine: download pictures first, only shards are read from elsewhere")
    if is_remote(name) or ending == "tar":
        return True
    if not path.exists():
        raise UserError(f"{name} does not exist: name pictures, directories of them, or shards (.tar)")
    return False


class Picture(NamedTuple):
    """A file, and what it is called in the output."""

    path: Path
    name: str


def find_pictures(inputs: Sequence[str]) -> list[Picture]:
    """The files, and of directories all files with a picture's ending, sorted.

    Names are as given, of a directory that stands alone relative to it.

    Raises:
        UserError: a file is no picture, or a directory holds none.
    """
    from PIL import Image

    from vlp.data.samples import IMAGE_EXTENSIONS

    found: list[Picture] = []
    for given_name in inputs:
        path = Path(given_name).expanduser()
        if path.is_dir():
            files = (file for file in path.rglob("*") if file.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS)
            inside = [file.relative_to(path) for file in sorted(files) if file.is_file()]
            if not inside:
                raise UserError(f"{given_name} holds no pictures ({', '.join(IMAGE_EXTENSIONS)}): check the path")
            prefix = Path() if len(inputs) == 1 else Path(given_name)
            found += [Picture(path / file, str(prefix / file)) for file in inside]
            continue
        if path.suffix.lower().lstrip(".") not in IMAGE_EXTENSIONS:
            try:
                Image.open(path).close()
            except Exception as error:  # Pillow's plug-ins raise nearly every built-in error
                raise UserError(f"{given_name} is no picture: name pictures, directories of them, or shards") from error
        found.append(Picture(path, given_name))
    return found


def _caption_pictures(arguments: argparse.Namespace, options: GenerationOptions) -> None:
    from data_tools.verify import check_output, printable

    if arguments.json not in (None, "-"):
        check_output("--json", Path(arguments.json))
    pictures = find_pictures(arguments.inputs)
    from vlp import distributed
    from vlp.captioning import captions_where_possible
    from vlp.data.samples import BadSample
    from vlp.encoders.openclip import load

    model = load(arguments.model, distributed.device())
    without: list[str] = []
    with _output(arguments.json) as tell, _progress(len(pictures), arguments.json) as advance:
        for batch in captions_where_possible(model, pictures, _read, arguments.batch_size, options, _DECODERS):
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


def _read(picture: Picture) -> bytes:
    from vlp.data.samples import BadSample

    try:
        return picture.path.read_bytes()
    except OSError as error:
        raise BadSample("unreadable file", str(error.strerror)) from error


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
