"""Training samples of ``vlp data scenes``: pure functions of (options, index), with all their factors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_tools._scenes_draw import Place, arrange, draw
from data_tools._scenes_grammar import BOILERPLATE, parse, phrase
from data_tools._scenes_options import ScenesOptions
from data_tools._scenes_world import DUPLICATE_POOL, Scene, World, generator, holds
from vlp.data.write import encode_image

# The first samples take a foreign caption from this many, later ones from all before them.
MIN_FOREIGN = 64


def training_sample(options: ScenesOptions, world: World, index: int) -> tuple[bytes, str, dict[str, Any]]:
    """(PNG, caption, factors) of training picture ``index``.

    factors: index; objects (shape, colour, size, texture; x, y, diameter in pixels); relations (number i
    holds between objects i and i + 1); mark of the shortcut; grammar; original_caption; noise (None,
    "caption" or "boilerplate"); caption_of (index of the picture whose caption it is); duplicate_of (number
    in the pool of repeated scenes); width; height.
    """
    scene, duplicate_of = _scene(options, world, index)
    original, grammar = _caption(options, scene, index)
    caption, noise, caption_of = original, None, None
    random = generator(world.seed, "noise", index)
    share = random.random()
    if share < options.boilerplate:
        caption, noise = random.choice(BOILERPLATE), "boilerplate"
    elif share < options.boilerplate + options.caption_noise:
        noise = "caption"
        caption, caption_of = _foreign_caption(options, world, scene, index)
    random = generator(world.seed, "picture/train", index)
    places = arrange(scene, random, options.image_size, max(world.num_objects))
    image = encode_image(draw(scene, places, random, options.image_size))
    return (
        image,
        caption,
        {
            "index": index,
            "objects": _objects(scene, places),
            "relations": list(scene.relations),
            "mark": scene.mark,
            "grammar": grammar,
            "original_caption": original,
            "noise": noise,
            "caption_of": caption_of,
            "duplicate_of": duplicate_of,
            "width": options.image_size,
            "height": options.image_size,
        },
    )


def _objects(scene: Scene, places: list[Place]) -> list[dict[str, Any]]:
    return [
        {
            "shape": thing.shape,
            "colour": thing.colour,
            "size": thing.size,
            "texture": thing.texture,
            "x": round(place.x, 3),
            "y": round(place.y, 3),
            "diameter": round(place.diameter, 3),
        }
        for thing, place in zip(scene.objects, places, strict=True)
    ]


def _scene(options: ScenesOptions, world: World, index: int) -> tuple[Scene, int | None]:
    random = generator(world.seed, "scene", index)
    number = None
    if random.random() < options.duplicates:
        number = random.randrange(DUPLICATE_POOL)
        scene = world.training_scene(generator(world.seed, "pool", number))
    else:
        scene = world.training_scene(random)
    if options.shortcut:
        scene = replace(scene, mark=random.randrange(options.shortcut))
    return scene, number


def _caption(options: ScenesOptions, scene: Scene, index: int) -> tuple[str, str]:
    random = generator(options.seed, "caption", index)
    grammar = random.choice(options.grammars)
    return phrase(scene, grammar, random), grammar


def _foreign_caption(options: ScenesOptions, world: World, scene: Scene, index: int) -> tuple[str, int]:
    """The caption of another picture, false of this one."""
    random = generator(world.seed, "foreign", index)
    while True:
        other = random.randrange(max(index, MIN_FOREIGN))
        caption, grammar = _caption(options, _scene(options, world, other)[0], other)
        if not holds(parse(caption, grammar), scene):
            return caption, other
