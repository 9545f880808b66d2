"""The data sheet that ``vlp data stats`` writes, as a page of its own and as a section of a run's report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlp.evaluation.report import sheets
from vlp.evaluation.report.sheet_parts import Bar, Spread, bars, num_shards, picture, spread
from vlp.evaluation.report.templates import save
from vlp.evaluation.report.values import Tile, format_value

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
class Shown:
    """A sample with its picture."""

    name: str
    key: str
    image: Markup
    caption: str


class Sheet(sheets.Sheet):
    """What the templates ask of a data sheet, the JSON of ``vlp data stats``."""

    KIND = "vlp data sheet"
    VERSION = 1
    MADE_BY = "vlp data stats SHARDS --out"
    TEMPLATE = "data_sheet.html.j2"

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.samples: int = content["samples"]
        self.captions_from = ", ".join(content["captions_from"])
        self.alike = content["duplicates"]["look"] if isinstance(content["duplicates"]["look"], dict) else None
        self.same: dict[str, Any] = content["duplicates"]["bytes"]
        self.not_counted = [x for x in (content["duplicates"]["look"], content["languages"]) if isinstance(x, str)]
        self.sheet = [self._shown(sample) for sample in content["sheet"]]

    def lead(self) -> str:
        shards, size = self.content["shards"], self.content["bytes"]
        return (
            f"{self.samples:,} pictures with their texts in {num_shards(shards)}, {_size(size)}. All of them were read."
        )

    def tiles(self) -> list[Tile]:
        pictures, captions, found = self.content["pictures"], self.content["captions"], []
        found.append(Tile(f"{self.samples:,}", "samples", num_shards(self.content["shards"])))
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
            spread(self.content[part][key], title, unit)
            for of, key, title, unit in SPREADS
            if of == part and self.content[part][key]
        ]

    def formats(self) -> list[Bar]:
        """Formats, modes and what else is special, as shares of the pictures."""
        pictures = self.content["pictures"]
        rows = [*pictures["formats"].items(), *((f"mode {k}", n) for k, n in pictures["modes"].items())]
        return bars([*rows, *pictures["traits"].items()], pictures["number"])

    def most_frequent(self) -> list[Bar]:
        captions = self.content["captions"]
        return bars(
            [(one["caption"], one["number"]) for one in captions["most_frequent"][:MAX_CAPTIONS]], captions["number"]
        )

    def languages(self) -> list[Bar]:
        languages = self.content["languages"]
        if isinstance(languages, str):
            return []
        sure = languages["sure"]
        return bars(list(sure.items())[:MAX_LANGUAGES], sum(sure.values()))

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
        return bars(list(self.content["members"].items()), self.samples)

    def duplicates(self) -> list[tuple[str, dict[str, Any]]]:
        found = [("the bytes of another", self.same)]
        return [*found, ("the look of another", self.alike)] if self.alike else found

    def layers(self) -> list[Bar]:
        return bars([(one["name"], one["shards"]) for one in self.content["layers"]], self.content["shards"])

    def groups(self) -> list[tuple[str, list[Shown]]]:
        """The largest groups of pictures that look alike, or else have the same bytes."""
        source = self.alike or self.same
        return [
            (f"{group['number']:,} pictures", [self._shown(sample) for sample in group["samples"]])
            for group in source["groups"]
        ]

    def _shown(self, sample: dict[str, Any]) -> Shown:
        image = picture(
            self.content["thumbnails"][sample["sample"]],
            sample["width"],
            sample["height"],
            sample["caption"],
            sample["sample"],
        )
        return Shown(sample["sample"], sample["sample"].rpartition(": ")[2], image, sample["caption"])


def write_page(content: dict[str, Any], output: str | Path) -> Path:
    """Write the page of a data sheet; it needs no network, no server and no script."""
    return save(Sheet(content).page(), Path(output))


def _most(table: dict[str, int]) -> str:
    return ", ".join(list(table)[:3])


def _size(count: int) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
