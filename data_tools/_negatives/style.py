"""What would give a text of a language model away without a look at the picture: capitals, articles, stops."""

from __future__ import annotations

import re

_ARTICLE = re.compile(r"^(?:an?|the)\s+", re.I)
_STOPS = ".!?"


def in_style_of(caption: str, text: str) -> str:
    """``text`` with a capital and a stop if ``caption`` has them, and without an article in front if that has none."""
    if not text:
        return ""
    if not _ARTICLE.match(caption):
        text = _ARTICLE.sub("", text, count=1)
    if not caption.endswith(tuple(_STOPS)):
        text = text.rstrip(_STOPS)
    elif not text.endswith(tuple(_STOPS)):
        text += caption[-1]
    if caption[:1].isupper():
        return text[:1].upper() + text[1:]
    return text[:1].lower() + text[1:] if caption[:1].islower() else text
