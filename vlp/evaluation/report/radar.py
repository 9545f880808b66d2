"""A radar of scores as inline SVG: an axis a group or set, a line a model; colours are those of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT, RADIUS = 620.0, 340.0, 140.0
FEWEST, MOST = 3, 12  # axes
RINGS = (0.25, 0.5, 0.75, 1.0)


def radar(title: str, axes: Sequence[str], scores: Sequence[Sequence[float | None]], chance: Sequence[float]) -> Markup:
    """Scores from 0 to 1, from the middle outwards; chance is dotted.

    Args:
        scores: for each model one an axis; a model that lacks one has no line.
        chance: one an axis.
    """
    parts = [_ring(len(axes), share) for share in RINGS]
    parts += [_axis(place, name, len(axes)) for place, name in enumerate(axes)]
    parts.append(f'<text x="{WIDTH / 2 + 4:.1f}" y="{_y(0, 0.5) + 4:.1f}">50 %</text>')
    parts.append(_line(chance, "line dotted c5"))
    for model, values in enumerate(scores):
        known = [value for value in values if value is not None]
        if len(known) == len(axes):
            parts.append(_line(known, f"line solid c{model % 6}"))
    return Markup(
        f'<svg class="chart radar" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _x(turn: float, share: float) -> float:
    return WIDTH / 2 + RADIUS * share * math.sin(2 * math.pi * turn)


def _y(turn: float, share: float) -> float:
    return HEIGHT / 2 - RADIUS * share * math.cos(2 * math.pi * turn)


def _line(values: Sequence[float], kind: str) -> str:
    points = (
        f"{_x(i / len(values), min(v, 1.0)):.1f} {_y(i / len(values), min(v, 1.0)):.1f}" for i, v in enumerate(values)
    )
    return f'<path class="{kind}" d="M{"L".join(points)}Z"/>'


def _ring(number: int, share: float) -> str:
    return _line([share] * number, "grid-ring")


def _axis(place: int, name: str, number: int) -> str:
    turn = place / number
    side = math.sin(2 * math.pi * turn)
    anchor = "middle" if abs(side) < 0.2 else "start" if side > 0 else "end"
    x, y, below = _x(turn, 1.07), _y(turn, 1.07), 5 * (1 - math.cos(2 * math.pi * turn))
    return (
        f'<line class="grid-line" x1="{WIDTH / 2}" y1="{HEIGHT / 2}" x2="{_x(turn, 1):.1f}" y2="{_y(turn, 1):.1f}"/>'
        f'<text x="{x:.1f}" y="{y + below:.1f}" text-anchor="{anchor}">{escape(name)}</text>'
    )
