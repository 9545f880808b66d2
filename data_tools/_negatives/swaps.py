"""Two parts of a caption that can change places, after NegCLIP (Yuksekgonul et al. 2023): kind -> all such pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise

from data_tools._english.words import COLOURS, DENIALS, word_set
from data_tools._negatives.alike import alike
from data_tools._negatives.categories import SET_PHRASES
from data_tools._negatives.edit import Change, exchange, is_name
from data_tools._negatives.inflect import inflected
from data_tools._negatives.names import is_place_name
from data_tools._negatives.parse import NounPhrase, Parsed, Word

Changes = tuple[Change, ...]

_MASS = word_set(
    "snow water grass sand food hair rice bread wood ice rain mud dirt hay traffic furniture luggage baggage clothing "
    "jewelry milk coffee tea beer wine juice sugar salt butter meat soup pasta smoke fog air weather foliage tennis "
    "baseball soccer basketball surfing skiing skateboarding graffiti cheese broccoli fruit equipment gravel concrete "
    "skin tone half"
)
"""Nouns that are not counted."""
_SINGLE, _OPEN = (
    word_set("a an another each every one this that"),
    word_set("the its his her their my our your some no"),
)
_APART = word_set(", and or but ; . : ! ? that which who while as like than of ( ) - /")
"""What makes two neighbours no ends of a relation."""
_PARTS = word_set('. ; : ! ? ( ) — – - / … "')
_OF_BODY = word_set("hand hands head heads eye eyes mouth arm arms leg legs foot feet face faces nose finger fingers")
"""Belong to who stands before them where they have no article: "a man raising hand"."""
_EQUAL = word_set("is are was were be being called named known as")
_BOTH_WAYS = word_set("with near beside alongside next to close adjacent far away from")
_FINITE = frozenset({"VBZ", "VBP", "VB"})
_INFLECTED = frozenset({"VB", "VBG", "VBZ", "VBP", "VBD"})
_NO_DEEDS = word_set("be have do get let can could will would may might must shall should")
_MANNERS = word_set("fast slow high low up down together apart indoors outdoors upwards downwards forward backward")


def relations(parsed: Parsed) -> Iterator[Changes]:
    """The two ends of a preposition or a verb: "a cat on a mat" -> "a mat on a cat"."""
    neighbours = set(pairwise(parsed.nouns))
    for one, two in _ends(parsed):
        if (one, two) in neighbours and _relate(parsed, one, two) and _may_change(parsed, one, two):
            yield exchange((one.start, one.stop), (two.start, two.stop))


def noun_phrases(parsed: Parsed) -> Iterator[Changes]:
    """Whole phrases with their articles and adjectives."""
    for one, two in _ends(parsed):
        if _may_change(parsed, one, two) and not _listed(parsed.words, one, two):
            yield exchange((one.start, one.stop), (two.start, two.stop))


def nouns(parsed: Parsed) -> Iterator[Changes]:
    """Nouns alone: each takes the number, the article and the adjectives of the other.

    Without articles a noun with adjectives is mostly the name of one thing: "a wheelchair in a manual man".
    """
    words = parsed.words
    telegraphic = not any(word.part == "DET" for word in words)
    for one, two in _ends(parsed):
        if telegraphic:
            alike_counted = one.plural == two.plural and _is_mass(words, one) == _is_mass(words, two)
            fit = alike_counted and not (one.adjectives or two.adjectives)
        else:
            fit = _fits(words, one, two) and _fits(words, two, one)
        if not fit or _same_noun(words, one, two) or _set_phrase(words, one) or _set_phrase(words, two):
            continue
        first, second = _in_number_of(words, one, two), _in_number_of(words, two, one)
        if first and second:
            yield Change(two.noun, two.stop, first), Change(one.noun, one.stop, second)


def adjectives(parsed: Parsed) -> Iterator[Changes]:
    """Adjectives, colours and numbers of two things."""
    words = parsed.words
    for one, two in _pairs(parsed):
        for first in _single(words, one):
            for second in _single(words, two):
                kinds = words[first].kind, words[second].kind
                counted = "number" in kinds and not (kinds[0] == kinds[1] and one.plural and two.plural)
                graded = {words[first].tag, words[second].tag} & {"JJR", "JJS"}
                known = _has(words, two, words[first].text) or _has(words, one, words[second].text)
                if not (counted or graded or known or _same_noun(words, one, two)):
                    yield exchange((first, first + 1), (second, second + 1))


def verbs(parsed: Parsed) -> Iterator[Changes]:
    """Verbs, with the preposition that belongs to them, in the tense of the other."""
    words = parsed.words
    if any(word.text in ("other", "another") for word in words):
        return  # "one sits and the other sleeps" is the same the other way round
    starts = {phrase.start for phrase in parsed.nouns}
    deeds = [deed for place in range(len(words)) if (deed := _deed(parsed, place, starts))]
    for (one, one_stop, first), (two, two_stop, second) in combinations(deeds, 2):
        apart = not _PARTS.isdisjoint(_texts(words, one, two))
        if apart or one_stop > two or alike(words[one].lemma, words[two].lemma) or first != second:
            continue
        forms = inflected(words[one], words[two].tag), inflected(words[two], words[one].tag)
        passive = "VBN" in (words[one].tag, words[two].tag) and words[one].tag != words[two].tag
        if all(forms) and not passive:
            yield (
                Change(one, one_stop, (forms[1] or "", *range(two + 1, two_stop))),
                Change(two, two_stop, (forms[0] or "", *range(one + 1, one_stop))),
            )


def adverbs(parsed: Parsed) -> Iterator[Changes]:
    """Adverbs of manner and direction."""
    places = [place for place, word in enumerate(parsed.words) if _is_manner(word)]
    for one, two in combinations(places, 2):
        if not alike(parsed.words[one].text, parsed.words[two].text):
            yield exchange((one, one + 1), (two, two + 1))


SWAPS: dict[str, Callable[[Parsed], Iterator[Changes]]] = {
    "swap relation": relations,
    "swap nouns": nouns,
    "swap adjectives": adjectives,
    "swap verbs": verbs,
    "swap adverbs": adverbs,
    "swap noun phrases": noun_phrases,
}
"""What gives the same text by two kinds counts as the first."""


def _pairs(parsed: Parsed) -> Iterator[tuple[NounPhrase, NounPhrase]]:
    """Those of one sentence that name different things: not "a lamb (a young sheep)", "the moth is an insect"."""
    for one, two in combinations(parsed.nouns, 2):
        between = set(_texts(parsed.words, one.stop, two.start))
        listed = "," in between and ":" in _texts(parsed.words, 0, one.start)  # "kiss: man, medium skin tone"
        if between.isdisjoint(_PARTS) and not between <= _EQUAL and not listed:
            yield one, two


def _ends(parsed: Parsed) -> Iterator[tuple[NounPhrase, NounPhrase]]:
    """Those of which each is a thing that can stand in the place of the other; not what something is for."""
    words = parsed.words
    for one, two in _pairs(parsed):
        purpose = "for" in _texts(words, one.stop, two.start)
        own = any(not phrase.article and words[phrase.stop - 1].text in _OF_BODY for phrase in (one, two))
        if not (purpose or own or is_place_name(words, one) or is_place_name(words, two)):
            yield one, two


def _relate(parsed: Parsed, one: NounPhrase, two: NounPhrase) -> bool:
    inside = {place for phrase in parsed.phrases for place in range(phrase.start, phrase.stop)}
    places = range(one.stop, two.start)
    texts = {parsed.words[place].text for place in places}
    loose = {parsed.words[place].text for place in places if place not in inside}  # not "of" in "left of"
    related = not inside.isdisjoint(places) or any(
        parsed.words[place].part in ("ADP", "VERB") or parsed.words[place].tag in ("IN", "TO", "RP") for place in places
    )
    return related and loose.isdisjoint(_APART) and not texts <= _BOTH_WAYS | {"is", "are"}


def _may_change(parsed: Parsed, one: NounPhrase, two: NounPhrase) -> bool:
    words = parsed.words
    owned = any(words[phrase.start].tag == "PRP$" for phrase in (one, two))
    finite = any(word.tag in _FINITE or (word.tag == "VBN" and word.text == word.lemma) for word in words[one.stop :])
    counted = finite or any("there" in _texts(words, phrase.start - 2, phrase.start) for phrase in (one, two))
    if owned or _set_phrase(words, one) or _set_phrase(words, two) or (counted and one.several != two.several):
        return False
    return _said(words, one) != _said(words, two)


def _said(words: Sequence[Word], phrase: NounPhrase) -> list[str]:
    """Its words without articles: "one elephant follows another elephant" either way."""
    return [word.text for word in words[phrase.start : phrase.stop] if word.part != "DET" and word.text != "one"]


def _listed(words: Sequence[Word], one: NounPhrase, two: NounPhrase) -> bool:
    return set(_texts(words, one.stop, two.start)) <= {"and", "or", ",", "&"}


def _texts(words: Sequence[Word], start: int, stop: int) -> list[str]:
    return [word.text for word in words[max(start, 0) : max(stop, 0)]]


def _set_phrase(words: Sequence[Word], phrase: NounPhrase) -> bool:
    return not SET_PHRASES.isdisjoint(
        _texts(words, phrase.stop - 1, phrase.stop + 1)
    )  # also "lotus" of "lotus position"


def _same_noun(words: Sequence[Word], one: NounPhrase, two: NounPhrase) -> bool:
    return words[one.stop - 1].lemma == words[two.stop - 1].lemma


def _fits(words: Sequence[Word], phrase: NounPhrase, place: NounPhrase) -> bool:
    """Whether the noun of ``phrase`` can be counted as that at ``place`` is, or is not."""
    bare = not phrase.article and not any(words[at].kind == "number" for at in phrase.adjectives)
    mass = _is_mass(words, phrase) or (bare and not phrase.plural)
    if place.plural or place.article in _SINGLE or any(words[at].kind == "number" for at in place.adjectives):
        return not mass
    return place.article in _OPEN or mass


def _is_mass(words: Sequence[Word], phrase: NounPhrase) -> bool:
    return words[phrase.stop - 1].lemma in _MASS or is_name(words, phrase.stop - 1)


def _in_number_of(words: Sequence[Word], phrase: NounPhrase, place: NounPhrase) -> tuple[int | str, ...] | None:
    if phrase.plural == place.plural:
        return tuple(range(phrase.noun, phrase.stop))
    if is_name(words, phrase.stop - 1):
        return None
    last = inflected(words[phrase.stop - 1], "NNS" if place.plural else "NN")
    return (*range(phrase.noun, phrase.stop - 1), last) if last else None


def _single(words: Sequence[Word], phrase: NounPhrase) -> list[int]:
    """Places of adjectives that stand in no list: not "pink and yellow"."""
    return [place for place in phrase.adjectives if not {"and", ","} & set(_texts(words, place - 1, place + 2))]


def _has(words: Sequence[Word], phrase: NounPhrase, adjective: str) -> bool:
    return any(alike(words[place].text, adjective) for place in phrase.adjectives)


def _deed(parsed: Parsed, place: int, starts: set[int]) -> tuple[int, int, str] | None:
    """(start, stop, what follows) of a verb with its preposition."""
    word = parsed.words[place]
    inside = any(phrase.start <= place < phrase.stop for phrase in parsed.phrases)
    in_noun = any(phrase.start <= place < phrase.stop for phrase in parsed.nouns)
    verb = word.kind == "action" or word.part == "VERB"
    if not verb or inside or in_noun or word.bound or word.tag not in _INFLECTED | {"VBN"} or word.lemma in _NO_DEEDS:
        return None
    stop = place + 1
    while stop < len(parsed.words) and parsed.words[stop].part in ("ADP", "PART") and stop not in starts:
        stop += 1
    if parsed.words[stop - 1].tag == "TO" and stop not in starts:
        return None  # "jumps to catch"
    if stop in starts:
        return place, stop, "thing"
    ends = stop == len(parsed.words) or parsed.words[stop].part in ("PUNCT", "CCONJ", "SCONJ", "ADV")
    return (place, stop, "end") if ends else None


def _is_manner(word: Word) -> bool:
    manner = word.text in _MANNERS or (word.text.endswith("ly") and len(word.text) > 4)
    return word.part == "ADV" and manner and word.text not in DENIALS and word.text not in COLOURS and not word.bound
