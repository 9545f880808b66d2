"""Words of a caption for which others of their category can stand: kind -> all such changes.

A new word is none that is true of the picture as far as its captions say; what should be drawn more often comes twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from data_tools._english.words import COLOURS, HUMANS, word_set
from data_tools._negatives import categories
from data_tools._negatives.alike import LIVING, alike
from data_tools._negatives.edit import Change
from data_tools._negatives.inflect import form
from data_tools._negatives.names import is_place_name
from data_tools._negatives.parse import NounPhrase, Parsed

Changes = tuple[Change, ...]
Said = frozenset[str]

_CARDINALS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_NEAR = 3  # how far a new number may be from the old one
_PHOTOS = word_set("photo photograph picture image photography")
_SIDES = {"left": "right", "right": "left", "up": "down", "down": "up"}
_BEFORE_SIDES = {
    **dict.fromkeys(("left", "right"), word_set("the to on at top bottom upper lower turn far - its his her")),
    **dict.fromkeys(("up", "down"), word_set("thumb thumbs palm palms curving")),
}
_TURNED = word_set("facing pointing turning looking turned")
_AFTER_SIDES = word_set("side hand arrow corner foot arm leg turn lane of -")
_PRONOUNS = word_set("he his him himself she her hers herself")
_SET = frozenset(
    tuple(pair.split("_"))
    for pair in word_set(
        "hot_dog hot_dogs hot_air high_chair high_school high_rise fast_food soft_drink soft_drinks hard_hat hard_hats "
        "big_ben new_york new_zealand new_year open_air little_league light_house dry_erase full_moon new_moon "
        "spring_onion spring_onions spring_roll spring_rolls paper_towel paper_towels glass_of "
        "orange_juice orange_slice orange_slices orange_tree orange_trees orange_peel red_hair red_haired"
    )
)
"""Pairs of words with a meaning of their own."""
_HAIR = word_set("hair haired beard beards moustache mustache")
_SAME_HAIR = [word_set("brown black"), word_set("white grey gray silver"), word_set("blond blonde yellow orange brown")]
"""Colours that one and another would give the same hair."""
_INSIDE = word_set("in on into onto inside within outside")


def colours(parsed: Parsed, said: Said) -> Iterator[Changes]:
    """Another colour of a thing, which no caption of the picture names. "An orange" is a fruit."""
    words = parsed.words
    known = {family for word in said for family in COLOURS.get(word, ())}
    for place, word in enumerate(words):
        of_photo = any(later.text in _PHOTOS for later in words[place + 1 : place + 4])  # "a black and white photo"
        if (
            word.kind != "colour"
            or word.text not in COLOURS
            or word.bound
            or of_photo
            or not _is_said_of(parsed, place)
        ):
            continue
        of_hair = not _HAIR.isdisjoint(other.text for other in words[place + 1 : place + 2])
        unclear = {other for row in _SAME_HAIR if of_hair and word.text in row for other in row}
        for colour, weight in categories.COLOURS.items():
            if known.isdisjoint(COLOURS[colour]) and colour not in unclear:
                yield from [(Change(place, place + 1, (colour,)),)] * weight


def numbers(parsed: Parsed, said: Said) -> Iterator[Changes]:
    """Another number, near the old one."""
    for place, word in enumerate(parsed.words):
        if word.bound:
            continue
        if word.text == "one":
            yield from _several_for_one(parsed, place)
        for row in (_CARDINALS, _ORDINALS):
            if word.text in row:
                at = row.index(word.text)
                yield from _each(place, row[max(at - _NEAR, 0) : at + _NEAR + 1], said)
        if word.text.isascii() and word.text.isdigit() and 1 < int(word.text) < 100:
            value = int(word.text)
            yield from _each(place, [str(other) for other in range(max(value - _NEAR, 2), value + _NEAR + 1)], said)


def sizes(parsed: Parsed, said: Said) -> Iterator[Changes]:
    """The opposite size."""
    for place, others in _adjectives(parsed, categories.SIZES):
        noun = _noun_of(parsed, place)
        fits = {"tall": noun in LIVING, "long": noun not in LIVING, "fat": noun in LIVING, "thick": noun not in LIVING}
        yield from _each(place, [other for other in others if fits.get(other, True)], said)


def materials(parsed: Parsed, said: Said) -> Iterator[Changes]:
    """Another material of a thing."""
    for phrase in parsed.nouns:
        for place in (*phrase.adjectives, *range(phrase.noun, phrase.stop - 1)):
            if not parsed.words[place].bound:
                yield from _each(place, _others(parsed, place, categories.MATERIALS), said)


def times(parsed: Parsed, said: Said) -> Iterator[Changes]:
    """Another time of the day or the year, day or weather."""
    for place, word in enumerate(parsed.words):
        if word.part in ("NOUN", "PROPN", "ADJ") and not word.bound:
            yield from _each(place, _others(parsed, place, categories.TIMES), said)


def antonyms(parsed: Parsed, said: Said) -> Iterator[Changes]:
    """A word by its opposite: old, open, man, to sit."""
    for place, others in _adjectives(parsed, categories.ADJECTIVE_OPPOSITES):
        wrong = categories.OF_THINGS if _noun_of(parsed, place) in LIVING else categories.OF_LIVING
        yield from _each(place, [other for other in others if other not in wrong], said)
    for place, word in enumerate(parsed.words):
        lemmas: tuple[str, ...] = ()
        if word.tag in ("NN", "NNS") and _may_be_another(parsed, place):
            lemmas = categories.NOUN_OPPOSITES.get(word.lemma, ())
        elif word.part == "VERB" and _may_turn(parsed, place):
            lemmas = categories.VERB_OPPOSITES.get(word.lemma, ())
        yield from _each(place, [other for lemma in lemmas if (other := form(lemma, word.tag))], said)


def relations(parsed: Parsed, said: Said) -> Iterator[Changes]:
    """A preposition by its opposite."""
    words, nouns = parsed.words, {phrase.start: phrase for phrase in parsed.nouns}
    spans = {phrase.start: phrase.stop for phrase in parsed.phrases}
    for place, word in enumerate(words):
        if word.text in _SIDES:
            before, after = _text(parsed, place - 1), _text(parsed, place + 1)
            placed = before in _BEFORE_SIDES[word.text] or before in _TURNED or after in _AFTER_SIDES
            if placed and _SIDES[word.text] not in said:
                yield (Change(place, place + 1, (_SIDES[word.text],)),)
                continue
        stop = spans.get(place, place + 2 if (word.text, _text(parsed, place + 1)) == ("out", "of") else place + 1)
        text = " ".join(other.text for other in words[place:stop])
        participle = place > 0 and words[place - 1].tag == "VBN"  # "covered with snow"
        if text in categories.RELATIONS and stop in nouns and not participle:
            loose = text in _INSIDE and _is_loose(parsed, nouns[stop])
            for other in () if loose else categories.RELATIONS[text]:
                yield (Change(place, stop, tuple(other.split())),)


REPLACEMENTS: dict[str, Callable[[Parsed, Said], Iterator[Changes]]] = {
    "replace colour": colours,
    "replace number": numbers,
    "replace size": sizes,
    "replace relation": relations,
    "replace material": materials,
    "replace time": times,
    "replace antonym": antonyms,
}


def _text(parsed: Parsed, place: int) -> str:
    return parsed.words[place].text if 0 <= place < len(parsed.words) else ""


def _each(place: int, others: Iterable[str], said: Said) -> Iterator[Changes]:
    for other in others:
        if not any(alike(other, word) for word in said):
            yield (Change(place, place + 1, (other,)),)


def _several_for_one(parsed: Parsed, place: int) -> Iterator[Changes]:
    """To "one dog" "two dogs", to "one o'clock" and to "One." no more than another number."""
    words = parsed.words
    if _text(parsed, place + 1) == "o'clock" or not any(word.text.isalpha() for word in words if word.text != "one"):
        yield from _each(place, _CARDINALS, frozenset())
    for phrase in parsed.nouns:
        counted = phrase.start == place and place in phrase.adjectives and not phrase.plural
        verb = phrase.stop < len(words) and words[phrase.stop].tag in ("VBZ", "VBP", "VBD")
        plural = form(words[phrase.stop - 1].lemma, "NNS") if counted else None
        if plural and not verb and _text(parsed, place - 1) != "is":
            for number in _CARDINALS[:_NEAR]:
                yield Change(place, place + 1, (number,)), Change(phrase.stop - 1, phrase.stop, (plural,))


def _adjectives(parsed: Parsed, table: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Places of adjectives before a noun or after "is", with what ``table`` has for them."""
    for place, word in enumerate(parsed.words):
        said_of = any(place in phrase.adjectives for phrase in parsed.nouns)
        follows_be = place > 0 and parsed.words[place - 1].lemma == "be" and word.part == "ADJ"
        others = _others(parsed, place, table)
        if others and (said_of or follows_be) and not word.bound:
            yield place, others


def _is_said_of(parsed: Parsed, place: int) -> bool:
    """Whether a colour stands before a noun or after "is"."""
    words, after = parsed.words, _text(parsed, place + 1)
    if (words[place].text, after) in _SET:
        return False
    if place > 1 and words[place - 1].text in ("and", ",") and words[place - 2].kind == "colour":
        return _is_said_of(parsed, place - 2) or any(place in phrase.adjectives for phrase in parsed.nouns)
    before_filler = place + 1 < len(words) and words[place + 1].kind == "filler" and words[place + 1].part == "NOUN"
    said_of = before_filler or any(place in phrase.adjectives for phrase in parsed.nouns)
    return said_of or (place > 0 and words[place - 1].lemma == "be")


def _others(parsed: Parsed, place: int, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    pair = _text(parsed, place), _text(parsed, place + 1)
    return () if pair in _SET else table.get(pair[0], ())


def _noun_of(parsed: Parsed, place: int) -> str:
    """The noun of which the word at ``place`` is said: that of its phrase, or of the one before it."""
    before = ""
    for phrase in parsed.nouns:
        if phrase.start > place:
            break
        before = parsed.words[phrase.stop - 1].text
    return before


def _may_be_another(parsed: Parsed, place: int) -> bool:
    """Whether a noun stands for itself, and no pronoun would show what it was: "a man and his dog"."""
    word = parsed.words[place]
    before_noun = place + 1 < len(parsed.words) and parsed.words[place + 1].kind == "thing"
    known = any(other.text in _PRONOUNS for other in parsed.words)
    return not (word.bound or word.kind == "action" or known) and (word.text in HUMANS or not before_noun)


def _may_turn(parsed: Parsed, place: int) -> bool:
    """Whether a verb has its own meaning: no particle, and somebody who has a body where it takes one."""
    particle = place + 1 < len(parsed.words) and parsed.words[place + 1].tag == "RP"
    inside = any(phrase.start <= place < phrase.stop for phrase in parsed.nouns)
    bound = parsed.words[place].bound or not parsed.words[place].text.isalpha()
    bodily = parsed.words[place].lemma in categories.BODILY
    return not (particle or inside or bound) and (not bodily or _noun_of(parsed, place) in LIVING)


def _is_loose(parsed: Parsed, phrase: NounPhrase) -> bool:
    """Whether "in" or "on" a thing tells no place: "in a red hat", "on television", "in American English"."""
    noun = parsed.words[phrase.stop - 1]
    known = not {noun.text, noun.lemma}.isdisjoint(categories.LOOSE_PLACES)
    return not phrase.article or known or is_place_name(parsed.words, phrase)
