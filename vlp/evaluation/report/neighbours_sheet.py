"""The sheet that ``vlp data neighbours`` writes, as a page: samples with their neighbours, and what was passed over."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlp.evaluation.report import sheets
from vlp.evaluation.report.figures import histogram
from vlp.evaluation.report.sheet_parts import Bar, Spread, bars, num_shards, picture
from vlp.evaluation.report.templates import save
from vlp.evaluation.report.values import Tile, format_value


@dataclass(frozen=True)
class Shown:
    """A picture with its caption; ``similarity`` to the sample it stands beside, ``reason`` if it was passed over."""

    name: str
    image: Markup
    caption: str
    similarity: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Card:
    """One sample."""

    own: Shown
    neighbours: list[Shown]
    passed_over: list[Shown]


class Sheet(sheets.Sheet):
    """What the template asks of a sheet of neighbours."""

    KIND = "vlp neighbours sheet"
    VERSION = 1
    MADE_BY = "vlp data neighbours SHARDS --model MODEL --json"
    TEMPLATE = "neighbours_sheet.html.j2"

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.origin: dict[str, Any] = content["origin"]
        self.usable: int = content["usable"]
        self.cards = [
            Card(_shown(one), [_shown(other) for other in one["neighbours"]], [_shown(x) for x in one["passed_over"]])
            for one in content["sheet"]
        ]

    def lead(self) -> str:
        number = self.origin["number"]
        return (
            f"For each of {self.content['samples']:,} pictures in {num_shards(self.content['shards'])} the "
            f"{f'{number} others that are' if number > 1 else 'other one that is'} most similar by the image tower of "
            f"{self.origin['model']}."
        )

    def tiles(self) -> list[Tile]:
        without = self.content["without"]["number"]
        share = (self.usable - without) / max(1, self.usable)
        found = [Tile(format_value(share, "percent"), "of the pictures have neighbours", f"{without:,} have none")]
        if self.usable > without:
            low, middle, high = (self._similarity(q) for q in (0.05, 0.5, 0.95))
            found.append(
                Tile(f"{middle:.2f}", "similarity of the nearest, median", f"5 to 95 %: {low:.2f} to {high:.2f}")
            )
        if self.content["recall"] is not None:
            search = self.origin["index"]
            note = f"{search['kind']}, {search['probes']} lists, on samples compared with all pictures"
            found.append(Tile(format_value(self.content["recall"], "percent"), "of the true neighbours found", note))
        passed_over = sum(one["number"] for one in self.content["passed_over"])
        found.append(Tile(f"{passed_over:,}", "candidates passed over", "nearer than the last neighbour"))
        return found

    def _similarity(self, share: float) -> float:
        """The lower edge of the bin that holds this quantile."""
        lows, _, numbers = zip(*self.content["similarity"], strict=True)
        ends = list(accumulate(numbers))
        return float(lows[bisect_left(ends, share * ends[-1])])

    def reasons(self) -> list[Bar]:
        rows = self.content["passed_over"]
        total = max(1, sum(one["number"] for one in rows))
        return [Bar(one["reason"], one["number"], one["number"] / total, one["meaning"]) for one in rows]

    def charts(self) -> list[Spread]:
        if not self.content["similarity"]:
            return []
        title, legend = "Similarity of the nearest neighbour", "cosine of the embeddings, each sample counts once"
        return [Spread(title, legend, histogram(f"{title}: {legend}", self.content["similarity"], "similarity"))]

    def left_out(self) -> list[Bar]:
        """Samples that cannot be used."""
        rows = [(kind, one["number"]) for kind, one in self.content["left_out"].items()]
        return bars(rows, self.content["samples"])

    def facts(self) -> list[tuple[str, str]]:
        """All that the neighbours follow from."""
        search = self.origin["index"]
        lists = f", {search['probes']} lists searched" if search["probes"] else ""
        return [
            ("model", self.origin["model"]),
            ("weights", self.origin["weights"]),
            ("captions", ", ".join(self.origin["caption"])),
            ("neighbours", f"{self.origin['number']}"),
            ("near duplicates above", f"{self.origin['duplicate_above']:g}"),
            ("search", f"{search['kind']}{lists}"),
        ]


def write_page(content: dict[str, Any], output: str | Path) -> Path:
    """Write the page of a sheet of neighbours; it needs no network, no server and no script."""
    return save(Sheet(content).page(), Path(output))


def _shown(one: dict[str, Any]) -> Shown:
    name = f"{one['shard']}: {one['key']}"
    image = picture(one["thumbnail"], one["width"], one["height"], one["caption"], name)
    similarity = f"{one['similarity']:.3f}" if "similarity" in one else ""
    return Shown(name, image, one["caption"], similarity, one.get("reason", ""))
