"""The words of captions with their kinds, and the noun phrases that they form.

Found on spaCy's tags and word lists as for rewrites: its parser is lost in captions without a verb.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from data_tools._english.kinds import MODIFIERS, POSSESSIVE, name_kinds
from data_tools._english.roles import Phrase, Token, find_phrases
from data_tools._english.tagger import tagger
from data_tools._english.words import word_set

_NEED, _CURE = "the generator swap needs", "pip install 'vlp[negatives]'"
_QUOTES = str.maketrans("’‘“”", "''\"\"")
_PLURALS = frozenset({"NNS", "NNPS"})
_DEPICTIONS = word_set(
    "picture image photo photograph drawing illustration painting view scene shot depiction graphic sight closeup"
)
_IRREGULAR_PLURALS = word_set("people children men women")
_VERBS = {
    form: verb
    for verb in word_set(
        "talk lie pose sit look walk run jump lean hang eat swim sleep wait smile throw float graze read hold kneel "
        "perch chase wear sing"
    )
    for form in (verb, f"{verb}s")
} | {"catches": "catch", "carries": "carry", "flies": "fly"}
"""What taggers take for nouns at times: "a man with a beard talks on his phone"."""
_BATCH = 256


@dataclass
class Word(Token):
    """A token; ``text`` is in lower case."""

    written: str = ""
    space: str = ""
    """What stands between it and the next one."""
    bound: bool = False
    """Part of a word with a hyphen or an apostrophe."""


@dataclass(frozen=True)
class NounPhrase:
    """Words [start, stop) with article and adjectives, and with "of" and what follows: "a cup of hot coffee".

    Its last noun stands at [noun, stop); ``adjectives`` are places in front of it, ``article`` the word before them.
    """

    start: int
    stop: int
    noun: int
    adjectives: tuple[int, ...]
    article: str
    plural: bool
    """Whether the last noun is."""
    several: bool
    """Whether a verb after it takes the form for several things."""


@dataclass(frozen=True)
class Parsed:
    """A caption and what is known of it."""

    words: list[Word]
    phrases: list[Phrase]
    """Of places: "next to"."""

    @cached_property
    def nouns(self) -> list[NounPhrase]:
        return _joined_by_of(self.words, list(_noun_phrases(self.words)))


def parse(captions: Iterable[str]) -> Iterator[Parsed]:
    """Each caption, in order.

    Raises:
        UserError: spaCy or its model is not installed.
    """
    pipeline = tagger(_NEED, _CURE)
    from spacy.tokens import Doc

    written = (pipeline.make_doc(_plain(caption)) for caption in captions)
    lower = (
        (Doc(own.vocab, [_lower(token.text) for token in own], [bool(token.whitespace_) for token in own]), own)
        for own in written
    )
    for document, own in pipeline.pipe(lower, as_tuples=True, batch_size=_BATCH):
        words = [
            Word(token.text, token.lemma_, token.pos_, token.tag_, written=form.text, space=form.whitespace_)
            for token, form in zip(document, own, strict=True)
        ]
        phrases = find_phrases(words)
        tokens: list[Token] = [*words]
        name_kinds(tokens, phrases)
        _mend_kinds(words)
        _bind(words)
        yield Parsed(words, phrases)


def _plain(caption: str) -> str:
    """With single spaces, and without halves of letters, which spaCy cannot hold."""
    return " ".join(caption.encode("utf-8", "replace").decode().split())


def _lower(text: str) -> str:
    return text.lower().translate(_QUOTES)


def _mend_kinds(words: Sequence[Word]) -> None:
    """What the tagger takes for something else in captions."""
    for word in words:
        if word.kind == "colour" and word.tag == "NNS":
            word.kind = "thing"  # "a bowl of oranges"
    for before, word, after in zip(words, words[1:], [*words[2:], None], strict=False):
        participle = word.kind == "action" and word.tag in ("VBN", "VBD")
        if participle and before.part == "ADP" and after and after.kind == "thing":
            word.kind, word.lemma = "trait", word.text  # "of dried fruit"
        if word.tag == "VBN" and before.kind == "thing" and after and after.kind == "thing":
            word.kind = "thing"  # "snow covered mountains"
        lemma = _VERBS.get(word.text)
        if lemma and _is_noun(word) and before.tag in ("NN", "NNP") and before.kind != "trait" and not _goes_on(after):
            word.kind, word.part, word.lemma = "action", "VERB", lemma
            word.tag = "VBP" if word.text == lemma else "VBZ"


def _goes_on(after: Word | None) -> bool:
    return after is not None and after.part not in ("ADP", "ADV", "DET", "PRON", "CCONJ", "SCONJ", "PUNCT", "NUM")


def _bind(words: Sequence[Word]) -> None:
    for one, two in pairwise(words):
        if not one.space and (one.text == "-" or two.text == "-" or "'" in two.text):
            one.bound = two.bound = True


def _noun_phrases(words: Sequence[Word]) -> Iterator[NounPhrase]:
    last = 0
    for place in range(len(words)):
        following = words[place + 1] if place + 1 < len(words) else None
        inside = following and (_is_noun(following) or following.text in POSSESSIVE or _glued(words, place + 1))
        if not _is_noun(words[place]) or inside:
            continue
        noun = place
        while noun > last and (_is_noun(words[noun - 1]) or _glued(words, noun)):
            noun -= 1
        start, adjectives = _attributes(words, noun, last)
        while start > last and (words[start - 1].part == "DET" or words[start - 1].tag == "PRP$"):
            start -= 1
        plural = words[place].tag in _PLURALS or words[place].text in _IRREGULAR_PLURALS
        article = words[start].text if start < (adjectives or [noun])[0] else ""
        yield NounPhrase(start, place + 1, noun, tuple(adjectives), article, plural, plural)
        last = place + 1


def _is_noun(word: Word) -> bool:
    return word.kind == "thing" or (word.kind == "filler" and word.part == "NOUN")


def _glued(words: Sequence[Word], place: int) -> bool:
    """Whether a word hangs on the one before it by a hyphen."""
    return place > 0 and not words[place - 1].space and "-" in (words[place - 1].text, words[place].text)


def _attributes(words: Sequence[Word], noun: int, last: int) -> tuple[int, list[int]]:
    """Where the words before a noun start that say more of it, and which of them are adjectives."""
    start = noun
    adjectives: list[int] = []
    while start > last:
        before = words[start - 1]
        if _glued(words, start):
            adjectives = [place for place in adjectives if place != start]
        elif before.kind in MODIFIERS:
            adjectives.insert(0, start - 1)
        elif before.text in (",", "and"):
            listed = start - 2 >= last and adjectives[:1] == [start] and words[start - 2].kind in MODIFIERS
            if not listed or "number" in (words[start].kind, words[start - 2].kind):
                break
        elif before.text in POSSESSIVE or (before.kind == "thing" and words[start].text in POSSESSIVE):
            adjectives = []  # those of the owner
        elif not (before.kind == "filler" and before.part in ("ADJ", "ADV")):
            break
        start -= 1
    return start, adjectives


def _joined_by_of(words: Sequence[Word], phrases: list[NounPhrase]) -> list[NounPhrase]:
    """ "A cup of coffee" is one phrase; "a picture of" only stands before one."""
    found: list[NounPhrase] = []
    for phrase in phrases:
        before = found[-1] if found else None
        if before and before.stop + 1 == phrase.start and words[before.stop].text == "of":
            found.pop()
            if words[before.stop - 1].text not in _DEPICTIONS:
                phrase = replace(phrase, start=before.start, several=before.several)
        found.append(phrase)
    return [phrase for phrase in found if any(word.kind == "thing" for word in words[phrase.noun : phrase.stop])]
