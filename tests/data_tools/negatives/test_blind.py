from __future__ import annotations

import random

import pytest

from data_tools._negatives.base import Negative
from data_tools._negatives.blind import FEWEST, blind_test

pytest.importorskip("sklearn", reason="needs the extra negatives")

COLOURS = ("red", "green", "blue", "white", "black")
SHAPES = ("circle", "square", "star", "cross", "ring")


def scenes(count: int) -> list[tuple[str, str]]:
    """Captions with the attributes of their two things exchanged: either is as likely a caption."""
    draw = random.Random(0)
    found = []
    while len(found) < count:
        (one, two), (first, second) = draw.sample(COLOURS, 2), draw.sample(SHAPES, 2)
        number = draw.randrange(10**6)
        text = f"a {{}} {first} left of a {{}} {second}, {number}"
        found.append((text.format(one, two), text.format(two, one)))
    return found


def test_changes_as_likely_as_captions_are_not_told_apart():
    test = blind_test({caption: [Negative(text, "swap")] for caption, text in scenes(600)}, 0)
    assert test is not None
    assert test.overall.low < 0.5 < test.overall.high
    assert abs(test.overall.accuracy - 0.5) < 0.06
    assert (test.overall.pairs, test.overall.captions) == (600, 600)


def test_what_gives_changes_away_is_measured_and_named_by_kind():
    captions = {
        caption: [Negative(text, "swap"), Negative(f"{text} without it", "deny")] for caption, text in scenes(300)
    }
    test = blind_test(captions, 0)
    assert test is not None
    assert test.kinds["deny"].accuracy > 0.97
    assert test.kinds["swap"].high < 0.8
    assert test.kinds["deny"].low <= test.kinds["deny"].accuracy <= test.kinds["deny"].high
    won = sum(kind.pairs * kind.accuracy for kind in test.kinds.values())
    assert test.overall.accuracy == pytest.approx(won / test.overall.pairs)
    names = dict(test.telling)
    assert {"without", "it", "without it"} & names.keys()
    assert all(weight > 0 for name, weight in names.items() if "without" in name)


def test_captions_that_are_changes_of_others_are_not_known_by_heart():
    texts = [f"{one} {two} {three}" for one in COLOURS for two in SHAPES for three in COLOURS]
    draw = random.Random(1)
    test = blind_test({text: [Negative(draw.choice(texts), "random") for _ in range(2)] for text in texts}, 0)
    assert test is not None
    assert 0.4 < test.overall.accuracy < 0.6


def test_equal_scores_count_half():
    test = blind_test({f"word{number}": [Negative(f"other{number}", "k")] for number in range(50)}, 0)
    assert test is not None
    assert (test.overall.accuracy, test.overall.low, test.overall.high) == (0.5, 0.5, 0.5)
    assert test.telling == []


def test_where_no_text_is_left_to_learn_from_pairs_are_ties():
    texts = [f"a {one} {two}" for one in COLOURS for two in SHAPES]
    test = blind_test({text: [Negative(other, "random") for other in texts if other != text] for text in texts}, 0)
    assert test is not None
    assert (test.overall.accuracy, test.overall.pairs) == (0.5, 600)


def test_where_only_captions_are_left_to_learn_from_pairs_are_ties():
    test = blind_test({caption: [Negative("a red ring", "k")] for caption, _ in scenes(30)}, 0)
    assert test is not None
    assert (test.overall.accuracy, test.overall.pairs) == (0.5, 30)


@pytest.mark.parametrize("seed", [-1, 0, 2**64 + 1, -(2**70)])
def test_any_whole_number_is_a_seed(seed):
    test = blind_test({caption: [Negative(text, "swap")] for caption, text in scenes(30)}, seed)
    assert test is not None
    assert test.overall.pairs == 30


def test_too_few_captions_measure_nothing():
    captions = {f"a dog {number}": [Negative(f"a cat {number}", "k")] for number in range(FEWEST - 1)}
    assert blind_test({**captions, "a crab": []}, 0) is None
    assert blind_test({**captions, "a dog": [Negative("a cat", "k")]}, 0) is not None


def test_the_same_seed_gives_the_same_figures():
    captions = {caption: [Negative(text, "swap")] for caption, text in scenes(60)}
    assert blind_test(captions, 3) == blind_test(captions, 3)
    assert blind_test(captions, 3) != blind_test(captions, 4)
