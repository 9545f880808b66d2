"""Words of a caption put in other places: spaces and capitals belong to the place, "a" and "an" follow the sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from data_tools._negatives.articles import article
from data_tools._negatives.parse import Word

_ENDS = frozenset({".", "!", "?"})
_LONG = 4  # letters from which on a word with a small letter shows that the caption is no title


@dataclass(frozen=True)
class Change:
    """What stands at the words [start, stop) instead: places of words of the caption, or new words in lower case."""

    start: int
    stop: int
    parts: tuple[int | str, ...]


@dataclass
class _Piece:
    text: str
    space: str
    source: int | None


def exchange(one: tuple[int, int], two: tuple[int, int]) -> tuple[Change, Change]:
    """The words [start, stop) of each stand where those of the other did."""
    return Change(*one, tuple(range(*two))), Change(*two, tuple(range(*one)))


def render(words: Sequence[Word], changes: Sequence[Change]) -> str:
    """The caption after ``changes`` that do not overlap."""
    by_start = {change.start: change for change in changes}
    pieces: list[_Piece] = []
    place = 0
    while place < len(words):
        if change := by_start.get(place):
            pieces += _pieces(words, change)
            place = change.stop
        else:
            pieces.append(_Piece(words[place].written, words[place].space, place))
            place += 1
    for one, two in pairwise(pieces):
        untouched = one.source is not None and two.source == one.source + 1
        if one.text.lower() in ("a", "an") and two.text[:1].isalnum() and not untouched:
            fitting = article(two.text)
            one.text = (
                fitting if one.text[0] == "a" else fitting.upper() if _is_shouted(words) else fitting.capitalize()
            )
    return "".join(piece.text + piece.space for piece in pieces).strip()


def _pieces(words: Sequence[Word], change: Change) -> list[_Piece]:
    place = words[change.start]
    capital = _is_start(words, change.start) and place.written[:1].isupper()
    found = []
    for number, part in enumerate(change.parts):
        if isinstance(part, int):
            moved = words[part].written
            lowered = _is_start(words, part) and not _is_title(words) and not is_name(words, part)
            piece = _Piece(moved[:1].lower() + moved[1:] if lowered else moved, words[part].space, part)
        else:
            titled = (_is_title(words) or is_name(words, change.start)) and place.written[:1].isupper()
            new = part.upper() if _is_shouted(words) else part
            piece = _Piece(new[:1].upper() + new[1:] if titled else new, " ", None)
        if number == 0 and capital:
            piece.text = piece.text[:1].upper() + piece.text[1:]
        if number == len(change.parts) - 1:
            piece.space = words[change.stop - 1].space
        found.append(piece)
    return found


def _is_start(words: Sequence[Word], place: int) -> bool:
    return place == 0 or words[place - 1].text in _ENDS


def _is_title(words: Sequence[Word]) -> bool:
    long = _long_words(words)
    return len(long) > 1 and all(text[0].isupper() for text in long)


def _is_shouted(words: Sequence[Word]) -> bool:
    return all(text.isupper() for text in _long_words(words) or ["no"])


def _long_words(words: Sequence[Word]) -> list[str]:
    return [word.written for word in words if word.text.isalpha() and len(word.text) >= _LONG]


def is_name(words: Sequence[Word], place: int) -> bool:
    """Whether the word at ``place`` has capitals of its own."""
    written = words[place].written
    if _is_title(words) or not written[:1].isupper() or (len(written) == 1 and written != "I"):
        return False
    return written.isupper() or not _is_start(words, place)
