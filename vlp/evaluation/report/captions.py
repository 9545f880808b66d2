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
    """Both captions, with the words in ``<mark>`` that only one of them has at that place: as few as can be."""
    sides = (true.split(), false.split())
    blocks = difflib.SequenceMatcher(None, *sides, autojunk=False).get_matching_blocks()
    shared = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
    if len(sides[0]) == len(sides[1]):  # two words that changed places, of which the blocks keep but one side
        in_place = [(i, i) for i, (one, other) in enumerate(zip(*sides, strict=True)) if one == other]
        shared = max(in_place, shared, key=len)
    return _marked(sides[0], {i for i, _ in shared}), _marked(sides[1], {i for _, i in shared})


def _marked(words: Sequence[str], shared: set[int]) -> Markup:
    runs = groupby(enumerate(words), key=lambda item: item[0] in shared)
    texts = [(is_shared, " ".join(word for _, word in run)) for is_shared, run in runs]
    return Markup(" ").join(text if is_shared else Markup("<mark>{}</mark>").format(text) for is_shared, text in texts)
