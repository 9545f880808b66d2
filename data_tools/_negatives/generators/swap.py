"""Exchanges words of a caption, or puts others of the same category for them: "a dog on a cat" for "a cat on a dog"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from data_tools._english.same_form import folded, same_form, words
from data_tools._negatives import base
from data_tools._negatives.base import Captioned, Negative, Place

if TYPE_CHECKING:
    from data_tools._negatives.parse import Parsed

KINDS = (
    "swap relation",
    "swap nouns",
    "swap adjectives",
    "swap verbs",
    "swap adverbs",
    "swap noun phrases",
    "replace colour",
    "replace number",
    "replace size",
    "replace relation",
    "replace material",
    "replace time",
    "replace antonym",
)
"""In the order in which a text is taken that two kinds give."""


class Generator(base.Generator, frozen=True, extra="forbid"):
    """English captions changed by their words' kinds, which spaCy and word lists tell."""

    kinds: tuple[str, ...] = Field(default=(), description=f"only these kinds of changes: {', '.join(KINDS)}")
    per_kind: int = Field(default=2, ge=1, description="changes of each kind for a caption, drawn where there are more")

    @field_validator("kinds")
    @classmethod
    def _are_known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"no kind '{kind}'; known: {', '.join(KINDS)}")
        return tuple(kind for kind in KINDS if kind in kinds)

    def prepare(self, paths: Sequence[str], caption: str, place: Place) -> None:
        from data_tools._negatives import inflect, parse

        next(parse.parse(["a dog"]))
        inflect.form("dog", "NNS")

    def negatives(self, path: str, items: Sequence[Captioned], place: Place) -> list[list[Negative]]:
        from data_tools._negatives.parse import parse

        parsed = parse(item.caption for item in items)
        return [list(self._changed(one, item, place.seed)) for one, item in zip(parsed, items, strict=True)]

    def _changed(self, parsed: Parsed, item: Captioned, seed: int) -> Iterator[Negative]:
        from data_tools._negatives.edit import render
        from data_tools._negatives.replacements import REPLACEMENTS
        from data_tools._negatives.swaps import SWAPS

        said = frozenset(word for text in (item.caption, *item.others) for word in words(folded(text)))
        taken = {same_form(item.caption)}
        for kind in self.kinds or KINDS:
            candidates = list(SWAPS[kind](parsed) if kind in SWAPS else REPLACEMENTS[kind](parsed, said))
            if candidates:
                Random(f"{seed}/{kind}/{item.caption}".encode("utf-8", "surrogatepass")).shuffle(candidates)
            left = self.per_kind
            for changes in candidates:
                if not left:
                    break
                text = render(parsed.words, changes)
                if same_form(text) not in taken:
                    taken.add(same_form(text))
                    left -= 1
                    yield Negative(text, kind)
