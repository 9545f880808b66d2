"""What the pages of sheets are made of: shares as bars, quantities as charts, small pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from vlp.evaluation.report.figures import histogram
from vlp.types import UserError

TINY = 64  # pixels; smaller pictures are enlarged by a whole factor, unblurred
SHOWN_PIXELS = 96


@dataclass(frozen=True)
class Spread:
    """One quantity: its chart, or the only value it has."""

    title: str
    legend: str
    chart: Markup | None


@dataclass(frozen=True)
class Bar:
    """One row of a table of shares; ``share`` is from 0 to 1."""

    label: str
    number: int
    share: float
    note: str = ""


def bars(rows: Iterable[tuple[str, int]], total: int) -> list[Bar]:
    return [Bar(label, number, number / max(1, total)) for label, number in rows]


def spread(content: dict[str, Any], title: str, unit: str) -> Spread:
    """The chart of what `Spread.to_json` of the tools gives."""
    if content["min"] == content["max"]:
        return Spread(title, f"all {_figure(content['min'])}", None)
    quantiles = content["quantiles"]
    low, middle, high = (_figure(quantiles[q]) for q in ("5 %", "50 %", "95 %"))
    extremes = f"{_figure(content['min'])} to {_figure(content['max'])}"
    legend = f"median {middle} · 5 to 95 %: {low} to {high} · all: {extremes}"
    return Spread(title, legend, histogram(f"{title}: {legend}", content["histogram"], unit))


def picture(uri: str, width: int, height: int, alt: str, sample: str) -> Markup:
    """``<img>`` of a thumbnail for a picture of that size.

    Raises:
        UserError: ``uri`` is no picture in the file itself; it names ``sample``.
    """
    if not uri.startswith("data:image/webp;base64,"):
        raise UserError(f"the thumbnail of {sample} is no picture in the file itself")
    side = max(width, height)
    factor = max(1, SHOWN_PIXELS // side) if side <= TINY else min(1.0, SHOWN_PIXELS / side)
    shown_width, shown_height = (max(1, round(length * factor)) for length in (width, height))
    tiny = ' class="tiny"' if side <= TINY else ""
    return Markup(
        f'<img{tiny} loading="lazy" width="{shown_width}" height="{shown_height}" alt="{escape(alt)}" '
        f'src="{escape(uri)}">'
    )


def with_marks(text: str, spans: Iterable[tuple[int, int]]) -> Markup:
    """``text`` with the characters of each span (first, past the last) in ``<mark>``, neighbours in one."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        beside = joined and text[joined[-1][1] : start].isspace()
        joined.append((joined.pop()[0] if beside else start, stop))
    parts, end = [], 0
    for start, stop in joined:
        parts += [escape(text[end:start]), Markup("<mark>{}</mark>").format(text[start:stop])]
        end = stop
    return Markup("").join([*parts, escape(text[end:])])


def flat(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names as people read them, with values that are set; what is nested stands beside the rest."""
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += flat(value)
        elif value not in (None, [], ""):
            listed = isinstance(value, Sequence) and not isinstance(value, str)
            found.append((name.replace("_", " "), ", ".join(map(repr, value)) if listed else f"{value}"))
    return found


def num_shards(number: int) -> str:
    return f"{number:,} {'shard' if number == 1 else 'shards'}"


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
