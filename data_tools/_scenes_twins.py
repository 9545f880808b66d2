"""Scenes and captions that are nearly alike, for the evaluation sets of ``vlp data scenes``.

Twins are two scenes of which each is drawn and each is told, so that every caption is once the true one and once
the false one: a scorer that never looks at the picture gets exactly half right, whatever it knows of captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from random import Random

from data_tools._scenes_changes import deny, exchange, exchange_places, has_distinct_objects, is_drawable, with_relation
from data_tools._scenes_grammar import parse
from data_tools._scenes_world import COUNTS, OPPOSITE, Scene, World, generator, holds

Twins = tuple[Scene, Scene]
Swap = Callable[[Scene, Random], Scene | None]


def swap_attribute(scene: Scene, random: Random) -> Scene | None:
    """Colours or sizes of the first two objects exchanged; None where neither differs."""
    first, second = scene.objects[:2]
    differing = [factor for factor in ("colour", "size") if getattr(first, factor) != getattr(second, factor)]
    if not differing:
        return None
    return exchange(scene, random.choice(differing), 0, 1)


def swap_relation(scene: Scene, random: Random) -> Scene | None:
    """The first relation turned into its opposite, or the first two objects exchanged."""
    return swap_objects(scene, random) if random.random() < 0.5 else turn_relation(scene, random)


def swap_objects(scene: Scene, _: Random) -> Scene:
    """The first two objects in each other's place: the same words in another order."""
    return exchange_places(scene, 0, 1)


def turn_relation(scene: Scene, _: Random) -> Scene:
    """The first relation turned into its opposite: another word in the same place."""
    return with_relation(scene, 0, OPPOSITE[scene.relations[0]])


def twins(scenes: Iterator[Scene], swap: Swap, seed: int, stream: str) -> Iterator[Twins]:
    """(scene, swapped scene), each scene in one twin only, neither caption true of the other's picture."""
    used: set[tuple[object, ...]] = set()
    for number, scene in enumerate(scenes):
        other = swap(scene, generator(seed, f"swap/{stream}", number))
        if other is None or holds(other, scene) or holds(scene, other):
            continue
        names = {scene.canonical(), other.canonical()}
        if has_distinct_objects(other) and not names & used:
            used |= names
            yield scene, other


def count_twins(world: World) -> Iterator[Twins]:
    """The same things in two numbers, without end: scenes come again, since there are few, in other pictures."""
    for number in count():
        random = generator(world.seed, "counting", number)
        scene = world.evaluation_count(random)
        yield scene, replace(scene, count=random.choice([n for n in COUNTS if n != scene.count]))


def negation_twins(world: World) -> Iterator[Twins]:
    """Single objects that are there in one picture and denied of the other, without end."""
    for number in count():
        random = generator(world.seed, "negation", number)
        scene = replace(world.single(random), absent=world.single(random).objects[0].kind())
        other = deny(scene, 0)
        if is_drawable(scene) and not world.is_held_out(other):
            yield scene, other


def shuffle_words(caption: str, grammar: str, random: Random) -> str:
    """The words of ``caption`` in an order that makes no sentence of its grammar."""
    words = caption.split()
    while True:
        random.shuffle(words)
        shuffled = " ".join(words)
        try:
            parse(shuffled, grammar)
        except ValueError:
            return shuffled
