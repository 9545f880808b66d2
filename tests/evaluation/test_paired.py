"""Differences of two models on the same questions, by hand."""

import numpy as np
import pytest

from vlp.evaluation.answers import right
from vlp.evaluation.paired import difference


def ranks(*values: int) -> dict[str, np.ndarray]:
    return {"rank_of_label": np.array(values), "label": np.array([0, 0, 0, 1])}


def test_the_value_is_the_difference_of_the_scores() -> None:
    found = difference("acc1", ranks(1, 1, 1, 2), ranks(1, 2, 2, 1))
    assert found is not None
    assert found.value == pytest.approx(0.75 - 0.5)
    assert (found.only_first, found.only_second) == (2, 1)
    assert not found.is_clear
    per_class = difference("mean_per_class_recall", ranks(1, 1, 1, 2), ranks(1, 2, 2, 1))
    assert per_class is not None
    assert per_class.value == pytest.approx((1 + 0) / 2 - (1 / 3 + 1) / 2)


def test_equal_answers_are_no_difference_and_many_better_ones_a_clear_one() -> None:
    same = difference("acc5", ranks(1, 2, 3, 4), ranks(5, 1, 2, 1))
    assert same is not None
    assert (same.value, same.interval, same.is_clear) == (0, (0, 0), False)
    number = 400
    one, other = np.ones(number, int), np.ones(number, int)
    other[::4] = 2
    clear = difference("text_retrieval_recall@1", {"image_to_text_rank": one}, {"image_to_text_rank": other})
    assert clear is not None
    assert clear.value == 0.25
    assert 0.2 < clear.interval[0] < 0.25 < clear.interval[1] < 0.3
    assert clear.is_clear


def test_questions_about_one_picture_are_drawn_together() -> None:
    """Five captions a picture, all answered alike, say no more than one."""
    random = np.random.default_rng(0)
    pictures, wrong = np.arange(60), random.integers(1, 3, 60)
    single = {"text_to_image_rank": np.ones(60, int), "text_to_image_picture": pictures}
    five = {name: np.repeat(values, 5) for name, values in single.items()}
    narrow = difference("image_retrieval_recall@1", single, {**single, "text_to_image_rank": wrong})
    same = difference("image_retrieval_recall@1", five, {**five, "text_to_image_rank": np.repeat(wrong, 5)})
    assert narrow is not None
    assert same is not None
    assert same.interval == pytest.approx(narrow.interval)


def test_other_questions_and_other_metrics_have_no_difference() -> None:
    assert difference("acc1", ranks(1, 1, 1, 1), {"rank_of_label": np.array([1, 1])}) is None
    assert difference("CIDEr", ranks(1, 1, 1, 1), ranks(1, 1, 1, 1)) is None
    assert difference("acc1", ranks(1, 1, 1, 1), {}) is None
    assert difference("text_acc_macro", {"margin": np.ones(2)}, {"margin": np.ones(2)}) is None
    per_class = {"rank_of_label": np.array([1, 1])}
    assert difference("mean_per_class_recall", per_class, per_class) is None


def test_twins_are_right_as_their_score_asks() -> None:
    answers = {"text_margin": np.array([0.1, 0.0, 0.2]), "image_margin": np.array([0.1, 0.3, -0.1])}
    for metric, expected in (("text_acc", [1, 0, 1]), ("image_acc", [1, 1, 0]), ("acc", [1, 0, 0])):
        found = right(metric, answers)
        assert found is not None
        assert found[0].tolist() == expected
