"""What kind of word each word of a caption is: a thing, an action, a trait, a colour, a number, a denial, or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from data_tools._english.roles import DIRECTIONS, Phrase, Token
from data_tools._english.words import ADJECTIVES, COLOURS, DENIALS, KEPT, NUMBERS, PAIRED, PLAIN, digits

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
MODIFIERS = frozenset({"trait", "colour", "number"})


_PARTICIPLES = frozenset({"VBN", "VBG", "VBD"})
_ARTICLES = frozenset({"a", "an", "the"})
_CLOSED = frozenset({"PRON", "DET", "SCONJ", "AUX", "ADP", "CCONJ", "PART"})
POSSESSIVE = frozenset({"'s", "'"})


def name_kinds(tokens: list[Token], phrases: Sequence[Phrase]) -> None:
    """Set the kind of each token, and its lemma where the tagger was wrong; words in ``phrases`` stay stops.

    Args:
        tokens: in lower case, as `tagger` has tagged them.
    """
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
    return token is not None and (token.part == "DET" or token.kind in MODIFIERS)


def _goes_before_noun(token: Token | None) -> bool:
    if token is None:
        return False
    return token.kind in (*MODIFIERS, "thing", "filler") or (token.kind == "action" and token.tag in _PARTICIPLES)


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
    from spacy.lang.en.stop_words import STOP_WORDS

    return frozenset(STOP_WORDS) | {"despite", "past", "onto", "atop", "amid", "per", "somebody"}
