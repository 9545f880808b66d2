"""The data sheet that ``vlp data stats`` writes, as a page of its own and as a section of a run's report."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from vlp.evaluation.report.figures import histogram
from vlp.evaluation.report.templates import template
from vlp.evaluation.report.values import Tile, format_value
from vlp.types import UserError

KIND, VERSION = "vlp data sheet", 1
TINY = 64  # pixels; smaller pictures are enlarged by a whole factor, unblurred
SHOWN_PIXELS = 96
MAX_CAPTIONS = 10
MAX_FIELDS = 40
MAX_LANGUAGES = 15
SPREADS = (
    ("pictures", "width", "Width", "pixels"),
    ("pictures", "height", "Height", "pixels"),
    ("pictures", "aspect", "Aspect", "width divided by height"),
    ("pictures", "bytes", "Bytes a picture", "bytes"),
    ("captions", "words", "Words a caption", "words"),
    ("captions", "characters", "Characters a caption", "characters"),
)


@dataclass(frozen=True)
class Spread:
    """One quantity: its chart, or the only value it has."""

    title: str
    legend: str
    chart: Markup | None


@dataclass(frozen=True)
class Bar:
    """One row of a table of shares; ``share`` is from 0 to 1."""

    label: str
    number: int
    share: float
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """A sample with its picture."""

    name: str
    key: str
    image: Markup
    caption: str


class DataSheetView:
    """What the templates ask of a data sheet.

    Args:
        content: the JSON of ``vlp data stats``.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.name: str = content["name"]
        self.samples: int = content["samples"]
        self.captions_from = ", ".join(content["captions_from"])
        self.alike = content["duplicates"]["look"] if isinstance(content["duplicates"]["look"], dict) else None
        self.same: dict[str, Any] = content["duplicates"]["bytes"]
        self.not_counted = [x for x in (content["duplicates"]["look"], content["languages"]) if isinstance(x, str)]
        self.sheet = [self._shown(sample) for sample in content["sheet"]]

    def lead(self) -> str:
        shards, size = self.content["shards"], self.content["bytes"]
        return f"{self.samples:,} pictures with their texts in {_shards(shards)}, {_size(size)}. All of them were read."

    def tiles(self) -> list[Tile]:
        pictures, captions, found = self.content["pictures"], self.content["captions"], []
        found.append(Tile(f"{self.samples:,}", "samples", _shards(self.content["shards"])))
        if pictures["width"]:
            width, height = (pictures[side]["quantiles"]["50 %"] for side in ("width", "height"))
            found.append(Tile(f"{width:,} × {height:,}", "pixels, median width and height", _most(pictures["formats"])))
        if captions["words"]:
            words = captions["words"]["quantiles"]
            note = f"5 to 95 %: {words['5 %']:,} to {words['95 %']:,}"
            found.append(Tile(f"{words['50 %']:,}", "words a caption, median", note))
            share = captions["repeated"] / captions["number"]
            note = f"{captions['distinct']:,} different texts"
            found.append(Tile(format_value(share, "percent"), "of captions stand more than once", note))
        if self.same["number"]:
            share = self.same["repeated"] / self.same["number"]
            note = f"{self.alike['repeated']:,} look like another" if self.alike else ""
            label = "of pictures have the bytes of another"
            found.append(Tile(format_value(share, "percent"), label, note))
        languages = self.languages()
        if languages:
            first = languages[0]
            share = first.number / sum(self.content["languages"]["sure"].values())
            found.append(
                Tile(format_value(share, "percent"), f"of captions are {first.label}, where the language is sure")
            )
        number = sum(defect["number"] for defect in self.content["defects"].values())
        found.append(Tile(f"{number:,}", "defects", "" if number else "every sample could be used"))
        return found

    def spreads(self, part: str) -> list[Spread]:
        return [
            _spread(self.content[part][key], title, unit)
            for of, key, title, unit in SPREADS
            if of == part and self.content[part][key]
        ]

    def formats(self) -> list[Bar]:
        """Formats, modes and what else is special, as shares of the pictures."""
        pictures = self.content["pictures"]
        rows = [*pictures["formats"].items(), *((f"mode {k}", n) for k, n in pictures["modes"].items())]
        return _bars([*rows, *pictures["traits"].items()], pictures["number"])

    def most_frequent(self) -> list[Bar]:
        captions = self.content["captions"]
        return _bars(
            [(one["caption"], one["number"]) for one in captions["most_frequent"][:MAX_CAPTIONS]], captions["number"]
        )

    def languages(self) -> list[Bar]:
        languages = self.content["languages"]
        if isinstance(languages, str):
            return []
        sure = languages["sure"]
        return _bars(list(sure.items())[:MAX_LANGUAGES], sum(sure.values()))

    def language_lengths(self) -> list[Bar]:
        languages = self.content["languages"]
        lengths = {} if isinstance(languages, str) else languages["by_length"]
        return [
            Bar(name, one["sure"], one["sure"] / max(1, one["number"]), f"of {one['number']:,}")
            for name, one in lengths.items()
        ]

    def fields(self) -> list[Bar]:
        found = []
        for one in self.content["fields"][:MAX_FIELDS]:
            kinds = ", ".join(one["types"])
            found.append(Bar(one["name"], one["samples"], one["samples"] / max(1, self.samples), kinds))
        return found

    def members(self) -> list[Bar]:
        return _bars(list(self.content["members"].items()), self.samples)

    def duplicates(self) -> list[tuple[str, dict[str, Any]]]:
        found = [("the bytes of another", self.same)]
        return [*found, ("the look of another", self.alike)] if self.alike else found

    def layers(self) -> list[Bar]:
        return _bars([(one["name"], one["shards"]) for one in self.content["layers"]], self.content["shards"])

    def groups(self) -> list[tuple[str, list[Shown]]]:
        """The largest groups of pictures that look alike, or else have the same bytes."""
        source = self.alike or self.same
        return [
            (f"{group['number']:,} pictures", [self._shown(sample) for sample in group["samples"]])
            for group in source["groups"]
        ]

    def _shown(self, sample: dict[str, Any]) -> Shown:
        uri = self.content["thumbnails"][sample["sample"]]
        if not uri.startswith("data:image/webp;base64,"):
            raise UserError(
                f"the thumbnail of {sample['sample']} is no picture in the file itself: make the sheet anew"
            )
        side = max(sample["width"], sample["height"])
        factor = max(1, SHOWN_PIXELS // side) if side <= TINY else min(1.0, SHOWN_PIXELS / side)
        width, height = (max(1, round(sample[name] * factor)) for name in ("width", "height"))
        tiny = ' class="tiny"' if side <= TINY else ""
        image = Markup(
            f'<img{tiny} loading="lazy" width="{width}" height="{height}" alt="{escape(sample["caption"])}" '
            f'src="{escape(uri)}">'
        )
        return Shown(sample["sample"], sample["sample"].rpartition(": ")[2], image, sample["caption"])


def read_sheet(path: str | Path) -> DataSheetView:
    """The sheet in a JSON file of ``vlp data stats``.

    Raises:
        UserError: there is no such file, it holds no data sheet, or one of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}: write it with vlp data stats SHARDS --out {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content["kind"] == KIND
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no data sheet: write one with vlp data stats SHARDS --out {path}") from error
    if not known or content.get("version") != VERSION:
        raise UserError(f"{path} is no data sheet of this version: write it anew with vlp data stats --out {path}")
    try:
        return DataSheetView(content)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} lacks {error}: write it anew with vlp data stats SHARDS --out {path}") from error


def write_report_of_data(path: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of the data sheet in the JSON file ``path`` (default: beside it, as .html) and return its path.

    Raises:
        UserError: ``path`` is no data sheet, or ``output`` is a directory.
    """
    return _write(read_sheet(path), Path(output) if output is not None else Path(path).with_suffix(".html"))


def write_page(content: dict[str, Any], output: str | Path) -> Path:
    """Write the page of a data sheet; it needs no network, no server and no script."""
    return _write(DataSheetView(content), Path(output))


def _write(view: DataSheetView, path: Path) -> Path:
    if path.is_dir():
        raise UserError(f"--output {path} is a directory: name a file, such as {path / 'data.html'}")
    page = template("data_sheet.html.j2").render(data=view, percent=partial(format_value, unit="percent"))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_text(page, encoding="utf-8", errors="backslashreplace")
    os.replace(unfinished, path)
    return path


def _spread(content: dict[str, Any], title: str, unit: str) -> Spread:
    number = _figure
    if content["min"] == content["max"]:
        return Spread(title, f"all {number(content['min'])}", None)
    quantiles = content["quantiles"]
    legend = (
        f"median {number(quantiles['50 %'])} · 5 to 95 %: {number(quantiles['5 %'])} to {number(quantiles['95 %'])} · "
        f"all: {number(content['min'])} to {number(content['max'])}"
    )
    return Spread(title, legend, histogram(f"{title}: {legend}", content["histogram"], unit))


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _shards(number: int) -> str:
    return f"{number:,} {'shard' if number == 1 else 'shards'}"


def _bars(rows: list[tuple[str, int]], total: int) -> list[Bar]:
    return [Bar(label, number, number / max(1, total)) for label, number in rows]


def _most(table: dict[str, int]) -> str:
    return ", ".join(list(table)[:3])


def _size(count: int) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
