"""The sheet that ``vlp caption MODEL SHARDS`` writes, as a page: pictures with the captions they had and were given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlp.evaluation.report import sheets
from vlp.evaluation.report.captions import mark_differences
from vlp.evaluation.report.sheet_parts import Bar, Spread, bars, flat, num_shards, picture, spread
from vlp.evaluation.report.templates import save
from vlp.evaluation.report.values import Tile, format_value


@dataclass(frozen=True)
class Card:
    """One sample; words that only one of its two captions has are marked."""

    name: str
    key: str
    image: Markup
    true: Markup
    told: Markup


class Sheet(sheets.Sheet):
    """What the template asks of a sheet of captions."""

    KIND = "vlp captions sheet"
    VERSION = 1
    MADE_BY = "vlp caption MODEL SHARDS --json"
    TEMPLATE = "captions_sheet.html.j2"

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.origin: dict[str, Any] = content["origin"]
        self.captions: int = content["captions"]
        self.cards = [_card(one) for one in content["sheet"]]

    def lead(self) -> str:
        return (
            f"{self.origin['model']} looked at the pictures of {num_shards(self.content['shards'])} and told "
            f"{self.captions:,} captions."
        )

    def tiles(self) -> list[Tile]:
        samples, distinct, words = self.content["samples"], self.content["distinct"], self.content["words"]
        found = [
            Tile(
                format_value(self.captions / max(1, samples), "percent"),
                "of the samples have a caption",
                f"{samples - self.captions:,} have none",
            ),
            Tile(f"{distinct:,}", "different captions", f"each {self.captions / max(1, distinct):.1f} times, mean"),
        ]
        if words:
            few, many = words["quantiles"]["5 %"], words["quantiles"]["95 %"]
            found.append(Tile(f"{words['mean']:.1f}", "words a caption, mean", f"5 to 95 %: {few} to {many}"))
        return found

    def most_frequent(self) -> list[Bar]:
        rows = [(one["caption"], one["number"]) for one in self.content["most_frequent"]]
        return bars(rows, self.captions)

    def charts(self) -> list[Spread]:
        return [spread(self.content["words"], "Words a caption", "words")] if self.content["words"] else []

    def left_out(self) -> list[Bar]:
        """Samples without a caption, by the reason."""
        rows = [(kind, one["number"]) for kind, one in self.content["left_out"].items()]
        return bars(rows, self.content["samples"])

    def facts(self) -> list[tuple[str, str]]:
        """All that the captions follow from."""
        return flat(self.origin)


def write_page(content: dict[str, Any], output: str | Path) -> Path:
    """Write the page of a sheet of captions; it needs no network, no server and no script."""
    return save(Sheet(content).page(), Path(output))


def _card(one: dict[str, Any]) -> Card:
    name = f"{one['shard']}: {one['key']}"
    image = picture(one["thumbnail"], one["width"], one["height"], one["told"], name)
    true, told = mark_differences(one["caption"], one["told"])
    return Card(name, one["key"], image, true, told)
