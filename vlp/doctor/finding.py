"""What the doctor says of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["bad", "look", "ok"]


@dataclass(frozen=True)
class Finding:
    """A line: how it is, the figures, and what to do about it (empty where all is well).

    ``bad`` costs the run its result, ``look`` costs time or quality, or may be meant.
    """

    topic: str
    verdict: Verdict
    says: str
    do: str = ""


def judged(topic: str, says: str, do: str, *, bad: bool, look: bool) -> Finding:
    """The worse of the two that is true; ``do`` only if one is."""
    verdict: Verdict = "bad" if bad else "look" if look else "ok"
    return Finding(topic, verdict, says, do if verdict != "ok" else "")


def times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"
