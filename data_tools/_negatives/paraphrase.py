"""Whether a changed caption is still true: it says the same, or less.

A caption is read as a row of words, without articles and words that say nothing ("there is"); phrases of a place count
as one word. Two rows are compared word by word, where synonyms and more general words count as equal, and so are rows
of which two parts have changed places around what reads both ways ("and", "next to"), or around the converse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from data_tools._english.same_form import ARTICLES, folded
from data_tools._english.words import ADJECTIVES, COLOURS, RELATIONS, word_set
from data_tools._negatives.alike import alike, same_stem, stems

_EMPTY = ARTICLES | word_set("there is are was were be being that which who one")
_DENIALS = frozenset({"no", "not", "n't", "without", "never", "<without>"})
_CONVERSES = {
    "<left>": "<right>",
    "<above>": "<below>",
    "<front>": "<behind>",
    **{f"<{name}>": f"<{name}>" for name in ("near", "far", "and", "or", "with")},
}
_CONVERSES |= {converse: name for name, converse in _CONVERSES.items()}
_BOTH_WAYS = word_set(
    "meet kiss hug embrace touch fight wrestle face marry resemble greet play talk speak dance chat argue share"
)
"""Verbs, alone or with "with", "to", "against", of which each of two things does it to the other."""
_AFTER_BOTH_WAYS = frozenset({"<with>", "to", "against"})
_SAID_BY_VERBS = {"<with>": word_set("hold carry wear have grip"), "<in>": word_set("wear"), "<on>": word_set("ride")}
_PREPOSITIONS = word_set(
    "at by for from to of during through across along around against between among toward towards off up down "
    "after before as"
)
_ADVERBS = word_set("up down together apart")
_NO_PARTICIPLES = word_set("string spring ceiling building painting wedding evening morning clothing pudding railing")
_LONGEST = 300
"""Words of a caption that are compared; longer ones are no captions."""

Row = list[str]


def same_meaning(caption: str, text: str) -> str:
    """What makes ``text`` say the same as ``caption``, such as the word around which it turned; "" if it does not."""
    theirs, ours = _row(caption), _row(text)
    if not (theirs and ours) or max(len(theirs), len(ours)) > _LONGEST:
        return ""
    if len(theirs) == len(ours) and all(map(_follows, theirs, ours)):
        changed = [f"{ours} for {one}" for one, ours in zip(theirs, ours, strict=True) if one != ours]
        return ", ".join(changed).translate(_PLAIN) or "the same words"
    found = _turned(theirs, ours) or _moved(theirs, ours) or _said_after(theirs, ours) or _passive(theirs, ours)
    return (found or _relisted(_row(caption, commas=True), _row(text, commas=True))).translate(_PLAIN)


def says_less(caption: str, text: str) -> str:
    """What was left out, where ``text`` is what is left of ``caption`` without some words; "" if it is not that.

    Not where a denial was left out and what it denies was not.
    """
    theirs, ours = _row(caption), _row(text)
    if not ours or len(ours) >= len(theirs) or ours[0] in _CONVERSES:
        return ""
    left_out: list[str] = []
    place = 0
    for word in theirs:
        if place < len(ours) and _follows(word, ours[place]):
            if not _DENIALS.isdisjoint(left_out):
                return ""
            place += 1
        else:
            left_out.append(word)
    return " ".join(left_out).translate(_PLAIN) if place == len(ours) else ""


_PLAIN = str.maketrans("", "", "<>")
_PHRASES: dict[str, list[list[str]]] = {}
"""First word -> phrases of places, the longest first."""
for _phrase in sorted((phrase.split() for phrase, (_, implicit) in RELATIONS.items() if not implicit), key=len)[::-1]:
    _PHRASES.setdefault(_phrase[0], []).append(_phrase)
_JOINED = {"and": "<and>", "&": "<and>", "or": "<or>", "with": "<with>", "without": "<without>"}
_TOGETHER = frozenset({"<and>", "<with>", "<near>"})
_PLACED = frozenset({"<left>", "<right>", "<front>", "<behind>", "<above>", "<below>", "<on>", "<in>"})
_WORD = re.compile(r"\w+(?:['-]\w+)*|[&,]|[.!?;:()—–](?=\s|\w|$)")
_COMMAS = frozenset(",.!?;:()—–")


@lru_cache(maxsize=64)
def _row(text: str, commas: bool = False) -> Row:
    words = [word for word in _WORD.findall(folded(text).rstrip(" .!?")) if commas or word not in _COMMAS]
    row: Row = []
    place = 0
    while place < len(words):
        known = _PHRASES.get(words[place], ())
        phrase = next((phrase for phrase in known if words[place : place + len(phrase)] == phrase), None)
        if phrase:
            row.append(f"<{RELATIONS[' '.join(phrase)][0]}>")
        elif words[place] in _COMMAS:
            row.append("<and>")
        elif words[place] == "hair" and row[-1:] == ["orange"]:
            row[-1:] = ["red", "hair"]
        elif words[place] not in _EMPTY:
            row.append(_JOINED.get(words[place], words[place]))
        place += len(phrase or "1")
        if row[-2:] == ["<and>", "<and>"]:
            row.pop()
    return row


def _follows(theirs: str, ours: str) -> bool:
    """Whether a word of the caption makes the other true; things in a place are near it."""
    if theirs[0] != "<" and ours[0] != "<":
        return alike(theirs, ours)
    for relation, other in ((theirs, ours), (ours, theirs)):
        if not _SAID_BY_VERBS.get(relation, frozenset()).isdisjoint(stems(other)):
            return True
    if theirs == ours or {theirs, ours} == {"<on>", "<above>"}:
        return True
    return ours in _TOGETHER and theirs in (_TOGETHER | _PLACED)


def _turned(theirs: Row, ours: Row) -> str:
    """Two parts have changed places around a word that reads both ways, or around the converse."""
    for place, word in enumerate(theirs):
        if word in _CONVERSES or word in _PLACED:
            converse = [_CONVERSES.get(word, "<near>")]
            if any(_exchanges(theirs, ours, place, place + 1, converse)):
                return word
        elif not _BOTH_WAYS.isdisjoint(stems(word)):
            after = place + 1 + (theirs[place + 1 : place + 2] in [[name] for name in _AFTER_BOTH_WAYS])
            if any(_exchanges(theirs, ours, place, after, theirs[place:after])):
                return " ".join(theirs[place:after])
    return ""


def _exchanges(theirs: Row, ours: Row, start: int, stop: int, middle: Row) -> Iterator[tuple[int, int]]:
    """Each (first, last) for which ``ours`` has [first, start) and [stop, last) exchanged, ``middle`` between them."""
    if len(theirs) - (stop - start) + len(middle) != len(ours):
        return
    for last in range(len(theirs), stop, -1):
        if last < len(theirs) and not _follows(theirs[last], ours[last - len(theirs)]):
            return
        for first in range(start):
            if first and not _follows(theirs[first - 1], ours[first - 1]):
                break
            if all(map(_follows, [*theirs[stop:last], *middle, *theirs[first:start]], ours[first:])):
                yield first, last


def _moved(theirs: Row, ours: Row) -> str:
    """A place came first or last, or changed with another; two attributes of one thing changed places."""
    if sorted(theirs) != sorted(ours):
        return ""
    for place in range(1, len(theirs)):
        for first, last in _exchanges(theirs, ours, place, place, []):
            ends = first == 0 and last == len(theirs)
            places = [_is_place(theirs[first]), _is_place(theirs[place])]
            if all(places) or (ends and any(places)):
                return " ".join(theirs[first:place] if places[0] else theirs[place:last])
            if first == place - 1 and last == place + 1 and all(map(_is_attribute, theirs[first:last])):
                return " ".join(theirs[first:last])
    return ""


def _said_after(theirs: Row, ours: Row) -> str:
    """An adverb or a participle stands behind its thing instead of before it: "pushing hand" and "hand pushing"."""
    if len(theirs) != len(ours) or sorted(theirs) != sorted(ours):
        return ""
    differ = [place for place, (one, two) in enumerate(zip(theirs, ours, strict=True)) if one != two]
    moved = theirs[differ[0] : differ[-1] + 1]
    adverbs = [word for word in moved if word in _ADVERBS or word.endswith(("ward", "wards", "ly"))]
    verbs = [word for word in moved if word not in adverbs and _is_participle(word)]
    one_thing = len(moved) == len(adverbs) + len(verbs) + 1 and len(adverbs) < 2 and len(verbs) < 2
    return " ".join(adverbs + verbs) if one_thing else ""


def _is_participle(word: str) -> bool:
    return len(word) > 5 and word.endswith(("ing", "ed")) and word not in _NO_PARTICIPLES


def _is_place(word: str) -> bool:
    return word in _PREPOSITIONS or (word[0] == "<" and word not in ("<and>", "<or>"))


def _is_attribute(word: str) -> bool:
    return word in COLOURS or word in ADJECTIVES


def _relisted(theirs: Row, ours: Row) -> str:
    """Two members of a list have changed places."""
    if sorted(theirs) != sorted(ours):
        return ""
    commas = [place for place, word in enumerate(theirs) if word in ("<and>", "<or>")]
    for start in commas:
        for stop in commas:
            between = theirs[start + 1 : stop]
            simple = not any(_is_place(word) or word.endswith("ing") for word in between)
            if stop >= start and simple and any(_exchanges(theirs, ours, start, stop + 1, theirs[start : stop + 1])):
                return theirs[start]
    return ""


def _passive(theirs: Row, ours: Row) -> str:
    """ "A bites B" and "B bitten by A"."""
    active, passive = (theirs, ours) if len(ours) == len(theirs) + 1 else (ours, theirs)
    if len(passive) != len(active) + 1:
        return ""
    for by in (place for place, word in enumerate(passive) if word == "by" and place):
        verb = passive[by - 1]
        for place, word in enumerate(active):
            if same_stem(word, verb) and any(_exchanges(active, passive, place, place + 1, [verb, "by"])):
                return f"{verb} by"
    return ""
