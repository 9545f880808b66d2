"""What a caption of a scene has to say, for the slot accuracy of captioners: ``slots.json`` beside an evaluation set.

It holds the words of the phrasing and what is true of each picture, so that whoever scores captions needs to know
nothing of scenes. `vlp.evaluation.slots` reads it and says what each key means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from data_tools._scenes_grammar import expressions
from data_tools._scenes_words import GRAMMARS, Grammar
from data_tools._scenes_world import SHAPES, Scene, World

SLOTS_FILE = "slots.json"
KIND, VERSION = "vlp caption slots", 1
DENIAL = {"A": "no", "B": "without any"}
ENDS = {"r": [0, 1], "s": [1, 2]}
"""Relation of a template -> the objects between which it holds."""


def slots(scenes: Iterable[Scene], grammar: str, world: World) -> dict[str, Any]:
    """The content of ``slots.json`` for pictures of ``scenes``, told in ``grammar``."""
    words = GRAMMARS[grammar]
    attributes = ["colour", "shape", "size"] + (["texture"] if len(world.textures) > 1 else [])
    phrases = _phrases(words)
    return {
        "kind": KIND,
        "version": VERSION,
        "attributes": {name: phrases[name] for name in attributes},
        "noun": "shape",
        "counts": {words.numbers[count].removeprefix("a "): count for count in words.numbers},
        "relations": {variant: relation for relation, variants in words.relations.items() for variant in variants},
        "denials": [DENIAL[grammar]],
        "unsaid": {"texture": "plain"} if "texture" in attributes else {},
        "orders": [_order(templates[0]) for templates in words.templates.values()],
        "sentences": expressions(grammar),
        "pictures": [_truth(scene, attributes) for scene in scenes],
    }


def _phrases(words: Grammar) -> dict[str, dict[str, str]]:
    """Attribute -> the words of a caption -> what they stand for."""
    return {
        "colour": {word: value for value, word in words.colours.items()},
        "shape": {words.noun(shape, count): shape for shape in SHAPES for count in (1, 2)},
        "size": {word: value for value, word in words.sizes.items()},
        "texture": {word: value for value, word in words.textures.items() if value != "plain"},
    }


def _order(template: str) -> list[int | list[int]]:
    """Objects (numbers) and relations (between which two) as they follow one another in a sentence."""
    return [ENDS[letter] if letter in ENDS else "abc".index(letter) for letter in re.findall(r"\{(\w)\}", template)]


def _truth(scene: Scene, attributes: Sequence[str]) -> dict[str, Any]:
    objects = [{name: getattr(thing, name) for name in attributes} for thing in scene.objects]
    if scene.count is not None:
        objects[0]["count"] = scene.count
    relations = [[i, relation, i + 1] for i, relation in enumerate(scene.relations)]
    return {"objects": objects, "relations": relations, "facts": [list(fact) for fact in scene.facts()]}
