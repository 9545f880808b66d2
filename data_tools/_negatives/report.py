"""What was made of the captions, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from data_tools._language_models.survey import LeftOut
from data_tools._negatives.figures import NegativeFigures
from data_tools._negatives.judge import REASONS
from data_tools._negatives.layers import Work, Written

LOUD_BLIND = 0.6


@dataclass
class NegativesReport:
    """What became of all shards; ``unanswered`` texts are asked for by the next run."""

    paths: Sequence[str]
    work: Work
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
        return {**REASONS, **self.work.generator.REASONS}

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

    def show(self) -> None:
        for line in self.lines():
            print(line)
        if self.figures.accepted():
            name = self.work.place.name
            print(f"train with data.hard_captions: [{{source: layer.{name}.negatives}}] and objective hard_negatives")


def _named(without: LeftOut) -> Iterable[str]:
    for kind, number in without.counts.items():
        more = " ..." if number > len(without.examples[kind]) else ""
        yield f"{number:,}, {kind}: {', '.join(without.examples[kind])}{more}"


def _table(rows: Mapping[str, int], total: int, meanings: Mapping[str, str]) -> Iterable[str]:
    width = max(map(len, rows))
    for name, number in sorted(rows.items(), key=lambda row: (-row[1], row[0])):
        yield f"  {number:>11,}  {number / total:>6.1%}  {name:<{width}}  {meanings.get(name, '')}".rstrip()
