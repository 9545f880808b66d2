"""Where the things of a caption are, what they do to each other, and what is denied of them.

Found on tags and the order of words, as captions without a verb lose parsers. So these changes are not seen:

- roles where the verb is taken for another part of speech and no article follows ("man bites dog"), or is "bit";
- roles told by a preposition alone ("a man after a dog", "a road through a wood"), or by verbs of two directions;
- "on", "in" or "near" that is left out, unless "and" takes its place: a vase holds the flowers that are in it;
- of several deeds of one thing, which one "not" denies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from data_tools._english.words import ENDS_IN_NOUN, INVERSES, PRONOUNS, RELATIONS

_PHRASES: dict[str, list[list[str]]] = {}
"""First word -> phrases of relations, the longest first."""
for _phrase in sorted((phrase.split() for phrase in RELATIONS), key=len, reverse=True):
    _PHRASES.setdefault(_phrase[0], []).append(_phrase)
_PARTICIPLES = ("VBN", "VBD")
DIRECTIONS = frozenset({"left", "right"})


@dataclass
class Token:
    """A word as spaCy tags it."""

    text: str
    lemma: str
    part: str
    tag: str
    kind: str = "stop"
    """thing, action, trait, colour, number, denial, filler (says nothing, but may stand before a noun), stop.

    What stands in a phrase of a relation is a stop.
    """


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
    """``name`` (left, above, front, on, in, near, far, outside): where the thing ``figure`` is, seen from ``ground``.

    "and" where nothing else is said of two neighbours.
    """

    name: str
    figure: int | None
    ground: int | None
    words: str
    chained: bool = False
    """Whether the figure ends another place, as the hat in "a man in a hat on a horse": it may be the man."""


@dataclass(frozen=True)
class Deed:
    """What things in front of a verb (in the passive, those after "by") do to the others of the sentence."""

    name: str
    agents: frozenset[int]
    others: frozenset[int]
    words: str


@dataclass(frozen=True)
class Denial:
    """``word`` is what "no" or "without" denies, "" for another denial; ``head`` the thing in front."""

    word: str
    head: int | None


@dataclass(frozen=True)
class Phrase:
    start: int
    stop: int
    name: str
    implicit: bool


def find_phrases(tokens: Sequence[Token]) -> list[Phrase]:
    texts, found, place = [token.text for token in tokens], [], 0
    while place < len(texts):
        for words in _PHRASES.get(texts[place], ()):
            after = place + len(words)
            on_a_side = not DIRECTIONS.isdisjoint(texts[after : after + 2]) and words in (["on"], ["in"])
            dangling = words[-1] in ENDS_IN_NOUN and (after >= len(texts) or tokens[after].part in ("CCONJ", "PUNCT"))
            if texts[place:after] == words and not on_a_side and not dangling:
                name, implicit = RELATIONS[" ".join(words)]
                stop = after
                if not implicit and stop < len(texts) and texts[stop] in PRONOUNS:
                    implicit, stop = True, stop + 1
                found.append(Phrase(place, stop, name, implicit))
                place = stop - 1
                break
        place += 1
    return found


def find_relations(tokens: Sequence[Token], phrases: Sequence[Phrase], things: Sequence[Thing]) -> Iterator[Relation]:
    places = [thing.place for thing in things]
    grounds = _grounds(phrases, places)
    last: int | None = None
    for phrase, ground in zip(phrases, grounds, strict=True):
        before = tokens[phrase.start - 1].text if phrase.start else ""
        sentence = _sentence_start(tokens, phrase.start)
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
        chained = figure in grounds
        if phrase.name in INVERSES:
            yield Relation(INVERSES[phrase.name], ground, figure, words, chained)
        else:
            yield Relation(phrase.name, figure, ground, words, chained)


def find_lists(tokens: Sequence[Token], things: Sequence[Thing]) -> Iterator[Relation]:
    """The neighbours between which "and" stands, and no verb, preposition or comma."""
    for number in range(1, len(things)):
        between = tokens[things[number - 1].place + 1 : things[number].place]
        parts = {token.part for token in between} - {"DET", "ADJ", "NUM", "NOUN", "PROPN", "PRON"}
        if parts == {"CCONJ"} and any(token.text == "and" for token in between):
            yield Relation("and", number - 1, number, "and")


def find_deeds(tokens: Sequence[Token], phrases: Sequence[Phrase], things: Sequence[Thing]) -> Iterator[Deed]:
    """Things in a place ("on a beach a man ...") do nothing, and verbs such as "stand" do nothing to a place."""
    places = [thing.place for thing in things]
    grounds = set(_grounds(phrases, places))
    inside = {place for phrase in phrases for place in range(phrase.start, phrase.stop)}
    for at, token in enumerate(tokens):
        verb = token.kind == "action" or (token.kind != "trait" and (token.part == "VERB" or token.lemma == "have"))
        if not verb or at in inside:
            continue
        start = _sentence_start(tokens, at)
        stop = next((later for later in range(at, len(tokens)) if tokens[later].text in ".;"), len(tokens))
        front = {number for number, place in enumerate(places) if start < place < at and number not in grounds}
        behind = {number for number, place in enumerate(places) if at < place < stop}
        if token.kind != "action":
            behind -= grounds
        ends = next((later for later in range(at + 1, stop) if tokens[later].kind == "action"), stop)
        by = next((later for later in range(at + 1, ends) if tokens[later].text == "by"), None)
        if token.tag in _PARTICIPLES and by is not None:
            agents = {number for number in behind if places[number] > by}
            front, behind = agents, (front | behind) - agents
        yield Deed(token.lemma, frozenset(front), frozenset(behind), token.text)


def find_denials(tokens: Sequence[Token], things: Sequence[Thing]) -> Iterator[Denial]:
    places = [thing.place for thing in things]
    for place, token in enumerate(tokens):
        if token.kind == "denial":
            near = tokens[place + 1 : place + 5] if token.text in ("no", "without") else []
            word = next((other.lemma for other in near if other.kind == "thing"), "")
            yield Denial(word, _previous(places, place, _sentence_start(tokens, place)))


def _grounds(phrases: Sequence[Phrase], places: Sequence[int]) -> list[int | None]:
    return [None if phrase.implicit else _next(places, phrase.stop) for phrase in phrases]


def _sentence_start(tokens: Sequence[Token], place: int) -> int:
    return max((at for at in range(place) if tokens[at].text in ".;"), default=-1)


def _next(places: Sequence[int], start: int) -> int | None:
    return next((number for number, place in enumerate(places) if place >= start), None)


def _previous(places: Sequence[int], stop: int, start: int = -1) -> int | None:
    return next((number for number in reversed(range(len(places))) if start < places[number] < stop), None)
