"""Charts as inline SVG: readable as they stand; a few lines of script in the page add values on hover."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 460.0, 246.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 10.0, 38.0
MAX_POINTS = 400  # a chart of more is larger than it is wide

Unit = Literal["number", "percent"]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One line; ``colour`` indexes the palette of the page's style sheet, ``style`` is one of its line styles."""

    name: str
    points: Points
    colour: int = 0
    style: Literal["solid", "dashed", "dotted", "faint", "area"] = "solid"


@dataclass(frozen=True)
class Chart:
    """Lines over a common x axis. ``level`` draws a labelled horizontal line, such as chance."""

    title: str
    series: Sequence[Series]
    unit: Unit = "number"
    x_label: str = "step"
    level: tuple[str, float] | None = None
    legend: list[tuple[Series, str]] = field(init=False)

    def __post_init__(self) -> None:
        shown = [s for s in self.series if s.style != "faint"]
        legend = [
            (s, "" if s.style == "area" else format_value(s.points[-1][1], self.unit)) for s in shown if s.points
        ]
        object.__setattr__(self, "legend", legend)

    def svg(self) -> Markup:
        """The drawing, with its values as JSON for the script."""
        thinned = [Series(s.name, thin(s.points), s.colour, s.style) for s in self.series if s.points]
        axes = _Axes.around(thinned, self.level, self.unit)
        parts = [axes.draw(self.unit, self.x_label)]
        if self.level is not None:
            name, y = self.level
            parts.append(
                f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{axes.y(y):.1f}" y2="{axes.y(y):.1f}"/>'
                f'<text class="tick" x="{WIDTH - RIGHT - 2}" y="{axes.y(y) - 4:.1f}" text-anchor="end">{escape(name)}</text>'
            )
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
    def around(series: Sequence[Series], level: tuple[str, float] | None, unit: Unit) -> _Axes:
        xs = [x for s in series for x, _ in s.points] or [0.0, 1.0]
        ys = [y for s in series for _, y in s.points] + ([level[1]] if level else [])
        low, high = (min(ys), max(ys)) if ys else (0.0, 1.0)
        areas = any(s.style == "area" for s in series)
        if areas or unit == "percent" or 0 <= low < 0.5 * high:
            low = 0.0
        if unit == "percent" and not areas:
            high = max(high, 0.02) * 1.04
        ticks = _ticks(low, high if high > low else low + (abs(low) or 1.0) * 0.1)
        low_x, high_x = min(xs), max(xs)
        top = 1.0 if unit == "percent" and high <= 1.04 < ticks[-1] + 0.05 else ticks[-1]
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
                parts.append(f'<line class="grid-line" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
                label = format_value(tick, unit, tick=True)
                parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
        ticks = [tick for tick in _ticks(self.low_x, self.high_x, 6) if self.low_x <= tick <= self.high_x]
        for tick in ticks:
            x = self.x(tick)
            anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
            label = format_value(tick, "number", tick=True)
            parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 22}" text-anchor="{anchor}">{label}</text>')
        parts.append(f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
        return "".join(parts)


def scatter(title: str, groups: Sequence[Series], labels: Sequence[Sequence[str]]) -> Markup:
    """Points in a plane without units; ``labels`` are shown on hover, one a point."""
    axes = _square_axes(groups)
    dots = [
        f'<circle class="c{group.colour}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="2.6"><title>{escape(label)}</title></circle>'
        for group, names in zip(groups, labels, strict=True)
        for (x, y), label in zip(group.points, names, strict=True)
    ]
    frame = f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"/>'
    return Markup(
        f'<svg class="chart scatter" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(title)}">'
        f"{frame}{''.join(dots)}</svg>"
    )


def _square_axes(groups: Sequence[Series]) -> _Axes:
    """Axes of equal scale, so that distances can be compared across directions."""
    xs = [x for group in groups for x, _ in group.points]
    ys = [y for group in groups for _, y in group.points]
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    scale = 1.08 * max((max(xs) - min(xs)) / width, (max(ys) - min(ys)) / height, 1e-9)
    middle_x, middle_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    half_x, half_y = scale * width / 2, scale * height / 2
    return _Axes(middle_x - half_x, middle_x + half_x, middle_y - half_y, middle_y + half_y)


def thin(points: Points) -> Points:
    """At most `MAX_POINTS` points: means of equal runs of them; the last stays as it is."""
    if len(points) <= MAX_POINTS:
        return points
    run = math.ceil(len(points) / (MAX_POINTS - 1))
    chunks = [points[start : start + run] for start in range(0, len(points), run)]
    means = [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]
    return [*means[:-1], points[-1]]


def smoothed(points: Points, decay: float = 0.9) -> Points:
    """Exponential moving average, corrected for its start."""
    average, weight, result = 0.0, 0.0, []
    for x, y in points:
        average, weight = decay * average + (1 - decay) * y, decay * weight + (1 - decay)
        result.append((x, average / weight))
    return result


def format_value(value: float, unit: Unit, tick: bool = False) -> str:
    """A figure as people write it: ``91.2 %``, ``12,800``, ``0.0012``; axis labels go without needless digits."""
    if unit == "percent":
        return f"{100 * value:.{0 if tick else 1}f} %"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 0.001:
        return f"{value:.0e}".replace("e-0", "e-") if tick else f"{value:.2e}".replace("e-0", "e-")
    return f"{value:.4g}" if tick else f"{value:.3g}"


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
