"""The options of ``vlp data scenes``, checked, and the world they describe."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_tools._scenes_words import GRAMMARS, A
from data_tools._scenes_world import COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing, World
from vlp.resolve import nearest
from vlp.types import UserError

FACTORS = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES}
MAX_MARKS = 65_535
MAX_LONG_TAIL = 4.0


@dataclass(frozen=True)
class ScenesOptions:
    """Options of ``vlp data scenes``; its ``--help`` says what they mean.

    Raises:
        UserError: a value that cannot be, named as on the command line.
    """

    out: str | Path
    num_train: int = 20_000
    num_eval: int = 1000
    seed: int = 0
    image_size: int = 32
    objects: str = "1-2"
    textures: tuple[str, ...] = ("plain",)
    grammar: str = "A"
    eval_grammar: str = "A"
    caption_noise: float = 0.0
    boilerplate: float = 0.0
    duplicates: float = 0.0
    shortcut: int = 0
    long_tail: float = 0.0
    hold_out: tuple[str, ...] = ()
    counting: float = 0.0
    negation: float = 0.0
    samples_per_shard: int = 1000

    def __post_init__(self) -> None:
        for name, low in (("num_train", 1), ("num_eval", 1), ("samples_per_shard", 1), ("image_size", 16)):
            if getattr(self, name) < low:
                raise UserError(f"{_flag(name)} {getattr(self, name)} is too small: at least {low}")
        limits = {
            "caption_noise": 1,
            "boilerplate": 1,
            "duplicates": 1,
            "shortcut": MAX_MARKS,
            "long_tail": MAX_LONG_TAIL,
            "counting": 1,
            "negation": 1,
        }
        for name, high in limits.items():
            if not 0 <= getattr(self, name) <= high:
                raise UserError(f"{_flag(name)} {getattr(self, name)} must lie between 0 and {high:g}")
        if self.caption_noise + self.boilerplate > 1:
            raise UserError("--caption-noise and --boilerplate together exceed 1: they replace different captions")
        if self.counting and self.shortcut:
            raise UserError("--counting and --shortcut exclude each other: four objects leave no corner for a mark")
        _known(self.grammar, [*GRAMMARS, "both"], "--grammar")
        _known(self.eval_grammar, list(GRAMMARS), "--eval-grammar")
        for texture in self.textures:
            _known(texture, TEXTURES, "--textures")
        if not self.textures:
            raise UserError(f"--textures is empty: name some of {', '.join(TEXTURES)}")
        self.world()

    @property
    def grammars(self) -> tuple[str, ...]:
        """The phrasings of the training captions."""
        return tuple(GRAMMARS) if self.grammar == "both" else (self.grammar,)

    def world(self) -> World:
        counts = _parse_objects(self.objects)
        hold_out = tuple(parse_hold_out(text) for text in self.hold_out)
        for text, claim in zip(self.hold_out, hold_out, strict=True):
            if max(counts) < 2:
                raise UserError(f"--hold-out '{text}' is evaluated on scenes of two objects: set --objects 1-2")
            for thing in claim.objects:
                if thing.texture is not None and thing.texture not in self.textures:
                    raise UserError(f"--hold-out '{text}' names a texture that --textures lacks: add {thing.texture}")
        return World(self.seed, counts, self.textures, self.long_tail, hold_out)


def parse_hold_out(text: str) -> Scene:
    """What is held out: "red circle", "large star", "circle left of square", "red left of blue".

    Words left out stand for every value; the two ends of a relation may be exchanged as in any scene.

    Raises:
        UserError: an unknown word, or fewer than two words, which would keep a word itself from training.
    """
    words = " ".join(text.lower().split())
    told = {variant: relation for relation, variants in A.relations.items() for variant in variants}
    # Longest first, as "to the left of" holds "left of".
    ends = re.split("\\b(" + "|".join(sorted(told, key=len, reverse=True)) + ")\\b", words)
    if len(ends) > 3:
        raise UserError(f"--hold-out '{text}' has two relations: hold out one at a time")
    things = tuple(_pattern(end, text) for end in ends[::2])
    relations = tuple(told[relation] for relation in ends[1::2])
    num_said = len(relations) + sum(value is not None for thing in things for value in thing.values())
    if num_said < 2:
        raise UserError(
            f"--hold-out '{text}' must combine two words or more, such as 'red circle' or 'star above heart'"
        )
    return Scene(things, relations)


def _pattern(words: str, text: str) -> Thing:
    found: dict[str, str] = {}
    known = {value: factor for factor, values in FACTORS.items() for value in values}
    for word in words.split():
        if word in ("a", "an", "the"):
            continue
        _known(word, [*known, *A.relations], f"--hold-out '{text}'")
        if known[word] in found:
            raise UserError(f"--hold-out '{text}' names two {known[word]}s for one object: keep one")
        found[known[word]] = word
    return Thing(*(found.get(factor) for factor in FACTORS))


def _parse_objects(text: str) -> tuple[int, ...]:
    match = re.fullmatch(r"([1-3])(?:-([1-3]))?", text.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if low > high:
        raise UserError(f"--objects '{text}' must be a number from 1 to 3 or a range such as 1-2")
    return tuple(range(low, high + 1))


def _known(word: str, known: Iterable[str], where: str) -> None:
    known = list(known)
    if word not in known:
        raise UserError(f"{where} has the unknown word '{word}'{nearest(word, known)}; known: {', '.join(known)}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
