"""Whether "a" or "an" stands before a word."""

from __future__ import annotations

import re

_SILENT_H = re.compile(r"hour|honest|hono|heir", re.I)
_LIKE_YOU = re.compile(r"eu|ewe|one(?!i)|once|ukrain|u[ks][ab]?\b|u[^aeiou\W][aeiou]", re.I)
_LIKE_UP = re.compile(r"un[aeou]|uni[dmn]|upon", re.I)
_SPELT_WITH_VOWEL = frozenset("aefhilmnorsx")
_FIGURES_WITH_VOWEL = re.compile(r"(?:8\d*|1[18](?:\d{3})*)(?!\d)")


def article(word: str) -> str:
    """The indefinite article before ``word``, by its sound as far as spelling tells: "an hour", "a unicorn"."""
    if word[:1].isdigit():
        return "an" if _FIGURES_WITH_VOWEL.match(word) else "a"
    if not word[1:2].isalpha() or not re.search("[aeiouy]", word, re.I):  # "X-ray", "FM"
        return "an" if word[:1].lower() in _SPELT_WITH_VOWEL else "a"
    if _SILENT_H.match(word) or _LIKE_UP.match(word):
        return "an"
    return "an" if word[0].lower() in "aeiouáéíóúäöü" and not _LIKE_YOU.match(word) else "a"
