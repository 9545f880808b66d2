"""The sheet that ``vlp data negatives`` writes, as a page: captions and their changes beside the pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlp.evaluation.report import sheets
from vlp.evaluation.report.figures import histogram
from vlp.evaluation.report.scores import Row, Score
from vlp.evaluation.report.sheet_parts import Bar, Spread, flat, num_shards, picture, with_marks
from vlp.evaluation.report.templates import save
from vlp.evaluation.report.values import Tile, format_value

ACCEPTED = "accepted"
_CHANCE = 0.5
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Text:
    """A changed caption, what differs from the caption marked. ``fate`` numbers the way it went, see `Fate`."""

    fate: int
    content: Markup
    kind: str
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Card:
    """One caption."""

    key: str
    shard: str
    image: Markup | None
    caption: str
    texts: list[Text]

    @property
    def fates(self) -> list[int]:
        return sorted({text.fate for text in self.texts})


@dataclass(frozen=True)
class Fate:
    """What became of texts: accepted (number 0), or rejected by a rule. The page can show those of one only."""

    number: int
    label: str
    captions: int


@dataclass(frozen=True)
class Kind:
    """One kind of change. ``blind`` is its accuracy in the blind test, None where none is measured.

    ``loud`` where that is so high that texts are told from captions without a picture.
    """

    name: str
    accepted: int
    rejected: int
    blind: Row | None = None
    loud: bool = False


class Sheet(sheets.Sheet):
    """What the template asks of a sheet of hard captions."""

    KIND = "vlp negatives sheet"
    VERSION = 1
    MADE_BY = "vlp data negatives SHARDS --json"
    TEMPLATE = "negatives_sheet.html.j2"

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.origin: dict[str, Any] = content["origin"]
        self.asked: dict[str, Any] | None = content["asked"]
        self.texts: int = content["texts"]
        self.accepted: int = content["accepted"]
        self.blind: dict[str, Any] = content["blind"]
        self.kinds = [_kind(one) for one in content["kinds"]]
        self._names = [ACCEPTED, *(rule["name"] for rule in content["rules"])]
        self.cards = [self._card(sample) for sample in content["sheet"]]

    def lead(self) -> str:
        captions, samples = f"{self.content['captions']:,}", f"{self.content['samples']:,}"
        by = self.origin.get("model") or f"the generator {self.origin['generator'].replace('_', ' ')}"
        lead = (
            f"Captions changed by {by} so that they are false of the picture: {captions} captions of {samples} samples "
            f"in {num_shards(self.content['shards'])}. A judge of rules decided which changes may be used."
        )
        missing = self.content["unanswered"]
        return f"{lead} Texts still to be written: {missing:,}; their shards do not count here." if missing else lead

    def tiles(self) -> list[Tile]:
        captions = self.content["captions"]
        none = self.without_negative
        found = [
            Tile(
                _share(captions - none, captions),
                "of the captions have a change",
                f"{none:,} have none and train as before",
            ),
            Tile(
                _share(self.accepted, self.texts),
                "of the changes were accepted",
                f"{self.accepted:,} of {self.texts:,}",
            ),
            Tile(f"{self.accepted / max(1, captions):.1f}", "changes a caption, mean", f"{len(self.kinds)} kinds"),
        ]
        if overall := self.blind["overall"]:
            interval = Score(overall["accuracy"], (overall["low"], overall["high"])).range()
            note = f"chance 50 %, 95 % interval {interval}"
            found.append(
                Tile(format_value(overall["accuracy"], "percent"), "true captions found without a picture", note)
            )
        return found

    @property
    def without_negative(self) -> int:
        return sum(found["number"] for found in self.content["without_negative"].values())

    def rules(self) -> list[Bar]:
        """The accepted texts, then those that each rule rejected, as shares of all texts."""
        rows = [Bar(ACCEPTED, self.accepted, self.accepted / max(1, self.texts))]
        for rule in sorted(self.content["rules"], key=lambda rule: -rule["texts"]):
            if rule["texts"]:
                share = rule["texts"] / max(1, self.texts)
                rows.append(Bar(_plain(rule["name"]), rule["texts"], share, rule["rejects"].replace("`", "")))
        return rows

    def idle_rules(self) -> str:
        return ", ".join(_plain(rule["name"]) for rule in self.content["rules"] if not rule["texts"])

    def charts(self) -> list[Spread]:
        bins = self.content["accepted_a_caption"]
        title, legend = "Accepted changes a caption", f"mean {self.accepted / max(1, self.content['captions']):.2f}"
        return [Spread(title, legend, histogram(f"{title}: {legend}", bins, "accepted changes"))]

    def facts(self) -> list[tuple[str, str]]:
        """What the texts depend on."""
        return flat(self.origin)

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
        image, caption = None, sample["caption"]
        if sample["thumbnail"] is not None:
            image = picture(sample["thumbnail"], sample["width"], sample["height"], caption, sample["key"])
        texts = [
            Text(
                self._names.index(one["reason"] or ACCEPTED),
                _marked(caption, one["text"]),
                one["kind"],
                _plain(one["reason"]),
                one["detail"],
            )
            for one in sorted(sample["texts"], key=lambda one: bool(one["reason"]))
        ]
        return Card(sample["key"], sample["shard"], image, caption, texts)


def write_page(content: dict[str, Any], output: str | Path) -> Path:
    """Write the page of a sheet of hard captions; it needs no network, no server and no script."""
    return save(Sheet(content).page(), Path(output))


def _kind(content: dict[str, Any]) -> Kind:
    name, accepted, rejected, blind = (content[field] for field in ("name", "accepted", "rejected", "blind"))
    if blind is None:
        return Kind(name, accepted, rejected)
    score = Score(blind["accuracy"], (blind["low"], blind["high"]))
    return Kind(name, accepted, rejected, Row(name, name, [score], _CHANCE, blind["pairs"]), blind["loud"])


def _marked(caption: str, text: str) -> Markup:
    """``text`` with the words marked that differ from those of ``caption``; case does not count.

    Of equally many words those that differ in their place, or those of an alignment, whichever are fewer.
    """
    found = list(_WORD.finditer(text))
    theirs, ours = [word.casefold() for word in _WORD.findall(caption)], [one.group().casefold() for one in found]
    blocks = SequenceMatcher(None, theirs, ours, autojunk=False).get_matching_blocks()
    other = set(range(len(ours))) - {place for block in blocks for place in range(block.b, block.b + block.size)}
    if len(theirs) == len(ours):
        moved = {place for place, words in enumerate(zip(theirs, ours, strict=True)) if words[0] != words[1]}
        other = min(moved, other, key=len)
    return with_marks(text, (found[place].span() for place in sorted(other)))


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _share(part: int, whole: int) -> str:
    return format_value(part / max(1, whole), "percent")
