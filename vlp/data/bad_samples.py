"""Counting the samples that could not be used, and ending a run that has too many."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any

from vlp.types import Skipped, UserError


class BadSamples:
    """Counts what could not be used, by kind with an example, and says when it is too much.

    The fraction is of all samples drawn, good (``seen``) and bad, but at least of the size of the data set (or of
    10,000), so that one bad sample in the first batch does not end a run.
    """

    def __init__(self, max_fraction: float, num_samples: int) -> None:
        self.kinds: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.seen = 0
        self._max_fraction = max_fraction
        self._at_least = min(num_samples, 10_000)

    @property
    def total(self) -> int:
        return self.kinds.total()

    @property
    def fraction(self) -> float:
        return self.total / self.drawn

    @property
    def drawn(self) -> int:
        return max(self.seen + self.total, self._at_least, 1)

    def add(self, skipped: Iterable[Skipped], seen: int) -> None:
        """Count ``skipped`` beside ``seen`` more samples that could be used."""
        for bad in skipped:
            self.kinds[bad.kind] += bad.samples
            self.examples.setdefault(bad.kind, bad.where)
        self.seen += seen

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that totals go on after a resume."""
        return {"kinds": dict(self.kinds), "examples": self.examples, "seen": self.seen}

    def merged(self, states: Iterable[dict[str, Any]]) -> BadSamples:
        """New counts under the same limit: the sum of ``states`` (of every rank, of the run before a resume)."""
        total = copy.copy(self)
        total.kinds, total.examples, total.seen = Counter(), {}, 0
        for state in states:
            total.kinds.update(state["kinds"])
            total.examples = {**state["examples"], **total.examples}
            total.seen += state["seen"]
        return total

    def summary(self) -> list[str]:
        """One line a kind, the most frequent first."""
        return [f"skipped {count} x {kind}, such as {self.examples[kind]}" for kind, count in self.kinds.most_common()]

    def check(self) -> None:
        """Raises UserError once the fraction is above the limit."""
        if self.fraction > self._max_fraction:
            kind, count = self.kinds.most_common(1)[0]
            most = f"most often '{kind}' ({count} time{'s' * (count > 1)}, such as {self.examples[kind]})"
            raise UserError(
                f"data.max_bad_fraction: {self.total} bad samples among {self.drawn} "
                f"exceed the limit of {self._max_fraction:g}, {most}: mend the shards or raise it"
            )
