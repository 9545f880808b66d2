"""What a caption says, as far as the gate compares it: things with their attributes, places, denials, other words.

Things are runs of words that end in a noun, found on the tags of spaCy with the word lists in front: its parser is lost
in captions without a verb. Analysed in lower case, so that a caption in capitals says the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from data_tools._english.kinds import MODIFIERS, POSSESSIVE, name_kinds
from data_tools._english.roles import (
    DIRECTIONS,
    Deed,
    Denial,
    Phrase,
    Relation,
    Thing,
    Token,
    find_deeds,
    find_denials,
    find_lists,
    find_phrases,
    find_relations,
)
from data_tools._english.tagger import tagger
from data_tools._english.words import NUMBERS, digits

_NEED, _CURE = "the rules on the content of rewrites need", "pip install 'vlp[rewrite]', or switch them off"
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": " ", "”": " ", '"': " ", "—": ", ", "–": ", ", "…": " "})
_END = re.compile(r"[\s.!?,;:]+$")
_LETTER_STOP = re.compile(r"\b(\w)\.(?=\s)")


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
    denied: tuple[Denial, ...]
    things: tuple[Thing, ...]
    relations: tuple[Relation, ...]
    deeds: tuple[Deed, ...]


def analyse(texts: Iterable[str]) -> Iterator[Facts]:
    """Of each text, in order.

    Raises:
        UserError: spaCy or its model is not installed.
    """
    for document in tagger(_NEED, _CURE).pipe(map(_plain, texts), batch_size=256):
        tokens = [Token(word.text, word.lemma_, word.pos_, word.tag_) for word in document if not word.is_space]
        phrases = find_phrases(tokens)
        name_kinds(tokens, phrases)
        yield _facts(tokens, phrases)


def _plain(text: str) -> str:
    return _LETTER_STOP.sub(r"\1 .", _END.sub("", " ".join(text.translate(_QUOTES).lower().split())))


def _facts(tokens: Sequence[Token], phrases: Sequence[Phrase]) -> Facts:
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
        denied=tuple(find_denials(tokens, things)),
        things=tuple(things),
        relations=(*find_relations(tokens, phrases, things), *find_lists(tokens, things)),
        deeds=tuple(find_deeds(tokens, phrases, things)),
    )


def _values(token: Token) -> list[str]:
    return [NUMBERS[token.text]] if token.text in NUMBERS else digits(token.text)


def _counted(tokens: Iterable[Token]) -> Iterator[str]:
    for token in tokens:
        if token.kind == "thing":
            yield token.lemma
        elif token.kind == "number":
            yield from _values(token)


def _things(tokens: Sequence[Token]) -> list[Thing]:
    things: list[Thing] = []
    waiting: list[Token] = []
    for place, token in enumerate(tokens):
        following = tokens[place + 1] if place + 1 < len(tokens) else None
        if token.kind in MODIFIERS:
            if not (token.text in DIRECTIONS and place and tokens[place - 1].kind == "action"):  # "facing right"
                waiting.append(token)
        elif token.kind == "thing" or (token.text in POSSESSIVE and place and tokens[place - 1].kind == "thing"):
            if following is None or not (following.kind == "thing" or following.text in POSSESSIVE):
                first = place
                while first and (tokens[first - 1].kind == "thing" or tokens[first - 1].text in POSSESSIVE):
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
        elif waiting and token.part == "DET" and waiting[-1].text in DIRECTIONS:
            pass  # "on the left a cat"
        elif waiting and not _goes_on(token, following):
            if things:  # "the couch is red and", "a truck in green with"
                _attach(things[-1], waiting)
            waiting = []
    if things:
        _attach(things[-1], waiting)
    return things


def _goes_on(token: Token, following: Token | None) -> bool:
    """Whether words before a noun still wait for it after this one: "black and white cat", "two of the cats"."""
    if token.kind == "filler" or token.text in ("of", "-"):
        return True
    return token.text in (",", "and") and following is not None and following.kind in MODIFIERS


def _attach(thing: Thing, modifiers: Iterable[Token]) -> None:
    for token in modifiers:
        if token.kind == "colour":
            thing.colours.add(token.text)
        elif token.kind == "number":
            thing.numbers.update(_values(token))
        else:
            thing.traits.add(token.lemma)
