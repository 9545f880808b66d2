"""The blind test: can a classifier that sees no picture tell true captions from changed ones?

Where it can, a model learns to read captions instead of looking at pictures, and a benchmark of such pairs is solved
without any picture. Words and pairs of words, logistic regression, cross-validated with a caption and what was made of
it on the same side; the measure is the share of (true, changed) pairs in which the true one scores higher.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_tools._english.same_form import folded
from data_tools._negatives.base import Negative
from vlp.types import UserError

CHANCE = 0.5
FEWEST = 20
"""Captions below which nothing is measured."""
_FOLDS = 5
_MOST_TEXTS = 100_000
_RESAMPLES = 1000
_TOLD = 8
_TOKEN = r"\w+(?:['’-]\w+)*|[^\w\s]"


@dataclass(frozen=True)
class Accuracy:
    """The share of ``pairs`` in which the true caption scores higher, a tie for a half, with its interval of 95 %."""

    accuracy: float
    low: float
    high: float
    pairs: int
    captions: int


@dataclass(frozen=True)
class BlindTest:
    """What the classifier reached on all pairs and on those of each kind, and what told them apart most."""

    overall: Accuracy
    kinds: Mapping[str, Accuracy]
    telling: Sequence[tuple[str, float]]
    """Words and pairs of words with their weights, falling by size: above 0 they say that a caption was changed."""


def blind_test(captions: Mapping[str, Sequence[Negative]], seed: int) -> BlindTest | None:
    """None where fewer than `FEWEST` captions have a change.

    Takes at most 100,000 texts, of captions drawn by the seed. Where all that a part could be learned from stands in
    that part as well, its pairs are ties.

    Args:
        captions: caption -> its accepted changes.
        seed: any whole number.

    Raises:
        UserError: scikit-learn is not installed.
    """
    changed = [(caption, own) for caption, own in captions.items() if own]
    if len(changed) < FEWEST:
        return None
    seed %= 2**64  # numpy takes none below 0
    order = np.random.default_rng(seed).permutation(len(changed))
    texts = np.cumsum([1 + len(changed[row][1]) for row in order])
    table = _Texts.of([changed[row] for row in order[: max(int(np.searchsorted(texts, _MOST_TEXTS)), FEWEST)]])
    scores, telling = _scores(table)
    wins = np.where(scores[table.true_of] > scores[table.changed], 1.0, 0.0)
    wins[scores[table.true_of] == scores[table.changed]] = CHANCE
    groups = table.group[table.changed]
    kinds = np.array(table.kinds)
    return BlindTest(
        _accuracy(wins, groups, seed),
        {kind: _accuracy(wins[kinds == kind], groups[kinds == kind], seed) for kind in sorted(set(table.kinds))},
        telling,
    )


@dataclass(frozen=True)
class _Texts:
    """N texts, of which P are changed ones: what each row is."""

    texts: list[str]
    group: np.ndarray
    """int [N]: number of the caption."""
    changed: np.ndarray
    """int [P]: rows of changed texts."""
    true_of: np.ndarray
    """int [P]: rows of their captions."""
    kinds: list[str]

    @classmethod
    def of(cls, captions: Sequence[tuple[str, Sequence[Negative]]]) -> _Texts:
        texts: list[str] = []
        kinds: list[str] = []
        group: list[int] = []
        changed: list[int] = []
        true_of: list[int] = []
        for number, (caption, own) in enumerate(captions):
            first = len(texts)
            texts += [folded(caption), *(folded(negative.text) for negative in own)]
            group += [number] * (1 + len(own))
            changed += range(first + 1, len(texts))
            true_of += [first] * len(own)
            kinds += [negative.kind for negative in own]
        return cls(texts, np.array(group), np.array(changed), np.array(true_of), kinds)


def _scores(table: _Texts) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """fp64 [N]: how true each text looks to a classifier that has not seen its caption; and what told most."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold
    except ModuleNotFoundError as error:
        raise UserError("the blind test needs scikit-learn: pip install 'vlp[negatives]'") from error
    vectorizer = CountVectorizer(lowercase=False, token_pattern=_TOKEN, ngram_range=(1, 2), binary=True, min_df=2)
    labels = np.ones(len(table.texts))
    labels[table.changed] = 0
    try:
        features = vectorizer.fit_transform(table.texts)
    except ValueError:  # no word twice: nothing to learn
        return np.zeros(len(table.texts)), []
    scores = np.zeros(len(table.texts))
    weights = np.zeros(features.shape[1])
    numbers = {text: number for number, text in enumerate(table.texts)}
    texts = np.array([numbers[text] for text in table.texts])
    for train, test in GroupKFold(_FOLDS).split(features, groups=table.group):
        # What is a caption here and a change of another caption there would be known by heart, the wrong way round.
        train = train[~np.isin(texts[train], texts[test])]
        if len(set(labels[train])) < 2:
            continue  # nothing to learn from: these pairs stay ties
        model: Any = LogisticRegression(class_weight="balanced", solver="liblinear", dual=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a hundred rounds rank pairs as well as a thousand
            model.fit(features[train], labels[train])
        scores[test] = model.decision_function(features[test])
        weights -= model.coef_[0] / _FOLDS
    names = vectorizer.get_feature_names_out()
    most = np.argsort(-np.abs(weights), kind="stable")[:_TOLD]
    return scores, [(str(names[place]), round(float(weights[place]), 2)) for place in most]


def _accuracy(wins: np.ndarray, groups: np.ndarray, seed: int) -> Accuracy:
    """Captions are resampled, as the pairs of one are no independent trials."""
    _, own = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(own, wins), np.bincount(own)
    random = np.random.default_rng(seed)
    draws = (random.integers(len(sums), size=len(sums)) for _ in range(_RESAMPLES))
    low, high = np.quantile([sums[drawn].sum() / counts[drawn].sum() for drawn in draws], (0.025, 0.975))
    return Accuracy(float(wins.mean()), float(low), float(high), len(wins), len(sums))
