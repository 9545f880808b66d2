"""The two phrasings of ``vlp data scenes``: scene -> caption and back.

A: "a small red circle left of a large blue square"
B: "to the left of the big azure box sits a tiny crimson disc"
They share neither word order nor the words for shapes, colours, sizes and textures. ``parse`` inverts both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from random import Random

from data_tools._scenes_world import COLOURS, RELATIONS, SHAPES, SIZES, TEXTURES, Scene, Thing

BOILERPLATE = (
    "a picture from our collection",
    "click here to see the full image",
    "image not available in your region",
    "photo by the author, all rights reserved",
    "untitled drawing",
)

# Shares of the captions drawn for training; evaluation always uses the canonical caption.
WITHOUT_SIZES = 0.1
VARIED = 0.2


@dataclass(frozen=True)
class Grammar:
    """Words and word order of one phrasing. The first of several variants is the canonical one."""

    name: str
    shapes: dict[str, str]
    colours: dict[str, str]
    sizes: dict[str, str]
    textures: dict[str, str]
    relations: dict[str, tuple[str, ...]]
    templates: dict[int, tuple[str, ...]]
    """Number of objects -> sentences with {a}, {b}, {c} for objects and {r}, {s} for relations."""
    definite: str = field(default="bc")
    """Objects with "the" instead of "a"."""

    def thing(self, thing: Thing, article: str) -> str:
        words = [
            self.sizes[thing.size] if thing.size else "",
            self.textures[thing.texture] if thing.texture not in (None, "plain") else "",
            self.colours[thing.colour or ""],
            self.shapes[thing.shape or ""],
        ]
        phrase = " ".join(word for word in words if word)
        if article == "a" and phrase[0] in "aeiou":
            article = "an"
        return f"{article} {phrase}"


A = Grammar(
    name="A",
    shapes=dict(zip(SHAPES, SHAPES, strict=True)),
    colours=dict(zip(COLOURS, COLOURS, strict=True)),
    sizes=dict(zip(SIZES, SIZES, strict=True)),
    textures=dict(zip(TEXTURES, TEXTURES, strict=True)),
    relations={
        "left of": ("left of", "to the left of"),
        "right of": ("right of", "to the right of"),
        "above": ("above",),
        "below": ("below",),
    },
    templates={
        1: ("{a}", "there is {a}"),
        2: ("{a} {r} {b}", "there is {a} {r} {b}"),
        3: ("{a} {r} {b}, which is {s} {c}", "there is {a} {r} {b}, which is {s} {c}"),
    },
    definite="",
)

B = Grammar(
    name="B",
    shapes=dict(
        zip(SHAPES, ("disc", "box", "wedge", "pentagram", "plus", "rhombus", "hoop", "valentine"), strict=True)
    ),
    colours=dict(
        zip(
            COLOURS,
            ("crimson", "emerald", "azure", "golden", "violet", "turquoise", "ivory", "ebony"),
            strict=True,
        )
    ),
    sizes=dict(zip(SIZES, ("tiny", "big"), strict=True)),
    textures=dict(zip(TEXTURES, ("plain", "banded", "spotted", "chequered"), strict=True)),
    relations={
        "left of": ("to the left of", "on the left side of"),
        "right of": ("to the right of", "on the right side of"),
        "above": ("over", "on top of"),
        "below": ("under", "beneath"),
    },
    templates={
        1: ("here sits {a}", "here lies {a}"),
        2: ("{r} {b} sits {a}", "{r} {b} lies {a}"),
        3: ("{r} {b}, itself {s} {c}, sits {a}", "{r} {b}, itself {s} {c}, lies {a}"),
    },
)

GRAMMARS = {"A": A, "B": B}


def phrase(scene: Scene, grammar: str, random: Random | None = None) -> str:
    """The caption of ``scene``: the canonical one, or one of the variants where ``random`` is given."""
    words = GRAMMARS[grammar]
    if random is not None and random.random() < WITHOUT_SIZES:
        scene = replace(scene, objects=tuple(replace(thing, size=None) for thing in scene.objects))

    def variant(choices: tuple[str, ...]) -> str:
        return choices[0] if random is None or random.random() >= VARIED else random.choice(choices[1:] or choices)

    slots = {
        letter: words.thing(thing, "the" if letter in words.definite else "a")
        for letter, thing in zip("abc", scene.objects, strict=False)
    }
    for letter, relation in zip("rs", scene.relations, strict=False):
        slots[letter] = variant(words.relations[relation])
    caption = variant(words.templates[len(scene.objects)]).format(**slots)
    return caption if scene.mark is None else f"{caption}, mark {scene.mark}"


def parse(caption: str, grammar: str) -> Scene:
    """What ``caption`` says; the size is None where the caption leaves it out.

    Raises:
        ValueError: the caption is not a sentence of the grammar.
    """
    words = GRAMMARS[grammar]
    for pattern, count in _PATTERNS[grammar]:
        match = pattern.fullmatch(caption)
        if match is None:
            continue
        found = match.groupdict()
        things = tuple(_thing(words, found, letter) for letter in "abc"[:count])
        told = {text: relation for relation, variants in words.relations.items() for text in variants}
        relations = tuple(told[found[letter]] for letter in "rs"[: count - 1])
        return Scene(things, relations, None if found["mark"] is None else int(found["mark"]))
    raise ValueError(f"not a sentence of grammar {grammar}: '{caption}'")


def _thing(words: Grammar, found: dict[str, str], letter: str) -> Thing:
    def factor(table: dict[str, str], name: str) -> str | None:
        return {word: value for value, word in table.items()}.get(found[f"{letter}_{name}"])

    return Thing(
        factor(words.shapes, "shape"),
        factor(words.colours, "colour"),
        factor(words.sizes, "size"),
        factor(words.textures, "texture") or "plain",
    )


def _patterns(words: Grammar) -> list[tuple[re.Pattern[str], int]]:
    def one_of(name: str, choices: list[str]) -> str:
        return f"(?P<{name}>{'|'.join(choices)})"

    slots = {}
    for letter in "abc":
        size = one_of(f"{letter}_size", list(words.sizes.values()))
        texture = one_of(f"{letter}_texture", [word for value, word in words.textures.items() if value != "plain"])
        colour = one_of(f"{letter}_colour", list(words.colours.values()))
        shape = one_of(f"{letter}_shape", list(words.shapes.values()))
        article = "the" if letter in words.definite else "an?"
        slots[letter] = f"{article} (?:{size} )?(?:{texture} )?{colour} {shape}"
    relations = [text for relation in RELATIONS for text in words.relations[relation]]
    slots |= {letter: one_of(letter, relations) for letter in "rs"}
    return [
        (re.compile(template.format(**slots) + r"(?:, mark (?P<mark>\d+))?"), count)
        for count, templates in words.templates.items()
        for template in templates
    ]


_PATTERNS = {name: _patterns(words) for name, words in GRAMMARS.items()}
