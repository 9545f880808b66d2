"""Durations in steps, samples, epochs or shares of the run, and values that change over them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from vlp.types import UserError

Duration = int | str
"""Steps as a number, or a string such as ``2000 steps``, ``1e6 samples``, ``0.5 epochs`` or ``5%`` (of the run)."""


@dataclass(frozen=True)
class Span:
    """What converts durations: steps of the run, size of the global batch, samples of an epoch."""

    total_steps: int
    global_batch_size: int
    num_samples: int

    def steps(self, duration: Duration, key: str) -> int:
        """``duration`` in whole steps, rounded up."""
        return _rounded_up(self.exactly(duration, key))

    def exactly(self, duration: Duration, key: str) -> float:
        """``duration`` in steps; the last of them may be a part of one."""
        if isinstance(duration, int) and duration >= 0:
            return duration
        number = r"(\d+(?:\.\d*)?(?:e\+?\d+)?)"
        match = re.fullmatch(rf"\s*{number}\s*(steps?|samples?|epochs?|%)\s*", str(duration))
        if not match:
            raise UserError(f"{key}: '{duration}' is no duration; write 2000, '1e6 samples', '0.5 epochs' or '5%'")
        amount, unit = float(match[1]), match[2].rstrip("s")
        steps_per = {
            "step": 1.0,
            "sample": 1 / self.global_batch_size,
            "epoch": self.num_samples / self.global_batch_size,
            "%": self.total_steps / 100,
        }[unit]
        return amount * steps_per


def _rounded_up(steps: float) -> int:
    return math.ceil(steps - 1e-9)


class Schedule(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A value that stays at ``start``, then moves to ``end`` and stays there.

    A ramp is ``{start: 0, end: 1, over: 1 epochs}``, what ends is ``{start: 1, end: 0, after: 50%}``. Of the updates
    that it moves ``over``, the first has ``start`` and the last has ``end``.
    """

    start: float = Field(description="value until it begins to move")
    end: float = Field(description="value when it has arrived")
    after: Duration = Field(0, description="when it begins to move: steps, or '2000 samples', '0.5 epochs', '5%'")
    over: Duration = Field(0, description="how long it takes to arrive, its first and last update included; 0: a jump")
    shape: Literal["linear", "cosine"] = Field("linear", description="of the way between the two")

    def __str__(self) -> str:
        return f"{self.start:g} to {self.end:g}"

    @model_validator(mode="after")
    def _moves(self) -> Schedule:
        if self.start == self.end:
            raise ValueError(f"a schedule from {self.start:g} to {self.end:g} does not move: write the number alone")
        if self.shape != "linear" and self.over == 0:
            raise ValueError(
                f"the shape {self.shape} has no effect on a jump: remove it, or say over how long it moves"
            )
        return self

    def at(self, span: Span, step: int, key: str) -> float:
        """Its value in the update that follows ``step`` finished ones: a pure function, so no state is saved."""
        after, over = span.exactly(self.after, f"{key}.after"), span.exactly(self.over, f"{key}.over")
        first = _rounded_up(after)
        if step < first:
            return self.start
        updates = _rounded_up(after + over) - first  # rounded as one, so that 20% and 80% end with the run
        if updates <= 1 or step >= first + updates - 1:
            return self.end
        way = (step - first) / (updates - 1)
        share = way if self.shape == "linear" else (1 - math.cos(math.pi * way)) / 2
        return self.start + (self.end - self.start) * share

    def check(self, span: Span, key: str) -> None:
        """Refuse durations that are none, one that the run ends before it begins to move, and no duration at all."""
        last = span.total_steps - 1
        if self.at(span, last, key) == self.start and span.steps(self.after, f"{key}.after") > 0:
            raise UserError(
                f"{key}: stays {self.start:g} to the end, since the run has {span.total_steps} steps: lower "
                f"{key}.after, or write the number alone"
            )
        if not span.exactly(self.after, f"{key}.after") and not span.exactly(self.over, f"{key}.over"):
            raise UserError(
                f"{key}: is {self.end:g} from the first step on, so {self.start:g} has no effect: say {key}.after or "
                f"{key}.over, or write the number alone"
            )


Scheduled = float | Schedule


def described(value: Scheduled) -> str:
    """``0.5``, or ``1 to 0``."""
    return str(value) if isinstance(value, Schedule) else f"{value:g}"


def value_at(value: Scheduled, span: Span, step: int, key: str) -> float:
    """The number that a plain or scheduled value is at ``step``; ``key`` names it in errors."""
    return value.at(span, step, key) if isinstance(value, Schedule) else value


def smallest(value: Scheduled) -> float:
    return min(value.start, value.end) if isinstance(value, Schedule) else value


def largest(value: Scheduled) -> float:
    return max(value.start, value.end) if isinstance(value, Schedule) else value


def settled(value: Scheduled) -> float:
    """A value that `objectives.base.Objective.at` has settled for the step."""
    assert not isinstance(value, Schedule), "a schedule has a value at a step only"
    return value
