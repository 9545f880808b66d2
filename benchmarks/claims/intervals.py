"""Paired differences over seeds: their mean with a 95 % t-interval, and the verdict that follows from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Expected = Literal["up", "down", "same", "not lower", "not higher"]
SHOWN, IN_PART, NOT_SHOWN, CONTRADICTED = "shown", "shown in part", "not shown", "contradicted"
MIN_SEEDS = 5

# 97.5 % quantiles of Student's t for 1 to 19 degrees of freedom: the two-sided 95 % interval of 2 to 20 seeds.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093),
)
MAX_SEEDS = len(T_QUANTILES) + 1


def spread(values: Sequence[float]) -> dict[str, Any]:
    """``num``, ``mean``, and ``low`` and ``high`` of its 95 % t-interval; null where the values do not give them."""
    if not values or not all(map(math.isfinite, values)):
        return {"num": len(values), "mean": None, "low": None, "high": None}
    mean = statistics.fmean(values)
    if len(values) == 1:
        return {"num": 1, "mean": mean, "low": None, "high": None}
    half = T_QUANTILES[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return {"num": len(values), "mean": mean, "low": mean - half, "high": mean + half}


def verdict(found: Mapping[str, Any], expected: Expected, margin: float = 0.0) -> str:
    """What the interval of `spread` says about the expectation.

    "up" and "down" are shown by an interval that excludes 0 on that side, and contradicted on the other. "same" is
    shown by one that lies within ± ``margin``, "not lower" by one above -``margin``, "not higher" by one below
    ``margin``; they are contradicted by one wholly beyond the margin. Fewer than ``MIN_SEEDS`` seeds show
    nothing, and no more does a value that is not finite.
    """
    if found["num"] < MIN_SEEDS or found["mean"] is None:
        return NOT_SHOWN
    low, high = found["low"], found["high"]
    shown = {
        "up": low > 0,
        "down": high < 0,
        "same": -margin <= low and high <= margin,
        "not lower": low >= -margin,
        "not higher": high <= margin,
    }
    contradicted = {
        "up": high < 0,
        "down": low > 0,
        "same": low > margin or high < -margin,
        "not lower": high < -margin,
        "not higher": low > margin,
    }
    return SHOWN if shown[expected] else CONTRADICTED if contradicted[expected] else NOT_SHOWN


def together(findings: Sequence[Mapping[str, Any]]) -> str:
    """The verdict on a claim, by its decisive findings: shown by all, in part by one that moves as expected.

    That something else did not suffer shows no part of a promise. Where no part is shown, a finding that is
    contradicted contradicts the claim. Findings beside it decide nothing.
    """
    decisive = [finding for finding in findings if finding["decisive"]]
    verdicts = {finding["verdict"] for finding in decisive}
    if verdicts == {SHOWN}:
        return SHOWN
    if any(finding["verdict"] == SHOWN and finding["expected"] in ("up", "down") for finding in decisive):
        return IN_PART
    return CONTRADICTED if CONTRADICTED in verdicts else NOT_SHOWN
