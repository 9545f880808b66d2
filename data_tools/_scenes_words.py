"""The words and word order of the two phrasings of ``vlp data scenes``."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_tools._scenes_world import COLOURS, COUNTS, SHAPES, SIZES, TEXTURES, Thing


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

    def relation(self, words: str) -> tuple[str, int]:
        """(relation, number of the variant) that ``words`` stand for."""
        return next((r, variants.index(words)) for r, variants in self.relations.items() if words in variants)

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
