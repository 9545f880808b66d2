"""Names of places, languages and people in a caption, which are no visible things."""

from __future__ import annotations

from collections.abc import Sequence

from data_tools._english.words import word_set
from data_tools._negatives.edit import is_name
from data_tools._negatives.parse import NounPhrase, Word

_PREPOSITIONS = word_set("in at from of inside within outside into")


def is_place_name(words: Sequence[Word], phrase: NounPhrase) -> bool:
    """Whether ``phrase`` is a name after "in", "at", "from" or "of": "in American Sign Language", "of Paris"."""
    places = range(phrase.start, phrase.stop)
    named = [place for place in places if is_name(words, place) and len(words[place].text) > 1]
    before = [
        words[place - 1].text for place in (phrase.start, *places[1:]) if place and place <= min(named, default=0)
    ]
    return bool(named) and not _PREPOSITIONS.isdisjoint(before)
