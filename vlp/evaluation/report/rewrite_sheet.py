"""The sheet that ``vlp data rewrite`` writes, as a page: originals, rewrites and rejects beside their pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlp.evaluation.report import sheets
from vlp.evaluation.report.figures import histogram
from vlp.evaluation.report.sheet_parts import Bar, Spread, flat, num_shards, picture, spread, with_marks
from vlp.evaluation.report.templates import save
from vlp.evaluation.report.values import Tile, format_value

ACCEPTED = "accepted"
_WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass(frozen=True)
class Text:
    """What the model wrote; words that its original lacks are marked. ``fate`` numbers the way it went, see `Fate`."""

    fate: int
    content: Markup
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Card:
    """One sample."""

    key: str
    shard: str
    image: Markup | None
    original: str
    texts: list[Text]

    @property
    def fates(self) -> list[int]:
        return sorted({text.fate for text in self.texts})


@dataclass(frozen=True)
class Fate:
    """What became of texts: accepted (number 0), or rejected by a rule. The page can show those of one only."""

    number: int
    label: str
    samples: int


class Sheet(sheets.Sheet):
    """What the template asks of a sheet of rewrites."""

    KIND = "vlp rewrite sheet"
    VERSION = 1
    MADE_BY = "vlp data rewrite SHARDS --json"
    TEMPLATE = "rewrite_sheet.html.j2"

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.origin: dict[str, Any] = content["origin"]
        self.prompt: dict[str, Any] = content["prompt"]
        self.texts: int = content["texts"]
        self.accepted: int = content["accepted"]
        self._names = [ACCEPTED, *(rule["name"] for rule in content["rules"])]
        self.cards = [self._card(sample) for sample in content["sheet"]]

    def lead(self) -> str:
        captions, samples = f"{self.content['captions']:,}", f"{self.content['samples']:,}"
        shards, number = num_shards(self.content["shards"]), self.origin["number"]
        model = self.origin.get("model", self.origin.get("engine", "A model"))
        lead = (
            f"{model} rewrote {captions} different captions of {samples} samples in {shards}, each "
            f"{'once' if number == 1 else f'{number} times'}; a gate of rules decided which texts may be used."
        )
        missing = self.content["unanswered"]
        return f"{lead} Texts still to be written: {missing:,}; their shards do not count here." if missing else lead

    def tiles(self) -> list[Tile]:
        samples = self.content["samples"] - self.content["without_caption"]
        none = self.content["accepted_a_sample"][0][2]
        found = [
            Tile(
                _share(self.accepted, self.texts), "of the texts were accepted", f"{self.accepted:,} of {self.texts:,}"
            ),
            Tile(_share(samples - none, samples), "of the samples have a rewrite", f"{none:,} have none"),
        ]
        before, after = (self.content["words"][side] for side in ("before", "after"))
        if before and after:
            change = f"{before['mean']:.1f} → {after['mean']:.1f}"
            found.append(Tile(change, "words a caption, mean", "originals → accepted rewrites"))
        words = self.content["vocabulary"]
        if words["originals"]:
            grown = f"× {words['with_rewrites'] / words['originals']:.2f}"
            note = f"{words['originals']:,} → {words['with_rewrites']:,} different words"
            found.append(Tile(grown, "vocabulary, with the rewrites", note))
        tokens = self.content["tokens"]
        if tokens["written"]:
            found.append(Tile(f"{tokens['written']:,}", "tokens written", f"{tokens['read']:,} read"))
        return found

    def rules(self) -> list[Bar]:
        """The accepted texts, then those that each rule rejected, as shares of all texts."""
        rows = [Bar(ACCEPTED, self.accepted, self.accepted / max(1, self.texts))]
        for rule in self.content["rules"]:
            if rule["texts"]:
                share = rule["texts"] / max(1, self.texts)
                rows.append(Bar(_plain(rule["name"]), rule["texts"], share, rule["rejects"].replace("`", "")))
        return rows

    def unused_rules(self) -> list[tuple[str, str]]:
        """Rules that rejected nothing, and those that were switched off."""
        idle = [rule for rule in self.content["rules"] if not rule["texts"]]
        groups = (
            ("Rejected nothing", [_plain(rule["name"]) for rule in idle if not rule["off"]]),
            ("Switched off", [_plain(rule["name"]) for rule in idle if rule["off"]]),
        )
        return [(title, ", ".join(names)) for title, names in groups if names]

    def charts(self) -> list[Spread]:
        bins = self.content["accepted_a_sample"]
        mean = sum(low * count for low, _, count in bins) / max(1, sum(count for *_, count in bins))
        title, legend = "Accepted rewrites a sample", f"mean {mean:.2f} of {self.origin['number']}"
        found = [Spread(title, legend, histogram(f"{title}: {legend}", bins, "accepted rewrites"))]
        for side, title in (("before", "Words an original"), ("after", "Words an accepted rewrite")):
            if self.content["words"][side]:
                found.append(spread(self.content["words"][side], title, "words"))
        return found

    def facts(self) -> list[tuple[str, str]]:
        """What the texts depend on, and the options of the gate."""
        return flat({**self.origin, **{f"gate: {name}": value for name, value in self.content["gate"].items()}})

    @cached_property
    def fates(self) -> list[Fate]:
        """Those that the samples show."""
        numbers = [number for card in self.cards for number in card.fates]
        return [
            Fate(number, _plain(name), numbers.count(number))
            for number, name in enumerate(self._names)
            if number in numbers
        ]

    def _card(self, sample: dict[str, Any]) -> Card:
        image, original = None, sample["original"]
        if sample["thumbnail"] is not None:
            image = picture(sample["thumbnail"], sample["width"], sample["height"], original, sample["key"])
        texts = [Text(0, _marked(original, text)) for text in sample["accepted"]]
        for one in sample["rejected"]:
            content = _marked(original, one["text"])
            texts.append(Text(self._names.index(one["reason"]), content, _plain(one["reason"]), one["detail"]))
        return Card(sample["key"], sample["shard"], image, original, texts)


def write_page(content: dict[str, Any], output: str | Path) -> Path:
    """Write the page of a sheet of rewrites; it needs no network, no server and no script."""
    return save(Sheet(content).page(), Path(output))


def _marked(original: str, text: str) -> Markup:
    """``text`` with the words that ``original`` has nowhere marked; case does not count."""
    known = {word.casefold() for word in _WORD.findall(original)}
    return with_marks(text, (found.span() for found in _WORD.finditer(text) if found.group().casefold() not in known))


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _share(part: int, whole: int) -> str:
    return format_value(part / max(1, whole), "percent")
