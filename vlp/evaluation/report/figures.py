"""Charts as inline SVG: readable as they stand; a few lines of script in the page add values on hover."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

from vlp.evaluation.report.values import Points, Unit, format_value, thin

WIDTH, HEIGHT = 460.0, 246.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 10.0, 38.0


Style = Literal["solid", "dashed", "dotted", "faint", "area"]


@dataclass(frozen=True)
class Series:
    """One line; ``colour`` indexes the palette of the page's style sheet, ``style`` is one of its line styles."""

    name: str
    points: Points
    colour: int = 0
    style: Style = "solid"


@dataclass(frozen=True)
class Chart:
    """Lines over a common x axis, which runs over ``x_range`` or what the points need.

    Each of ``levels`` is a labelled horizontal line, such as chance.
    """

    title: str
    series: Sequence[Series]
    unit: Unit = "number"
    x_label: str = "step"
    x_range: tuple[float, float] | None = None
    levels: Sequence[tuple[str, float]] = ()
    legend: list[tuple[Series, str]] = field(init=False)

    def __post_init__(self) -> None:
        shown = [s for s in self.series if s.style != "faint"]
        legend = [(s, "" if s.style == "area" else format_value(s.points[-1][1], self.unit)) for s in shown if s.points]
        object.__setattr__(self, "legend", legend)

    def svg(self) -> Markup:
        """The drawing, with its values as JSON for the script."""
        thinned = [Series(s.name, thin(s.points), s.colour, s.style) for s in self.series if s.points]
        axes = _Axes.of(self, thinned)
        parts = [axes.draw(self.unit, self.x_label)]
        for name, y in self.levels:
            parts += [_across("level", axes.y(y)), _text(WIDTH - RIGHT - 2, axes.y(y) - 4, "end", name)]
        parts += [_path(s, axes) for s in thinned]
        described = "; ".join(f"{s.name} {value}".strip() for s, value in self.legend)
        return Markup(
            f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
            f'aria-label="{escape(self.title)}: {escape(described)}" '
            f'data-hover="{escape(self._hover(thinned, axes))}">{"".join(parts)}</svg>'
        )

    def _hover(self, series: Sequence[Series], axes: _Axes) -> str:
        lines = [
            [s.name, s.colour, [[_short(x), _short(y)] for x, y in s.points]] for s in series if s.style != "faint"
        ]
        x_range, y_range = [axes.low_x, axes.high_x], [axes.low_y, axes.high_y]
        frame = [LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM]
        content = {
            "x": x_range, "y": y_range, "frame": frame, "label": self.x_label, "unit": self.unit, "lines": lines
        }  # fmt: skip
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class _Axes:
    low_x: float
    high_x: float
    low_y: float
    high_y: float

    @staticmethod
    def of(chart: Chart, series: Sequence[Series]) -> _Axes:
        xs = [x for s in series for x, _ in s.points] or [0.0, 1.0]
        low_x, high_x = chart.x_range or (min(xs), max(xs))
        ys = [y for s in series for _, y in s.points] + [level for _, level in chart.levels]
        low, high = (min(ys), max(ys)) if ys else (0.0, 1.0)
        if chart.unit == "percent" or 0 <= low < 0.5 * high:
            low = 0.0
        ticks = _ticks(low, high if high > low else low + (abs(low) or 1.0) * 0.1)
        top = min(1.0, ticks[-1]) if chart.unit == "percent" else ticks[-1]
        return _Axes(low_x, high_x if high_x > low_x else low_x + 1.0, ticks[0], top)

    def x(self, value: float) -> float:
        return LEFT + (value - self.low_x) / (self.high_x - self.low_x) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low_y) / (self.high_y - self.low_y) * (HEIGHT - TOP - BOTTOM)

    def draw(self, unit: Unit, x_label: str) -> str:
        parts = []
        for tick in _ticks(self.low_y, self.high_y):
            if self.low_y <= tick <= self.high_y:
                y = self.y(tick)
                label = format_value(tick, unit, tick=True)
                parts += [_across("grid-line", y), _text(LEFT - 6, y + 3.5, "end", label)]
        for tick in _ticks(self.low_x, self.high_x, 6):
            if self.low_x <= tick <= self.high_x:
                x = self.x(tick)
                anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
                parts.append(_text(x, HEIGHT - 22, anchor, format_value(tick, "number", tick=True)))
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, "middle", x_label))
        return "".join(parts)


def scatter(title: str, groups: Sequence[Series], labels: Sequence[Sequence[str]]) -> Markup:
    """Points in a plane without units; ``labels`` are shown on hover, one a point."""
    axes = _square_axes(groups)
    dots = [
        f'<circle class="c{group.colour}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="2.6">'
        f"<title>{escape(label)}</title></circle>"
        for group, names in zip(groups, labels, strict=True)
        for (x, y), label in zip(group.points, names, strict=True)
    ]
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return Markup(
        f'<svg class="chart scatter" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(title)}">'
        f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{width}" height="{height}"/>{"".join(dots)}</svg>'
    )


def histogram(title: str, bins: Sequence[tuple[float, float, int]], x_label: str) -> Markup:
    """Bars of equal width for bins (low, high, count), which may be logarithmic; heights are shares of the total.

    Bins that hold one whole number each are labelled in their middle, all others at their edges; the last bin may
    be wider than the rest.
    """
    total = max(1, sum(count for *_, count in bins))
    top = _ticks(0, max(count for *_, count in bins) / total)[-1]
    axes = _Axes(0, len(bins), 0, top)
    parts = []
    for tick in _ticks(0, top):
        if tick <= top:
            label = format_value(tick, "percent", tick=True)
            parts += [_across("grid-line", axes.y(tick)), _text(LEFT - 6, axes.y(tick) + 3.5, "end", label)]
    single = all(high - low == 1 and isinstance(low, int) for low, high, _ in bins[:-1])
    for place, (low, high, count) in enumerate(bins):
        x, y = axes.x(place) + 0.5, axes.y(count / total)
        width, height = axes.x(place + 1) - axes.x(place) - 1, HEIGHT - BOTTOM - y
        named = f"{low:,g}" if single and high - low == 1 else f"{low:,g} to {high:,g}"
        parts.append(
            f'<rect class="column c0" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">'
            f"<title>{named} {escape(x_label)}: {count:,} ({format_value(count / total, 'percent')})</title></rect>"
        )
    labels = [(i + 0.5 * single, low) for i, (low, *_) in enumerate(bins)] + [(len(bins), bins[-1][1])] * (not single)
    every = -(-len(labels) // 8)
    for at, value in labels[::every]:
        anchor = "end" if axes.x(at) > WIDTH - RIGHT - 12 else "middle"
        parts.append(_text(axes.x(at), HEIGHT - 22, anchor, _compact(value)))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, "middle", x_label))
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _compact(value: float) -> str:
    """``1.5 k``: neighbouring labels must not touch."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g} {letter}"
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _square_axes(groups: Sequence[Series]) -> _Axes:
    """Axes of equal scale, so that distances can be compared across directions."""
    xs = [x for group in groups for x, _ in group.points]
    ys = [y for group in groups for _, y in group.points]
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    scale = 1.08 * max((max(xs) - min(xs)) / width, (max(ys) - min(ys)) / height, 1e-9)
    middle_x, middle_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    half_x, half_y = scale * width / 2, scale * height / 2
    return _Axes(middle_x - half_x, middle_x + half_x, middle_y - half_y, middle_y + half_y)


def _across(kind: str, y: float) -> str:
    return f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _path(series: Series, axes: _Axes) -> str:
    at = [(axes.x(x), axes.y(y)) for x, y in series.points]
    if len(at) == 1:
        return f'<circle class="c{series.colour}" cx="{at[0][0]:.1f}" cy="{at[0][1]:.1f}" r="3"/>'
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    if series.style == "area":
        line += f"L{at[-1][0]:.1f} {axes.y(0):.1f}L{at[0][0]:.1f} {axes.y(0):.1f}Z"
    return f'<path class="line {series.style} c{series.colour}" d="{line}"/>'


def _ticks(low: float, high: float, number: int = 5) -> list[float]:
    values = MaxNLocator(number, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(value) for value in values]


def _short(value: float) -> float:
    return float(f"{value:.5g}") if abs(value) < 1e5 else round(value)
