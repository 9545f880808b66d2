"""Captions of a thing in words that none of its labels uses, from its tags and names.

Whoever trains on the labels alone (caption source ``txt``) has never seen these words with this thing: retrieval by
them shows what is known beyond the labels.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_tools._emoji_captions import MAX_TAGS, is_word, names
from data_tools._emoji_things import Thing

MIN_WORDS = 2  # by one word alone ("animal", "food") hardly anything can be told from the rest
# Function words, and words of Unicode's names that speak of its chart or of other names.
_EMPTY_TEXT = """
    a above an as at by cancellation circled emoji emotion ideograph in into large latin multiple no not of off on or
    ornament over place put scene sign small squared stroke symbol that then this to ttyl under up way where
"""
_EMPTY = frozenset(_EMPTY_TEXT.split())
_IRREGULAR_TEXT = """
    aeroplane/airplane donut/doughnut gray/grey pinada/pinata liar/lie lying/lie relief/relieve
    men/man women/woman children/child people/person feet/foot teeth/tooth geese/goose mice/mouse leaves/leaf
    knives/knife wolves/wolf loaves/loaf shelves/shelf halves/half calves/calf oxen/ox broken/break broke/break
    written/write flown/fly fallen/fall frozen/freeze
"""
_IRREGULAR = dict(pair.split("/") for pair in _IRREGULAR_TEXT.split())
_ENDINGS = ("ness", "ings", "ing", "ers", "ies", "ier", "est", "ful", "ed", "er", "es", "ly", "al", "s", "y", "e", "i")
_SHORTEST_ROOT = 3


@dataclass(frozen=True)
class OtherCaptions:
    """``captions`` of the things that have one; ``vague`` things have too few other words, those of an ``ambiguous``
    one are all true of another thing too: (thing, its other words)."""

    captions: list[tuple[Thing, list[str]]]
    vague: list[tuple[Thing, list[str]]]
    ambiguous: list[tuple[Thing, list[str]]]


def other_captions(things: Sequence[Thing]) -> OtherCaptions:
    """Words for each of ``things``, such that together they are true of no other of them."""
    known = [{root(w) for text in _everything_said(thing) for w in split_words(text)} for thing in things]
    found = OtherCaptions([], [], [])
    for i, thing in enumerate(things):
        kept = other_words(thing)
        said = {root(part) for w in kept for part in split_words(w)}
        if len(kept) < MIN_WORDS:
            found.vague.append((thing, kept))
        elif any(said <= other for j, other in enumerate(known) if j != i):
            found.ambiguous.append((thing, kept))
        else:
            found.captions.append((thing, kept))
    return found


def other_words(thing: Thing) -> list[str]:
    """Tags, then words of the names, of the plainest emoji of ``thing``, at most MAX_TAGS and no two alike.

    A word is left out if it is akin to one in a label of any emoji of the thing (see ``akin``).
    """
    said = {w for emoji in thing.members for w in split_words(emoji.label)}
    kept: list[str] = []
    for word in [*thing.base.tags, *(w for name in names(thing.base) for w in name.split())]:
        parts = split_words(word)
        known = [*said, *(w for earlier in kept for w in split_words(earlier))]
        if is_word(word) and word not in _EMPTY and not any(akin(p, k) for p in parts for k in known):
            kept.append(word)
    return kept[:MAX_TAGS]


def split_words(text: str) -> list[str]:
    """Words of letters, lower-case, without accents; hyphens and underscores divide, an apostrophe does not."""
    letters = unicodedata.normalize("NFKD", text.casefold().replace("’", "'"))
    return re.findall(r"[a-z]+(?:'[a-z]+)*", "".join(c for c in letters if not unicodedata.combining(c)))


def root(word: str) -> str:
    """What a word of ``split_words`` has left without common endings: ``smiling``, ``smiles`` -> ``smil``.

    Rather too little than too much is left: two words wrongly taken for one cost a caption a word, two forms of a word
    taken for two would let a caption say what the label says.
    """
    word = word.removesuffix("'s").replace("'", "")
    word = _IRREGULAR.get(word, word)
    while ending := next((e for e in _ENDINGS if word.endswith(e) and len(word) - len(e) >= _SHORTEST_ROOT), ""):
        word = re.sub(r"([^aeiou])\1$", r"\1", word.removesuffix(ending))
    return word


def akin(a: str, b: str) -> bool:
    """Whether two words share a root, or one begins or ends with the other: ``snow`` and ``snowboard``."""
    for x, y in ((a, b), (root(a), root(b))):
        short, long = sorted((x, y), key=len)
        if x == y or (len(short) >= _SHORTEST_ROOT and (long.startswith(short) or long.endswith(short))):
            return True
    return False


def unheard(captions: Iterable[Sequence[str]], labels: Iterable[str]) -> int:
    """How many words of ``captions`` have a root that no word of ``labels`` has."""
    heard = {root(w) for label in set(labels) for w in split_words(label)}
    return sum(not heard.issuperset(map(root, split_words(word))) for words in captions for word in words)


def _everything_said(thing: Thing) -> list[str]:
    return [thing.base.label, *(name.replace("_", " ") for name in thing.base.names), *thing.base.tags]
