"""Training samples of ``vlp data scenes``: pure functions of (options, index), with all their factors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_tools._scenes_draw import arrange, draw
from data_tools._scenes_grammar import BOILERPLATE, parse, phrase
from data_tools._scenes_options import ScenesOptions
from data_tools._scenes_record import picture_record
from data_tools._scenes_world import DUPLICATE_POOL, Scene, World, generator, holds
from vlp.data.write import encode_image

# The first samples take a foreign caption from this many, later ones from all before them.
MIN_FOREIGN = 64


def training_sample(options: ScenesOptions, world: World, index: int) -> tuple[bytes, str, dict[str, Any]]:
    """(PNG, caption, factors) of training picture ``index``.

    factors: index; objects (shape, colour, size, texture; x, y, diameter in pixels); relations (number i
    holds between objects i and i + 1); mark of the shortcut; grammar; original_caption; noise (None,
    "caption" or "boilerplate"); caption_of (index of the picture whose caption it is); duplicate_of (number
    in the pool of repeated scenes); width; height. With ``--counting`` also count (how many equal objects,
    where they are counted), with ``--negation`` also absent (shape and colour that original_caption denies).
    """
    scene, duplicate_of = _scene(options, world, index)
    told = _told(options, world, scene, index)
    original, grammar = _caption(options, told, index)
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
    # Without the options their keys stay away, so that data sets drawn before them are drawn the same again.
    further: dict[str, Any] = {"count": scene.count} if options.counting else {}
    if options.negation:
        denied = told.absent
        further["absent"] = None if denied is None else {"shape": denied.shape, "colour": denied.colour}
    return (
        image,
        caption,
        {
            "index": index,
            **picture_record(scene, places),
            "grammar": grammar,
            "original_caption": original,
            "noise": noise,
            "caption_of": caption_of,
            "duplicate_of": duplicate_of,
            "width": options.image_size,
            "height": options.image_size,
            **further,
        },
    )


def _scene(options: ScenesOptions, world: World, index: int) -> tuple[Scene, int | None]:
    random = generator(world.seed, "counting/train", index)
    if options.counting and random.random() < options.counting:
        return world.training_count(random), None
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


def _told(options: ScenesOptions, world: World, scene: Scene, index: int) -> Scene:
    """What the caption says of ``scene``: now and then also what is not there."""
    random = generator(options.seed, "negation/train", index)
    if options.negation and random.random() < options.negation:
        return replace(scene, absent=world.missing(scene, random))
    return scene


def _caption(options: ScenesOptions, told: Scene, index: int) -> tuple[str, str]:
    random = generator(options.seed, "caption", index)
    grammar = random.choice(options.grammars)
    return phrase(told, grammar, random), grammar


def _foreign_caption(options: ScenesOptions, world: World, scene: Scene, index: int) -> tuple[str, int]:
    """The caption of another picture, false of this one."""
    random = generator(world.seed, "foreign", index)
    while True:
        other = random.randrange(max(index, MIN_FOREIGN))
        told = _told(options, world, _scene(options, world, other)[0], other)
        caption, grammar = _caption(options, told, other)
        if not holds(parse(caption, grammar), scene):
            return caption, other
