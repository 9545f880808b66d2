"""Tux Paint's stamps (PNG and SVG with captions in many languages) as training shards.

Beside ``frog.png`` or ``frog.svg`` lies ``frog.txt``: the first line is the English caption, the further ones
read ``fr.utf8=Une grenouille.``. The first ``--language`` gives the caption (``.txt`` and ``captions``), the
others give ``captions_LANG``; such a list is empty where the file lacks that language. Folders become
``categories``. Where a stamp is there as PNG and as SVG, the PNG is taken. Transparency is kept unless
``--flatten`` is given.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools._console import Summary, track
from vlp.resolve import nearest
from vlp.types import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

NEARLY_WHITE = 250  # a picture whose darkest value on white is above this shows nothing
_ARTICLE = re.compile(r"(?:an?|the|some|this is an?)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class StampsOptions:
    """What ``vlp data stamps`` is asked for; see ``add_arguments`` for the meaning of each."""

    src: Path
    out: Path
    languages: tuple[str, ...] = ("en",)
    image_size: int = 224
    flatten: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Stamp:
    """One picture file, its captions by language code and the folders it lies in."""

    path: Path
    name: str
    captions: dict[str, str]
    categories: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", type=Path, metavar="SRC", help="tree of stamps, such as /usr/share/tuxpaint/stamps")
    parser.add_argument("out", type=Path, metavar="OUT", help="new directory for the shards and SOURCES.md")
    parser.add_argument(
        "--language",
        action="append",
        dest="languages",
        metavar="CODE",
        help="the first gives the caption, further ones captions_CODE, as pt_BR; repeatable (default en)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        default=224,
        metavar="PIXELS",
        help="longer side: SVGs are drawn at it, larger PNGs are reduced to it (default 224)",
    )
    parser.add_argument(
        "--flatten", action="store_true", help="put pictures on white, for readers that drop transparency"
    )
    parser.add_argument("--seed", type=int, default=0, help="order of the samples (default 0)")


def run(arguments: argparse.Namespace) -> None:
    options = StampsOptions(
        src=arguments.src,
        out=arguments.out,
        languages=tuple(dict.fromkeys(arguments.languages or ("en",))),
        image_size=arguments.image_size,
        flatten=arguments.flatten,
        seed=arguments.seed,
    )
    write_stamps(options).show()


def write_stamps(options: StampsOptions) -> Summary:
    """Write the shards; the same options and tree give the same bytes.

    Raises:
        UserError: no stamps, an unknown language, or not one usable stamp.
    """
    from vlp.data.write import ShardWriter, encode_image, new_directory

    if options.image_size < 8:
        raise UserError(f"--image-size {options.image_size} must be at least 8 pixels")
    stamps = find_stamps(options.src)
    _check_languages(stamps, options.languages)
    main, *further = options.languages
    summary = Summary(options.out, {"pictures found": len(stamps)})
    usable = []
    for stamp in track(stamps, "reading stamps"):
        if main not in stamp.captions:
            summary.skip(f"no caption in '{main}'" if stamp.captions else "no caption", stamp.name)
        elif image := _picture(stamp, options, summary):
            usable.append((stamp, image))
    if not usable:
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.skipped_by_kind().items())
        raise UserError(f"{options.src} holds no usable stamp ({kinds}): give a tree of PNG or SVG files with captions")

    def digest(item: tuple[Stamp, Image]) -> str:
        return hashlib.sha256(f"{options.seed} {item[0].name}".encode()).hexdigest()

    new_directory(options.out)
    with ShardWriter(options.out) as shards:
        for stamp, image in sorted(usable, key=digest):
            shards.write(
                encode_image(image, "png"),
                "png",
                stamp.captions[main],
                captions=variants(stamp.captions[main], main),
                **{f"captions_{x}": variants(stamp.captions[x], x) if x in stamp.captions else [] for x in further},
                categories=list(stamp.categories),
                file=stamp.name,
                width=image.width,
                height=image.height,
            )
        summary.counts["training pictures"] = shards.num_samples
    summary.counts["of them drawn from SVG"] = sum(stamp.path.suffix == ".svg" for stamp, _ in usable)
    for language in options.languages:
        summary.counts[f"captions in {language}"] = sum(language in stamp.captions for stamp, _ in usable)
    summary.counts["distinct captions"] = len({stamp.captions[main] for stamp, _ in usable})
    _write_sources(options)
    summary.write_skipped()
    return summary


def find_stamps(src: Path) -> list[Stamp]:
    """Every picture of the tree, with whatever captions it has, in the order of their names."""
    pictures: dict[Path, Path] = {}
    for path in sorted(src.rglob("*")):
        if path.suffix in {".png", ".svg"}:
            pictures.setdefault(path.with_suffix(""), path)  # .png sorts before .svg
    if not pictures:
        raise UserError(f"{src} holds no .png or .svg file: name a tree of stamps, such as /usr/share/tuxpaint/stamps")
    return [
        Stamp(
            path,
            path.relative_to(src).as_posix(),
            read_captions(stem.with_name(stem.name + ".txt")),
            stem.relative_to(src).parts[:-1],
        )
        for stem, path in pictures.items()
    ]


def read_captions(path: Path) -> dict[str, str]:
    """Captions by language code from a Tux Paint caption file; empty when there is none."""
    if not path.is_file():
        return {}
    first, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    captions = {"en": first}
    for line in lines:
        if match := re.match(r"([A-Za-z_@]+)\.utf8=(.*)", line):
            captions[match[1]] = match[2]
    return {language: " ".join(text.split()) for language, text in captions.items() if text.strip()}


def variants(caption: str, language: str = "en") -> list[str]:
    """The caption as it is, and as a bare name: ``A frog.`` -> ``frog``.

    The bare name is the first sentence without bracketed remarks, end mark and, in English, its article.
    """
    bare = re.sub(r"\s*\([^)]*\)", "", caption)
    bare = re.split(r"(?<=[.!?。])\s+", bare)[0].strip().rstrip(".!。").strip()
    named = _ARTICLE.match(bare) if language.startswith("en") else None
    if named and len(bare) > named.end():
        bare = bare[named.end() :]
    return [caption] if bare in {"", caption} else [caption, bare]


def _check_languages(stamps: Sequence[Stamp], languages: Sequence[str]) -> None:
    known = sorted({language for stamp in stamps for language in stamp.captions})
    for language in languages:
        if language not in known:
            raise UserError(f"--language {language}: no captions{nearest(language, known)}; known: {', '.join(known)}")


def _picture(stamp: Stamp, options: StampsOptions, summary: Summary) -> Image | None:
    """The RGBA picture at its size, or None with the reason in ``summary``."""
    from PIL import Image

    try:
        if stamp.path.suffix == ".svg":
            image = _drawn(stamp.path, options.image_size)
        else:
            with Image.open(stamp.path) as opened:
                image = opened.convert("RGBA")
    except ImportError:
        summary.skip('SVG without cairosvg (pip install "vlp[svg]") and the Cairo library', stamp.name)
        return None
    except Exception:  # cairosvg raises whatever its parsers raise
        summary.skip("undecodable picture", stamp.name)
        return None
    image.thumbnail((options.image_size, options.image_size), Image.Resampling.LANCZOS)
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if min(low for low, _ in on_white.getextrema()) > NEARLY_WHITE:  # type: ignore[misc]
        summary.skip("nothing to see on white", stamp.name)
        return None
    return on_white if options.flatten else image


def _drawn(path: Path, longer_side: int) -> Image:
    """An SVG drawn so that its longer side has ``longer_side`` pixels."""
    from PIL import Image

    try:
        import cairosvg
    except OSError as error:  # pip brings the package, but not the library that it calls
        raise ImportError(str(error)) from error

    with Image.open(io.BytesIO(cairosvg.svg2png(url=str(path), output_width=longer_side))) as wide:
        width, height = wide.size
    scale = longer_side / max(width, height)
    size = {"output_width": max(1, round(width * scale)), "output_height": max(1, round(height * scale))}
    with Image.open(io.BytesIO(cairosvg.svg2png(url=str(path), **size))) as drawn:
        return drawn.convert("RGBA")


def _write_sources(options: StampsOptions) -> None:
    lines = [
        "# Sources",
        "",
        "Pictures and captions come from a tree of stamps. Debian's `tuxpaint-stamps-default` (copyright",
        "Bill Kendrick and the contributors of Tux Paint) is under GPL-2; another tree has its own licence.",
        "",
        f"Changes: SVGs drawn at, and large pictures reduced to, {options.image_size} pixels; saved as PNG"
        + (" on white." if options.flatten else "."),
    ]
    (options.out / "SOURCES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
