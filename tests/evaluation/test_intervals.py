import math
import statistics

import numpy as np
import pytest

from vlp.evaluation.intervals import of_category_mean, of_mean, of_means


def coverage(draw, true, trials=60):
    """Share of intervals of sets drawn with ``draw(random)`` that hold ``true``."""
    random = np.random.default_rng(7)
    limits = [of_mean(*draw(random)) for _ in range(trials)]
    return statistics.mean(low <= true <= high for low, high in limits)


def test_independent_answers_give_the_binomial_interval():
    values = [True] * 600 + [False] * 400
    low, high = of_mean(values, range(1000))
    half = 1.96 * math.sqrt(0.6 * 0.4 / 1000)
    assert (low, high) == (pytest.approx(0.6 - half, abs=0.004), pytest.approx(0.6 + half, abs=0.004))
    assert of_mean(values, range(1000)) == (low, high)  # the seed is fixed


def test_twenty_answers_about_one_picture_count_as_one():
    values = [True, False, True, False, True, True] * 10
    assert of_mean(np.repeat(values, 20), np.repeat(range(60), 20)) == of_mean(values, range(60))


def test_intervals_cover_the_truth_where_answers_about_a_picture_agree():
    def draw(random):
        of_picture = random.random(120) < 0.7
        return np.repeat(of_picture, 5), np.repeat(range(120), 5)

    def alone(random):
        values, pictures = draw(random)
        return values, range(len(pictures))

    assert coverage(draw, 0.7) >= 0.9
    assert coverage(alone, 0.7) <= 0.75  # what drawing answers would feign


def test_a_mean_of_categories_gives_each_the_same_weight():
    # 1,000 answers of one category say little about the mean that four of the other have half of.
    values, categories = [True] * 1000 + [True, False, True, False], ["many"] * 1000 + ["few"] * 4
    low, high = of_category_mean(values, categories, range(1004))
    assert (low, high) == (0.5, 1.0)
    assert of_mean(values, range(1004))[0] > 0.99
    assert of_category_mean(values, ["one"] * 1004, range(1004)) == of_mean(values, range(1004))


def test_a_picture_may_have_answers_of_several_categories():
    random = np.random.default_rng(0)
    pictures, categories = random.integers(40, size=400), random.integers(3, size=400)
    values = random.random(400) < 0.5
    low, high = of_category_mean(values, categories, pictures)
    means = []
    for _ in range(2000):
        drawn = np.concatenate([np.flatnonzero(pictures == picture) for picture in random.integers(40, size=40)])
        means.append(np.mean([values[drawn][categories[drawn] == category].mean() for category in range(3)]))
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.012)


def test_all_right_is_not_taken_for_certain():
    # With 95 % and n answers, all of them right: 1 - 0.025^(1/n) may be wrong.
    assert of_mean([1] * 10, range(10)) == (pytest.approx(0.025**0.1), 1)
    assert of_mean([0] * 10, range(10)) == (0, pytest.approx(1 - 0.025**0.1))
    assert of_mean([1] * 20, np.repeat(range(10), 2)) == of_mean([1] * 10, range(10))
    assert of_mean([0.5, 0.5], "ab") == (0.5, 0.5)


def test_one_picture_or_none_has_no_interval():
    assert all(map(math.isnan, of_mean([True, False], ["a", "a"]) + of_mean([], [])))


def test_chunks_do_not_change_the_draws(monkeypatch):
    values, pictures = [True, False, False] * 30, range(90)
    whole = of_mean(values, pictures)
    monkeypatch.setattr("vlp.evaluation.intervals.CHUNK", 1_000)
    assert of_mean(values, pictures) == whole


def test_several_means_are_drawn_together_and_are_the_same():
    random = np.random.default_rng(3)
    value_NK = (random.random((200, 4)) < [0.3, 0.7, 2, -1]).astype(float)  # the last two: all right, all wrong
    pictures, categories = random.integers(40, size=200), random.integers(3, size=200)
    pictures[:40] = range(40)
    order = np.argsort(pictures, kind="stable")  # `of_mean` numbers pictures as they come
    value_NK, pictures, categories = value_NK[order], pictures[order], categories[order]
    for found, k in zip(of_means(value_NK, pictures), range(4), strict=True):
        assert found == pytest.approx(of_mean(value_NK[:, k], pictures))
    for found, k in zip(of_means(value_NK, pictures, categories), range(4), strict=True):
        assert found == pytest.approx(of_category_mean(value_NK[:, k], categories, pictures))
    assert all(math.isnan(limit) for found in of_means(value_NK[:1], pictures[:1]) for limit in found)
