"""What the JSON of a training sample of ``vlp data scenes`` says of its picture: scene -> record and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_tools._scenes_draw import Place
from data_tools._scenes_world import Scene, Thing


def picture_record(scene: Scene, places: Sequence[Place]) -> dict[str, Any]:
    """objects (shape, colour, size, texture; x, y, diameter in pixels), relations and mark.

    Several equal objects are all listed; that they are counted is not said here (``count`` of the sample).
    """
    objects = [
        {
            "shape": thing.shape,
            "colour": thing.colour,
            "size": thing.size,
            "texture": thing.texture,
            "x": round(place.x, 3),
            "y": round(place.y, 3),
            "diameter": round(place.diameter, 3),
        }
        for thing, place in zip(scene.shown, places, strict=True)
    ]
    return {"objects": objects, "relations": list(scene.relations), "mark": scene.mark}


def scene_of(record: Mapping[str, Any]) -> Scene:
    """The scene that the picture of a sample shows, from the sample's JSON.

    Raises:
        KeyError: it is not the JSON of ``vlp data scenes``.
    """
    things = tuple(Thing(o["shape"], o["colour"], o["size"], o["texture"]) for o in record["objects"])
    count = record.get("count")
    return Scene(things if count is None else things[:1], tuple(record["relations"]), record["mark"], count)
