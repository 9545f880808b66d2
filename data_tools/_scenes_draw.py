"""Drawing a scene: where its objects lie, and the picture.

Lengths are pixels of the finished picture. Objects never overlap, and a stated relation is plain to see: the
bounding boxes are apart along its axis, the centres lie at least twice as far apart along it as across it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageChops, ImageDraw

from data_tools._scenes_world import Scene

SUPERSAMPLING = 4
EDGE = 0.03
GAP = 0.05
ACROSS = 0.5
MAX_TRIES = 1000

# Diameter of (small, large) as a share of the image size; three large objects must fit in a row.
DIAMETERS = {1: (0.30, 0.43), 2: (0.30, 0.43), 3: (0.18, 0.27)}

PAINT = {
    "red": (220, 30, 35),
    "green": (35, 150, 50),
    "blue": (30, 60, 215),
    "yellow": (250, 220, 40),
    "purple": (150, 40, 190),
    "cyan": (50, 215, 225),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}
STEP = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
"""Direction from the first object of a relation to the second; y grows downwards."""

MARK_CELLS = 4


def _around(points: int, radius: float = 1.0, turn: float = -0.25) -> list[tuple[float, float]]:
    angles = [2 * math.pi * (k / points + turn) for k in range(points)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _star() -> list[tuple[float, float]]:
    pairs = zip(_around(5, 1.08), _around(5, 0.42, -0.15), strict=True)
    return [(x, y + 0.1) for pair in pairs for x, y in pair]


def _heart() -> list[tuple[float, float]]:
    points = []
    for k in range(32):
        t = 2 * math.pi * k / 32
        across = 16 * math.sin(t) ** 3
        up = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((across / 16, -(up + 2.5) / 14.5))
    return points


_ARM = 0.36
# Outlines in a box from -1 to 1; a second outline is a hole.
OUTLINES: dict[str, list[list[tuple[float, float]]]] = {
    "circle": [_around(32)],
    "square": [[(-0.92, -0.92), (0.92, -0.92), (0.92, 0.92), (-0.92, 0.92)]],
    "triangle": [[(0, -1), (1, 0.9), (-1, 0.9)]],
    "star": [_star()],
    "cross": [
        [
            *[(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)],
            *[(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
        ]
    ],
    "diamond": [[(0, -1), (0.72, 0), (0, 1), (-0.72, 0)]],
    "ring": [_around(32), _around(32, 0.55)],
    "heart": [_heart()],
}


@dataclass(frozen=True)
class Place:
    """Centre and diameter of an object in pixels."""

    x: float
    y: float
    diameter: float

    def is_apart(self, other: Place, gap: float) -> bool:
        """Whether the bounding boxes are at least ``gap`` apart along one axis."""
        room = (self.diameter + other.diameter) / 2 + gap
        return abs(self.x - other.x) >= room or abs(self.y - other.y) >= room


def mark_size(image_size: int) -> int:
    """Side of the shortcut's patch: a quarter of the picture, as one patch of a small vision transformer."""
    return MARK_CELLS * max(1, image_size // 16)


def arrange(scene: Scene, random: Random, image_size: int, max_objects: int) -> list[Place]:
    """A place for each object shown, so that the relations hold; ``max_objects`` of the world sets the diameters."""
    small, large = DIAMETERS[max_objects]
    if scene.count is not None and scene.count > 1:
        return _scatter(
            scene.count, image_size * (small if scene.objects[0].size == "small" else large), random, image_size
        )
    diameters = [image_size * (small if thing.size == "small" else large) for thing in scene.objects]
    for attempt in range(MAX_TRIES):
        places = _walk(scene, diameters, random, image_size, slack=1 - attempt / MAX_TRIES)
        if places is not None and _is_free(places, scene, image_size):
            return places
    raise AssertionError(f"no room for {scene}")


def _walk(scene: Scene, diameters: list[float], random: Random, image_size: int, slack: float) -> list[Place] | None:
    """Lay each object beside the one before and shift all into the picture; None where that does not fit."""
    gap, edge = GAP * image_size, EDGE * image_size
    x = y = 0.0
    centres = [(x, y)]
    for k, relation in enumerate(scene.relations):
        along = (diameters[k] + diameters[k + 1]) / 2 + gap
        along += random.random() * slack * max(0.0, image_size - 2 * edge - gap - diameters[k] - diameters[k + 1])
        across = (2 * random.random() - 1) * slack * ACROSS * along
        step_x, step_y = STEP[relation]
        x, y = x + step_x * along + step_y * across, y + step_y * along + step_x * across
        centres.append((x, y))
    shift = []
    for axis in (0, 1):
        low = min(centre[axis] - diameter / 2 for centre, diameter in zip(centres, diameters, strict=True))
        high = max(centre[axis] + diameter / 2 for centre, diameter in zip(centres, diameters, strict=True))
        room = image_size - 2 * edge - (high - low)
        if room < 0:
            return None
        shift.append(edge - low + random.random() * room)
    return [Place(cx + shift[0], cy + shift[1], d) for (cx, cy), d in zip(centres, diameters, strict=True)]


def _scatter(count: int, diameter: float, random: Random, image_size: int) -> list[Place]:
    """Places of up to four equal objects: in two rows or columns of two, shifted at random as far as there is room."""
    step, start = diameter + GAP * image_size, EDGE * image_size + diameter / 2
    room = image_size - 2 * start - step
    rows_are_columns = random.random() < 0.5
    between_rows = random.random() * room
    between_objects = [random.random() * room for _ in range(2)]

    def along(place: int, border: float) -> float:
        low, high = (0.0, border) if place == 0 else (border, room)
        return start + place * step + low + random.random() * (high - low)

    places = []
    for row, column in random.sample([(0, 0), (0, 1), (1, 0), (1, 1)], count):
        x, y = along(column, between_objects[row]), along(row, between_rows)
        places.append(Place(y, x, diameter) if rows_are_columns else Place(x, y, diameter))
    return places


def _is_free(places: list[Place], scene: Scene, image_size: int) -> bool:
    gap = GAP * image_size - 1e-6
    if any(not a.is_apart(b, gap) for i, a in enumerate(places) for b in places[:i]):
        return False
    if scene.mark is None:
        return True
    corner = mark_size(image_size)
    return all(max(place.x, place.y) - place.diameter / 2 >= corner for place in places)


def draw(scene: Scene, places: list[Place], random: Random, image_size: int) -> Image.Image:
    """The picture, RGB, ``image_size`` pixels square."""
    picture = _background(random, image_size)
    for thing, place in zip(scene.shown, places, strict=True):
        assert thing.shape is not None
        assert thing.colour is not None
        paint = tuple(min(255, max(0, channel + random.randint(-12, 12))) for channel in PAINT[thing.colour])
        outline = _mask(thing.shape, place, image_size)
        picture.paste(paint, mask=outline.reduce(SUPERSAMPLING))
        if thing.texture not in (None, "plain"):
            pattern = ImageChops.multiply(outline, _pattern(str(thing.texture), place, image_size))
            picture.paste(_second_tone(paint), mask=pattern.reduce(SUPERSAMPLING))
    if scene.mark is not None:
        picture.paste(_mark(scene.mark, mark_size(image_size)), (0, 0))
    return picture


def _background(random: Random, image_size: int) -> Image.Image:
    """A muted ground that changes smoothly between four corners."""
    grey, tint = random.randint(110, 165), [random.randint(-14, 14) for _ in range(3)]
    corners = bytes(grey + tint[c] + random.randint(-14, 14) for _ in range(4) for c in range(3))
    return Image.frombytes("RGB", (2, 2), corners).resize((image_size, image_size), Image.Resampling.BILINEAR)


def _mask(shape: str, place: Place, image_size: int) -> Image.Image:
    side = image_size * SUPERSAMPLING
    mask = Image.new("L", (side, side))
    pencil = ImageDraw.Draw(mask)
    scale = SUPERSAMPLING * place.diameter / 2
    x, y = SUPERSAMPLING * place.x - 0.5, SUPERSAMPLING * place.y - 0.5
    for outline, fill in zip(OUTLINES[shape], (255, 0), strict=False):
        pencil.polygon([(x + scale * u, y + scale * v) for u, v in outline], fill=fill)
    return mask


def _pattern(texture: str, place: Place, image_size: int) -> Image.Image:
    """Where the second tone goes: three stripes, or three by three dots or checks, across the object."""
    side = image_size * SUPERSAMPLING
    pattern = Image.new("L", (side, side))
    pencil = ImageDraw.Draw(pattern)
    cell = SUPERSAMPLING * place.diameter / 6
    left, top = SUPERSAMPLING * (place.x - place.diameter / 2), SUPERSAMPLING * (place.y - place.diameter / 2)
    for row in range(6):
        for column in range(6):
            x, y = left + column * cell, top + row * cell
            if texture == "dotted" and row % 2 == 0 and column % 2 == 0:
                pencil.ellipse((x + 0.3 * cell, y + 0.3 * cell, x + 1.7 * cell, y + 1.7 * cell), fill=255)
            elif (texture == "striped" and row % 2) or (texture == "checked" and (row // 2 + column // 2) % 2):
                pencil.rectangle((x, y, x + cell, y + cell), fill=255)
    return pattern


def _second_tone(paint: tuple[int, ...]) -> tuple[int, ...]:
    """A darker tone, or a lighter one of black, so that the colour keeps its name."""
    return tuple(c // 2 for c in paint) if max(paint) > 60 else tuple(c + 110 for c in paint)


def _mark(value: int, side: int) -> Image.Image:
    """The shortcut: a black and white pattern of 16 cells, another one for each value below 65,535."""
    cells = (value + 1) * 40503 % 65536  # an odd factor: values and patterns correspond one to one
    bits = bytes(255 * (cells >> k & 1) for k in range(MARK_CELLS**2))
    mark = Image.frombytes("L", (MARK_CELLS, MARK_CELLS), bits).convert("RGB")
    return mark.resize((side, side), Image.Resampling.NEAREST)
