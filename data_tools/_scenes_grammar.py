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
from dataclasses import dataclass, replace
from random import Random

from data_tools._scenes_words import GRAMMARS, Grammar
from data_tools._scenes_world import RELATIONS, SHAPES, Scene, Thing

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
class Style:
    """Which of its variants a caption takes; the first of each, as here, is the canonical one."""

    template: int = 0
    relations: tuple[int, ...] = (0, 0)
    denial_first: bool = False


CANONICAL = Style()


def phrase(scene: Scene, grammar: str, random: Random | None = None, style: Style = CANONICAL) -> str:
    """The caption of ``scene`` in ``style``, or in any where ``random`` is given, now and then without sizes."""
    words = GRAMMARS[grammar]
    if random is not None and random.random() < WITHOUT_SIZES:
        scene = replace(scene, objects=tuple(replace(thing, size=None) for thing in scene.objects))

    def variant(choices: tuple[str, ...], wanted: int) -> str:
        if random is None:
            return choices[min(wanted, len(choices) - 1)]
        return choices[0] if random.random() >= VARIED else random.choice(choices[1:] or choices)

    if scene.count is not None:
        slots = {"a": words.number(scene.objects[0], scene.count), "be": "is" if scene.count == 1 else "are"}
        caption = variant(words.counted, style.template).format(**slots)
    else:
        slots = {
            letter: words.thing(thing, "the" if letter in words.definite else "a")
            for letter, thing in zip("abc", scene.objects, strict=False)
        }
        for letter, relation, wanted in zip("rs", scene.relations, style.relations, strict=False):
            slots[letter] = variant(words.relations[relation], wanted)
        caption = variant(words.templates[len(scene.objects)], style.template).format(**slots)
    if scene.absent is not None:
        first = style.denial_first if random is None else random.random() < DENIAL_FIRST
        caption = words.denials[first].format(sentence=caption, x=words.bare(scene.absent))
    return caption if scene.mark is None else f"{caption}, mark {scene.mark}"


def parse(caption: str, grammar: str) -> Scene:
    """What ``caption`` says; the size is None where the caption leaves it out.

    Raises:
        ValueError: the caption is not a sentence of the grammar.
    """
    return read(caption, grammar)[0]


def read(caption: str, grammar: str) -> tuple[Scene, Style]:
    """What ``caption`` says and how: ``phrase`` of the two is ``caption``, and of another scene a caption alike.

    Raises:
        ValueError: the caption is not a sentence of the grammar.
    """
    words, patterns = GRAMMARS[grammar], _PATTERNS[grammar]
    sentence, mark, absent, denial_first = caption, None, None, False
    if match := _MARK.fullmatch(sentence):
        sentence, mark = match["sentence"], int(match["mark"])
    for first, pattern in enumerate(patterns.denials):
        if match := pattern.fullmatch(sentence):
            sentence, absent, denial_first = match["sentence"], _thing(words, match, "x").kind(), first == 1
            break
    for sentence_pattern in patterns.sentences:
        match = sentence_pattern.pattern.fullmatch(sentence)
        if match is None:
            continue
        count, num_objects = sentence_pattern.count, sentence_pattern.num_objects
        things = tuple(_thing(words, match, letter, count or 1) for letter in "abc"[:num_objects])
        told = [words.relation(match[letter]) for letter in "rs"[: num_objects - 1]]
        scene = Scene(things, tuple(relation for relation, _ in told), mark, count, absent)
        chosen = tuple(variant for _, variant in told) + CANONICAL.relations[len(told) :]
        return scene, Style(sentence_pattern.template, chosen, denial_first)
    raise ValueError(f"not a sentence of grammar {grammar}: '{caption}'")


def expressions(grammar: str) -> list[str]:
    """Regular expressions without named groups: one of them matches the whole of a caption if ``parse`` takes it."""
    patterns = _PATTERNS[grammar]
    told = []
    for sentence in patterns.sentences:
        denied = [pattern.pattern.replace(_SENTENCE, sentence.pattern.pattern) for pattern in patterns.denials]
        told.append(f"(?:{'|'.join([sentence.pattern.pattern, *denied])})(?:, mark \\d+)?")
    return [re.sub(r"\?P<\w+>", "?:", one) for one in told]


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
class _Sentence:
    """``num_objects`` are told apart; ``count`` is how many there are of the one that is counted."""

    pattern: re.Pattern[str]
    template: int
    num_objects: int
    count: int | None = None


@dataclass(frozen=True)
class _Patterns:
    sentences: list[_Sentence]
    denials: list[re.Pattern[str]]


_SENTENCE = "(?P<sentence>.*)"
_MARK = re.compile(rf"{_SENTENCE}, mark (?P<mark>\d+)")


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
    sentences = [
        _Sentence(re.compile(template.format(**slots)), number, num_objects)
        for num_objects, templates in words.templates.items()
        for number, template in enumerate(templates)
    ]
    for count, number in words.numbers.items():
        slots = {"a": f"{number} {thing('a', count)}", "be": "is" if count == 1 else "are"}
        sentences += [
            _Sentence(re.compile(template.format(**slots)), place, 1, count)
            for place, template in enumerate(words.counted)
        ]
    absent = f"{one_of('x_colour', words.colours.values())} {one_of('x_shape', words.shapes.values())}"
    denials = [re.compile(template.format(sentence=_SENTENCE, x=absent)) for template in words.denials]
    return _Patterns(sentences, denials)


_PATTERNS = {name: _patterns(words) for name, words in GRAMMARS.items()}
