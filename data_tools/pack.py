"""Shards or a retrieval set from a folder, a CSV, a COCO captions JSON or a Karpathy split JSON.

- ``folder``: pictures with a ``.txt`` of the same name beside them, one caption a line;
- ``csv``: open_clip's columns ``filepath`` and ``title``, tabs or commas; rows of one picture are put together;
- ``coco``: ``images`` and ``annotations`` of a captions JSON; ``--images``: their folder;
- ``karpathy``: ``dataset_coco.json`` and its kind, with ``--split``.

JPEG, PNG and WebP pictures are copied byte for byte, other kinds become PNG; ``--resize`` encodes anew.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools._console import Summary, track
from vlp.types import UserError

if TYPE_CHECKING:
    from data_tools._pack_sources import Entry

FORMATS = ("folder", "csv", "coco", "karpathy")
KEPT_AS_IS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True)
class PackOptions:
    """What ``vlp data pack`` is asked for; see ``add_arguments`` for the meaning of each."""

    src: Path
    out: Path
    format: str | None = None
    images: Path | None = None
    as_retrieval: bool = False
    captions_per_image: int | None = None
    resize: int | None = None
    split: str | None = None
    csv_img_key: str = "filepath"
    csv_caption_key: str = "title"
    csv_separator: str | None = None
    samples_per_shard: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Packed:
    """A picture ready to be written, with the captions that are kept."""

    image: bytes
    extension: str
    captions: tuple[str, ...]
    name: str
    image_id: int | str | None
    width: int
    height: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", type=Path, metavar="SRC", help="folder, .csv, .tsv or .json")
    parser.add_argument("out", type=Path, metavar="OUT", help="new directory for the shards or the retrieval set")
    parser.add_argument("--format", choices=FORMATS, help="format of SRC (default: found out)")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder that names of pictures start from (default: SRC's)"
    )
    parser.add_argument(
        "--as",
        dest="layout",
        choices=("shards", "retrieval"),
        default="shards",
        help="training shards, or a retrieval set in CLIP_benchmark's layout (default shards)",
    )
    parser.add_argument("--captions-per-image", type=int, metavar="N", help="keep the first N captions (default: all)")
    parser.add_argument("--resize", type=int, metavar="SHORT_SIDE", help="reduce larger pictures to this shorter side")
    parser.add_argument(
        "--split", help="Karpathy split, such as val (default: train+restval for shards, test for retrieval)"
    )
    parser.add_argument("--csv-img-key", default="filepath", metavar="COLUMN", help="default filepath")
    parser.add_argument("--csv-caption-key", default="title", metavar="COLUMN", help="default title")
    parser.add_argument("--csv-separator", metavar="CHARACTER", help="default: tab if the header has one, else comma")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="default 1000")
    parser.add_argument("--seed", type=int, default=0, help="order of the training samples (default 0)")


def run(arguments: argparse.Namespace) -> None:
    options = vars(arguments)
    as_retrieval = options["layout"] == "retrieval"
    known = {key: options[key] for key in PackOptions.__dataclass_fields__ if key in options}
    write_pack(PackOptions(as_retrieval=as_retrieval, **known)).show()


def write_pack(options: PackOptions) -> Summary:
    """Write training shards or a retrieval set; the same options and source give the same bytes.

    Raises:
        UserError: an unreadable source, or not one usable picture.
    """
    from data_tools._pack_sources import SourceOptions, detect, read_entries
    from vlp.data.write import ShardWriter, write_retrieval_set

    for key in ("captions_per_image", "resize", "samples_per_shard"):
        if (value := getattr(options, key)) is not None and value < 1:
            raise UserError(f"--{key.replace('_', '-')} {value} must be at least 1")
    summary = Summary(options.out)
    source = SourceOptions(
        options.src,
        options.images,
        options.csv_img_key,
        options.csv_caption_key,
        _separator(options.csv_separator),
        options.split or ("test" if options.as_retrieval else None),
    )
    kind = options.format or detect(options.src)
    _check_effect(options, kind)
    entries = read_entries(kind, source, summary)
    summary.counts["pictures named with captions"] = len(entries)
    if not options.as_retrieval:
        # Sources are often sorted by class or by date, and neighbours in a shard should not be.
        entries.sort(key=lambda e: hashlib.sha256(f"{options.seed} {e.name}".encode()).hexdigest())
    packed = _packed(entries, options, summary)
    first = next(packed, None)  # before anything is created
    if first is None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.skipped_by_kind().items()) or "nothing found"
        raise UserError(f"{options.src} gives not one usable picture ({kinds}): check it and --images")
    samples = track(chain([first], packed), "packing", total=len(entries))
    if options.as_retrieval:
        write_retrieval_set(options.out, ((p.image, p.extension, p.captions) for p in samples))
    else:
        with ShardWriter(options.out, options.samples_per_shard) as shards:
            for p in samples:
                number = {} if p.image_id is None else {"image_id": p.image_id}
                size = {"width": p.width, "height": p.height}
                shards.write(
                    p.image,
                    p.extension,
                    p.captions[0],
                    captions=list(p.captions),
                    file=p.name,
                    **size,
                    **number,
                )
    summary.write_skipped()
    return summary


# Options that only some formats or layouts read.
READ_BY = {
    "images": ("csv", "coco", "karpathy"),
    "split": ("karpathy",),
    "csv_img_key": ("csv",),
    "csv_caption_key": ("csv",),
    "csv_separator": ("csv",),
    "samples_per_shard": ("shards",),
    "seed": ("shards",),
}


def _check_effect(options: PackOptions, kind: str) -> None:
    """Refuse an option that would change nothing."""
    layout = "retrieval" if options.as_retrieval else "shards"
    for key, readers in READ_BY.items():
        changed = getattr(options, key) != PackOptions.__dataclass_fields__[key].default
        if changed and not {kind, layout} & set(readers):
            flag = f"--{key.replace('_', '-')}"
            raise UserError(f"{flag} has no effect on a {kind} packed as {layout}: it is for {', '.join(readers)}")


def _packed(entries: list[Entry], options: PackOptions, summary: Summary) -> Iterator[Packed]:
    """The usable pictures, counted as they are handed on; the others go to ``summary`` by kind."""
    from vlp.data.samples import BadSample

    keep = options.captions_per_image
    too_few = f"pictures with fewer than {keep} captions"
    summary.counts.update({"pictures written": 0, "captions written": 0, **({too_few: 0} if keep else {})})
    for entry in entries:
        try:
            image, extension, (width, height) = _picture(entry.image.read_bytes(), options.resize)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            summary.skip("missing picture" if missing else "unreadable picture", entry.name)
            continue
        except BadSample as error:
            summary.skip(error.kind, entry.name)
            continue
        captions = entry.captions[:keep]
        summary.counts["pictures written"] += 1
        summary.counts["captions written"] += len(captions)
        if keep and len(captions) < keep:
            summary.counts[too_few] += 1
        yield Packed(image, extension, captions, entry.name, entry.image_id, width, height)


def _picture(data: bytes, short_side: int | None) -> tuple[bytes, str, tuple[int, int]]:
    """(bytes, extension, (width, height)) as they will be written.

    Raises:
        BadSample: the picture does not decode as a whole.
    """
    from PIL import Image, ImageOps

    from vlp.data.samples import decode_image
    from vlp.data.write import encode_image

    decode_image(data)  # the reader's own test, so that what is packed can be read
    opened = Image.open(io.BytesIO(data))
    kept_as = KEPT_AS_IS.get(opened.format or "")
    reduced = short_side is not None and min(opened.size) > short_side
    if kept_as and not reduced:
        return data, kept_as, opened.size
    image = ImageOps.exif_transpose(opened)
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if reduced:
        assert short_side is not None
        scale = short_side / min(image.size)
        size = (max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    extension = kept_as or "png"
    return encode_image(image, extension), extension, image.size


def _separator(given: str | None) -> str | None:
    """One character; ``tab`` and ``\\t`` are what shells let people type."""
    character = {"tab": "\t", "\\t": "\t", "comma": ","}.get(given or "", given)
    if character is not None and len(character) != 1:
        raise UserError(f"--csv-separator '{given}' must be one character, or the word tab")
    return character
