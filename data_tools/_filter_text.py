"""When two captions count as the same one, and what their words are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

# Chinese characters and kana are written without spaces: each counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_UNSPACED}]|[^{_UNSPACED}]+")


def normalise(caption: str) -> str:
    """The form in which captions are compared: Unicode NFKC, lower case, single spaces, no punctuation at the ends."""
    folded = unicodedata.normalize("NFKC", caption).casefold()
    return _trim(" ".join(folded.split()))


def words(normalised: str) -> list[str]:
    """The unigrams: what stands between spaces, without punctuation at its ends; kana and Chinese by characters."""
    return [word for token in normalised.split() for word in _WORD.findall(_trim(token))]


def grams(unigrams: Sequence[str]) -> list[str]:
    """The unigrams, then the bigrams, which are two words with a space between them."""
    return [*unigrams, *map(" ".join, pairwise(unigrams))]


def _trim(text: str) -> str:
    start, stop = 0, len(text)
    while start < stop and _may_go(text[start]):
        start += 1
    while stop > start and _may_go(text[stop - 1]):
        stop -= 1
    return text[start:stop]


def _may_go(character: str) -> bool:
    return character.isspace() or unicodedata.category(character).startswith("P")
