"""Captions as HTML."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup, escape


def caption(text: str) -> Markup:
    """A caption in its own writing direction."""
    return Markup(f'<span dir="auto">{escape(text)}</span>')


def mark_differences(true: str, false: str) -> tuple[Markup, Markup]:
    """Both captions, with the words that only one of them has at that place in ``<mark>``."""
    sides = (true.split(), false.split())
    shared: tuple[set[int], set[int]] = (set(), set())
    for block in difflib.SequenceMatcher(None, *sides, autojunk=False).get_matching_blocks():
        shared[0].update(range(block.a, block.a + block.size))
        shared[1].update(range(block.b, block.b + block.size))
    return _marked(sides[0], shared[0]), _marked(sides[1], shared[1])


def _marked(words: Sequence[str], shared: set[int]) -> Markup:
    runs = groupby(enumerate(words), key=lambda item: item[0] in shared)
    texts = [(is_shared, " ".join(word for _, word in run)) for is_shared, run in runs]
    return Markup(" ").join(text if is_shared else Markup("<mark>{}</mark>").format(text) for is_shared, text in texts)
