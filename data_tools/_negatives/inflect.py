"""A word in the form that another place asks for."""

from __future__ import annotations

from functools import cache

from data_tools._english.words import PAIRED
from data_tools._negatives.parse import Word
from vlp.types import UserError

_IRREGULAR = {("person", "NNS"): "people", ("people", "NN"): "person", ("people", "NNS"): "people"}


def inflected(word: Word, tag: str) -> str | None:
    """``word`` with the ending that ``tag`` (of the Penn treebank) asks for; None if it has no such form."""
    if word.tag == tag:
        return word.text
    if word.text in PAIRED:
        return None
    return form(word.lemma, tag)


@cache
def form(lemma: str, tag: str) -> str | None:
    """A lemma with the ending that ``tag`` asks for.

    Raises:
        UserError: lemminflect is not installed.
    """
    try:
        from lemminflect import getInflection
    except ModuleNotFoundError as error:
        raise UserError("the generator swap needs lemminflect: pip install 'vlp[negatives]'") from error
    if (lemma, tag) in _IRREGULAR:
        return _IRREGULAR[lemma, tag]
    return next(iter(getInflection(lemma, tag)), None)
