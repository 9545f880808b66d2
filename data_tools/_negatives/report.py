"""What was made of the captions, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from data_tools._language_models.survey import LeftOut
from data_tools._negatives.base import Negative
from data_tools._negatives.blind import CHANCE, FEWEST, Accuracy, BlindTest, blind_test
from data_tools._negatives.figures import NegativeFigures
from data_tools._negatives.judge import REASONS
from data_tools._negatives.layers import Work, Written
from vlp.types import UserError

LOUD_BLIND = 0.6


@dataclass
class NegativesReport:
    """What became of all shards; ``unanswered`` texts are asked for by the next run."""

    paths: Sequence[str]
    work: Work
    made_by: Mapping[str, Any]
    figures: NegativeFigures = field(init=False)
    left_out: LeftOut = field(default_factory=LeftOut)
    unanswered: int = 0
    unfinished: int = 0

    def __post_init__(self) -> None:
        self.figures = NegativeFigures(self.work.num_shown, self.work.num_tested)

    def add(self, written: Written) -> None:
        self.figures += written.figures
        self.left_out += written.left_out
        self.unanswered += written.unanswered
        self.unfinished += bool(written.unanswered)

    @property
    def reasons(self) -> dict[str, str]:
        """Every rule that can reject -> what it rejects."""
        return {**self.work.generator.reasons, **REASONS}

    @cached_property
    def blind(self) -> BlindTest | str:
        """Or why there is none, in one sentence."""
        captions: dict[str, dict[str, Negative]] = {}
        for one in self.figures.tested:
            changed = captions.setdefault(one.caption, {})
            changed |= {
                verdict.text: Negative(verdict.text, verdict.kind) for verdict in one.verdicts if not verdict.reason
            }
        try:
            found = blind_test(
                {caption: list(captions[caption].values()) for caption in sorted(captions)}, self.work.place.seed
            )
        except UserError as error:
            return str(error)
        return found or f"fewer than {FEWEST} different captions have a change, which is too few for a blind test"

    @property
    def measured(self) -> dict[str, Accuracy]:
        """Of each kind of which there is enough."""
        kinds = {} if isinstance(self.blind, str) else self.blind.kinds
        return {name: one for name, one in kinds.items() if one.pairs >= FEWEST}

    def lines(self) -> list[str]:
        """The counts, and the tables of kinds and reasons."""
        figures, accepted, rejected = self.figures, self.figures.accepted(), self.figures.rejected()
        captions, texts = figures.num_captions, figures.num_texts
        found = [f"captions: {captions:,}, {len(figures.captions):,} of them different"]
        found += [f"  {line}" for line in self.left_out.lines()]
        without = figures.without.counts.total()
        if captions:
            found.append(f"without a possible negative: {without:,} ({without / captions:.1%}), which train as before")
        found += [f"  {line}" for line in _named(figures.without)]
        if texts:
            kept = accepted.total()
            found.append(f"accepted {kept:,} of {texts:,} texts ({kept / texts:.1%}), {kept / captions:.1f} a caption")
            found += _table(accepted, kept, {})
            if rejected:
                found.append("rejected")
                found += _table(rejected, texts, self.reasons)
        return found

    def lines_on_blind_test(self) -> list[str]:
        if isinstance(self.blind, str):
            return [self.blind]
        rows = {"all": self.blind.overall, **self.measured}
        few = [name for name in self.blind.kinds if name not in self.measured]
        width = max(map(len, rows))
        found = [
            "blind test: of true and changed caption a classifier without pictures takes the true one (chance 50 %)"
        ]
        found += [
            f"  {one.accuracy:>6.1%}  {one.low:>6.1%} to {one.high:>6.1%}  {name:<{width}}  {one.pairs:>7,} pairs"
            for name, one in rows.items()
        ]
        if few:
            found.append(f"  not told, for fewer than {FEWEST} pairs: {', '.join(few)}")
        found += [
            f"WARNING: {name}: {one.accuracy:.0%} in the blind test: its words tell true from false without the picture"
            for name, one in rows.items()
            if is_loud(one)
        ]
        return found

    def show(self) -> None:
        for line in self.lines():
            print(line)
        if self.figures.accepted():
            for line in self.lines_on_blind_test():
                print(line)
            name = self.work.place.name
            print(f"train with data.hard_captions: [{{source: layer.{name}.negatives}}] and objective hard_negatives")


def is_loud(one: Accuracy) -> bool:
    """Whether a kind of change is told from true captions too well, and by more than chance."""
    return one.accuracy > LOUD_BLIND and one.low > CHANCE


def _named(without: LeftOut) -> Iterable[str]:
    for kind, number in without.counts.items():
        more = " ..." if number > len(without.examples[kind]) else ""
        yield f"{number:,}, {kind}: {', '.join(without.examples[kind])}{more}"


def _table(rows: Mapping[str, int], total: int, meanings: Mapping[str, str]) -> Iterable[str]:
    width = max(map(len, rows), default=0)
    for name, number in sorted(rows.items(), key=lambda row: (-row[1], row[0])):
        yield f"  {number:>11,}  {number / total:>6.1%}  {name:<{width}}  {meanings.get(name, '')}".rstrip()
