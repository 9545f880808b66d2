"""What two captions share that say the same in the same words."""

from __future__ import annotations

import re
import unicodedata

ARTICLES = frozenset({"a", "an", "the"})
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def folded(text: str) -> str:
    """The text in one form of its letters, without differences of case."""
    return unicodedata.normalize("NFKC", text).casefold().replace("’", "'")


def same_form(text: str) -> str:
    """What two captions share that differ in case, punctuation and articles alone."""
    return " ".join(word for word in words(folded(text)) if word not in ARTICLES)
