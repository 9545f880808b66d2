"""Mistakes of English that a change of words makes, by lists and endings: what parsers accept is no measure.

Only what a caption does not have already counts, so captions with mistakes of their own can be changed as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from data_tools._english.words import ADJECTIVES, COLOURS, NUMBERS, word_set
from data_tools._negatives.articles import article

_PIECE = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
_BROKEN = re.compile(r"\s[,;.!?](?!\w)|[(\[]\s|\s[)\]]|[,;:]\s*[,;:.]")
_DETERMINERS = word_set("a an the its their his my our your every another this these those some any")
_OPENING = word_set("a an the its their his my our your every another")
_NO_NOUN = word_set(
    "of on in at with by for from to and or is are was were under near behind above below over without next beside "
    "through into onto inside outside against between around across along after before during that who which "
    ", . ; : ! ?"
)
_DANGLING = word_set("a an the and or of with at for from next its their his every another")
_TWICE = word_set("that had bye ha no so very")
_ONE = word_set("a an one another each every this")
_SEVERAL = word_set("several many various multiple these those few") | (
    {word for word, value in NUMBERS.items() if value.isdigit()} - word_set("zero one single lone solitary")
)
_PLURALS = word_set("men women children people feet teeth mice geese oxen")
_BOTH_NUMBERS = word_set(
    "sheep fish deer cattle police aircraft spacecraft offspring moose bison salmon trout shrimp squid poultry cod "
    "dozen hundred thousand million pair couple trio percent"
)
_SINGULAR_S = re.compile(
    r"(?:ss|us|is|(?:^|\W)(?:gas|lens|canvas|atlas|christmas|news|series|species|mercedes|texas))$"
)
_SEVERAL_VERBS, _ONE_VERBS = word_set("are were have"), word_set("is was has")
_GATHERING = word_set("and or & of , with nor plus")


def mistake(caption: str, text: str) -> str:
    """The first mistake of ``text`` that ``caption`` does not have, as it stands there; "" if there is none."""
    known = set(_mistakes(caption))
    return next((found for found in _mistakes(text) if found not in known), "")


def _mistakes(text: str) -> Iterator[str]:
    """In lower case."""
    yield from (found.group().strip() for found in _BROKEN.finditer(text))
    pieces = _PIECE.findall(text)
    words = [piece.lower() for piece in pieces]
    for at, word in enumerate(words):
        following = words[at + 1] if at + 1 < len(words) else ""
        if word == following and word.isalpha() and word not in _TWICE:
            yield f"{word} {word}"
        if word in _OPENING and (following in _DETERMINERS or following in _NO_NOUN) and not _letter(pieces, at):
            yield f"{word} {following}"
        if word in ("a", "an") and following[:1].isalnum() and not _letter(pieces, at) and article(following) != word:
            yield f"{word} {following}"
        yield from _numbers(words, at)
    if words and words[-1] in _DANGLING and not _letter(pieces, len(words) - 1):
        yield f"{words[-1]} at the end"


def _letter(pieces: Sequence[str], at: int) -> bool:
    """Whether an "A" is a letter, as in "vitamin A"."""
    return pieces[at] == "A" and at > 0 and pieces[at - 1] not in (".", "!", "?", ":", '"')


def _numbers(words: Sequence[str], at: int) -> Iterator[str]:
    """What does not agree with the word at ``at`` that says how many there are."""
    several = words[at] in _SEVERAL or (words[at].isdigit() and int(words[at]) > 1)
    if not several and words[at] not in _ONE:
        return
    noun = at + 1
    while noun < len(words) and (words[noun] in COLOURS or words[noun] in ADJECTIVES):
        noun += 1
    if noun >= len(words) or not words[noun].isalpha() or words[noun] in _NO_NOUN:
        return
    name, following = words[noun], words[noun + 1] if noun + 1 < len(words) else ""
    if not following or following in _NO_NOUN or following.endswith("ing"):
        if several and not _plural(name) and name not in _BOTH_NUMBERS and not name.endswith(("ing", "ed", "th")):
            yield f"{words[at]} {name}"
        if not several and _plural(name):
            yield f"{words[at]} {name}"
    if at and words[at - 1] in ("is", "are") and "there" in words[max(at - 2, 0) : at]:
        listed = not _GATHERING.isdisjoint(words[noun:])
        if several == (words[at - 1] == "is") and not listed:
            yield f"{words[at - 1]} {words[at]} {name}"
    gathered = not _GATHERING.isdisjoint(words[:at])
    if not gathered and following in (_ONE_VERBS if several else _SEVERAL_VERBS):
        yield f"{name} {following}"


def _plural(word: str) -> bool:
    return word in _PLURALS or (word.endswith("s") and len(word) > 2 and not _SINGULAR_S.search(word))
