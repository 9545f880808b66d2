"""The two phrasings of ``vlp data scenes``: scene -> caption and back.

A: "a small red circle left of a large blue square"
B: "to the left of the big azure box sits a tiny crimson disc"
They share neither word order nor the words for shapes, colours, sizes, textures and numbers. ``parse`` inverts both.

Several equal objects are "two small red circles" or "here sits a pair of tiny crimson discs". What is not there comes
last or first: "a red circle and no blue square", "no blue square but a red circle"; "here sits a crimson disc, without
any azure box", "without any azure box, here sits a crimson disc".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from random import Random

from data_tools._scenes_world import COLOURS, COUNTS, RELATIONS, SHAPES, SIZES, TEXTURES, Scene, Thing

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
DENIAL_FIRST = 0.5


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
    numbers: dict[int, str]
    counted: tuple[str, ...]
    """Sentences with {a} for several equal objects and {be} for "is" or "are"."""
    denials: tuple[str, str]
    """Sentences with {x} for what is not there and {sentence} for the rest: last, first."""
    definite: str = field(default="bc")
    """Objects with "the" instead of "a"."""

    def thing(self, thing: Thing, article: str) -> str:
        phrase = self.bare(thing)
        if article == "a" and phrase[0] in "aeiou":
            article = "an"
        return f"{article} {phrase}"

    def number(self, thing: Thing, count: int) -> str:
        return f"{self.numbers[count]} {self.bare(thing, count)}"

    def noun(self, shape: str, count: int) -> str:
        word = self.shapes[shape]
        return word if count == 1 else word + ("es" if word.endswith("s") else "s")

    def bare(self, thing: Thing, count: int = 1) -> str:
        """The words for one or several such things, without article and number."""
        words = [
            self.sizes[thing.size] if thing.size else "",
            self.textures[thing.texture] if thing.texture not in (None, "plain") else "",
            self.colours[thing.colour or ""],
            self.noun(thing.shape or "", count),
        ]
        return " ".join(word for word in words if word)


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
    numbers=dict(zip(COUNTS, ("one", "two", "three", "four"), strict=True)),
    counted=("{a}", "there {be} {a}"),
    denials=("{sentence} and no {x}", "no {x} but {sentence}"),
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
    numbers=dict(zip(COUNTS, ("a lone", "a pair of", "a trio of", "a quartet of"), strict=True)),
    counted=("here sits {a}", "here lies {a}"),
    denials=("{sentence}, without any {x}", "without any {x}, {sentence}"),
)

GRAMMARS = {"A": A, "B": B}


def phrase(scene: Scene, grammar: str, random: Random | None = None, denial_first: bool = False) -> str:
    """The caption of ``scene``: the canonical one, or one of the variants where ``random`` is given.

    ``denial_first`` puts what is absent before the rest of the canonical caption.
    """
    words = GRAMMARS[grammar]
    if random is not None and random.random() < WITHOUT_SIZES:
        scene = replace(scene, objects=tuple(replace(thing, size=None) for thing in scene.objects))

    def variant(choices: tuple[str, ...]) -> str:
        return choices[0] if random is None or random.random() >= VARIED else random.choice(choices[1:] or choices)

    if scene.count is not None:
        slots = {"a": words.number(scene.objects[0], scene.count), "be": "is" if scene.count == 1 else "are"}
        caption = variant(words.counted).format(**slots)
    else:
        slots = {
            letter: words.thing(thing, "the" if letter in words.definite else "a")
            for letter, thing in zip("abc", scene.objects, strict=False)
        }
        for letter, relation in zip("rs", scene.relations, strict=False):
            slots[letter] = variant(words.relations[relation])
        caption = variant(words.templates[len(scene.objects)]).format(**slots)
    if scene.absent is not None:
        first = denial_first if random is None else random.random() < DENIAL_FIRST
        caption = words.denials[first].format(sentence=caption, x=words.bare(scene.absent))
    return caption if scene.mark is None else f"{caption}, mark {scene.mark}"


def parse(caption: str, grammar: str) -> Scene:
    """What ``caption`` says; the size is None where the caption leaves it out.

    Raises:
        ValueError: the caption is not a sentence of the grammar.
    """
    words, patterns = GRAMMARS[grammar], _PATTERNS[grammar]
    sentence, mark, absent = caption, None, None
    if match := _MARK.fullmatch(sentence):
        sentence, mark = match["sentence"], int(match["mark"])
    for pattern in patterns.denials:
        if match := pattern.fullmatch(sentence):
            sentence, absent = match["sentence"], _thing(words, match, "x").kind()
            break
    for pattern, num_objects, count in patterns.sentences:
        match = pattern.fullmatch(sentence)
        if match is None:
            continue
        things = tuple(_thing(words, match, letter, count or 1) for letter in "abc"[:num_objects])
        told = {text: relation for relation, variants in words.relations.items() for text in variants}
        relations = tuple(told[match[letter]] for letter in "rs"[: num_objects - 1])
        return Scene(things, relations, mark, count, absent)
    raise ValueError(f"not a sentence of grammar {grammar}: '{caption}'")


def _thing(words: Grammar, match: re.Match[str], letter: str, count: int = 1) -> Thing:
    found = match.groupdict()

    def factor(table: dict[str, str], name: str) -> str | None:
        return {word: value for value, word in table.items()}.get(found.get(f"{letter}_{name}", ""))

    return Thing(
        factor({shape: words.noun(shape, count) for shape in SHAPES}, "shape"),
        factor(words.colours, "colour"),
        factor(words.sizes, "size"),
        factor(words.textures, "texture") or "plain",
    )


@dataclass(frozen=True)
class _Patterns:
    sentences: list[tuple[re.Pattern[str], int, int | None]]
    """(pattern, number of objects told apart, how many there are of the one that is counted)."""
    denials: list[re.Pattern[str]]


_MARK = re.compile(r"(?P<sentence>.*), mark (?P<mark>\d+)")


def _patterns(words: Grammar) -> _Patterns:
    def one_of(name: str, choices: Iterable[str]) -> str:
        return f"(?P<{name}>{'|'.join(choices)})"

    def thing(letter: str, count: int = 1) -> str:
        size = one_of(f"{letter}_size", words.sizes.values())
        texture = one_of(f"{letter}_texture", [word for value, word in words.textures.items() if value != "plain"])
        colour = one_of(f"{letter}_colour", words.colours.values())
        shape = one_of(f"{letter}_shape", [words.noun(shape, count) for shape in SHAPES])
        return f"(?:{size} )?(?:{texture} )?{colour} {shape}"

    slots = {letter: f"{'the' if letter in words.definite else 'an?'} {thing(letter)}" for letter in "abc"}
    relations = [text for relation in RELATIONS for text in words.relations[relation]]
    slots |= {letter: one_of(letter, relations) for letter in "rs"}
    sentences: list[tuple[re.Pattern[str], int, int | None]] = [
        (re.compile(template.format(**slots)), num_objects, None)
        for num_objects, templates in words.templates.items()
        for template in templates
    ]
    for count, number in words.numbers.items():
        slots = {"a": f"{number} {thing('a', count)}", "be": "is" if count == 1 else "are"}
        sentences += [(re.compile(template.format(**slots)), 1, count) for template in words.counted]
    absent = f"{one_of('x_colour', words.colours.values())} {one_of('x_shape', words.shapes.values())}"
    denials = [re.compile(template.format(sentence="(?P<sentence>.*)", x=absent)) for template in words.denials]
    return _Patterns(sentences, denials)


_PATTERNS = {name: _patterns(words) for name, words in GRAMMARS.items()}
