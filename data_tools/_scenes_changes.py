"""What a caption of ``vlp data scenes`` would say with one thing in it changed, so that it becomes false.

These are the hard captions of the controlled world and the swaps of its evaluation sets. A changed caption
says nothing that no picture could show, so that it cannot be told from a true one by its words alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from data_tools._scenes_world import COLOURS, COUNTS, OPPOSITE, RELATIONS, SHAPES, SIZES, Scene, holds

VALUES = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}
# What two objects can exchange; to exchange the shapes as well would exchange the objects.
ATTRIBUTES = ("colour", "size", "texture")


def changes(said: Scene, picture: Scene | None = None) -> list[tuple[str, Scene]]:
    """(kind, changed scene) for every single change of ``said`` that makes it false of ``picture``.

    Args:
        said: what the caption says (``_scenes_grammar.parse``); sizes left out stay out.
        picture: what there is to see, where the caption leaves something out; ``said`` itself by default.

    Kinds: "swap attribute" (two objects exchange colour, size or texture), "swap relation" (two objects change
    places, or a relation becomes its opposite), "replace colour", "replace shape", "replace size" (of one
    object), "replace relation" (by one of the other axis), "replace count" and "swap negation" (what is there and
    what is denied change places). Where two changes come to the same scene, it is
    there once, as the first of them. The order depends on ``said`` only.
    """
    seen = said if picture is None else picture
    found: dict[Scene, str] = {}
    for kind, changed in [*_swaps(said), *_replacements(said)]:
        if is_drawable(changed) and not holds(changed, seen):
            found.setdefault(changed, kind)
    return [(kind, changed) for changed, kind in found.items()]


def _swaps(scene: Scene) -> Iterator[tuple[str, Scene]]:
    pairs = list(combinations(range(len(scene.objects)), 2))
    for i, j in pairs:
        for factor in ATTRIBUTES:
            if getattr(scene.objects[i], factor) != getattr(scene.objects[j], factor):
                yield "swap attribute", exchange(scene, factor, i, j)
    for i, j in pairs:
        yield "swap relation", exchange_places(scene, i, j)
    for k, relation in enumerate(scene.relations):
        yield "swap relation", with_relation(scene, k, OPPOSITE[relation])
    if scene.absent is not None:
        for k in range(len(scene.objects)):
            yield "swap negation", deny(scene, k)


def _replacements(scene: Scene) -> Iterator[tuple[str, Scene]]:
    for factor, values in VALUES.items():
        for k, thing in enumerate(scene.objects):
            now = getattr(thing, factor)
            for value in values:
                if now is not None and value != now:
                    yield f"replace {factor}", _with_value(scene, k, factor, value)
    for k, relation in enumerate(scene.relations):
        for other in RELATIONS:
            if other not in (relation, OPPOSITE[relation]):
                yield "replace relation", with_relation(scene, k, other)
    if scene.count is not None:
        for count in COUNTS:
            if count != scene.count:
                yield "replace count", replace(scene, count=count)


def exchange(scene: Scene, factor: str, i: int, j: int) -> Scene:
    """Objects i and j with each other's ``factor``."""
    mine, theirs = getattr(scene.objects[i], factor), getattr(scene.objects[j], factor)
    return _with_value(_with_value(scene, i, factor, theirs), j, factor, mine)


def exchange_places(scene: Scene, i: int, j: int) -> Scene:
    """Objects i and j in each other's place."""
    objects = list(scene.objects)
    objects[i], objects[j] = objects[j], objects[i]
    return replace(scene, objects=tuple(objects))


def with_relation(scene: Scene, k: int, relation: str) -> Scene:
    """``relation`` between objects k and k + 1."""
    return replace(scene, relations=(*scene.relations[:k], relation, *scene.relations[k + 1 :]))


def deny(scene: Scene, k: int) -> Scene:
    """Object k denied, and in its place what ``scene`` denies."""
    assert scene.absent is not None
    thing = replace(scene.objects[k], shape=scene.absent.shape, colour=scene.absent.colour)
    objects = (*scene.objects[:k], thing, *scene.objects[k + 1 :])
    return replace(scene, objects=objects, absent=scene.objects[k].kind())


def is_drawable(scene: Scene) -> bool:
    """Whether a picture of this world can show it: no two objects alike, no two on the same spot, none denied."""
    back_again = len(scene.relations) == 2 and scene.relations[1] == OPPOSITE[scene.relations[0]]
    denied = scene.absent is not None and any(scene.absent.agrees(thing) for thing in scene.objects)
    return has_distinct_objects(scene) and not back_again and not denied


def has_distinct_objects(scene: Scene) -> bool:
    """Whether no two objects have the same shape and colour."""
    return len({(thing.shape, thing.colour) for thing in scene.objects}) == len(scene.objects)


def _with_value(scene: Scene, k: int, factor: str, value: str | None) -> Scene:
    thing = replace(scene.objects[k], **{factor: value})
    return replace(scene, objects=(*scene.objects[:k], thing, *scene.objects[k + 1 :]))
