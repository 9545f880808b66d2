"""Mean average precision, by hand and beside other implementations."""

import math

import numpy as np
import pytest
import torch

from vlp.evaluation.average_precision import average_precisions, mean_interval, mean_of


def test_by_hand():
    # In order of scores: right, wrong, right. Precision at the right ones is 1/1 and 2/3.
    scores, shown = torch.tensor([[0.9], [0.1], [0.5]]), torch.tensor([[True], [True], [False]])
    assert average_precisions(scores, shown) == pytest.approx([(1 + 2 / 3) / 2])


def test_equal_scores_stand_above_or_below_a_threshold_together():
    constant = torch.zeros(8, 1)
    shown = torch.tensor([[True]] * 2 + [[False]] * 6)
    assert average_precisions(constant, shown) == average_precisions(constant, shown.flip(0)) == [0.25]


def test_a_class_that_no_picture_shows_is_left_out():
    values = average_precisions(torch.rand(4, 2), torch.tensor([[True, False]] * 4))
    assert values[0] == 1
    assert math.isnan(values[1])
    assert mean_of(values) == 1
    assert math.isnan(mean_of([math.nan]))


def random_set(ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 6, generator=generator)
    shown = torch.rand(200, 6, generator=generator) < torch.linspace(0.02, 0.6, 6)
    return (scores.round(decimals=1) if ties else scores), shown


@pytest.mark.parametrize("ties", [False, True])
def test_as_scikit_learn_does(ties):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, shown = random_set(ties)
    expected = metrics.average_precision_score(shown.numpy(), scores.numpy(), average=None)
    assert average_precisions(scores, shown) == pytest.approx(list(expected), abs=1e-12)


def test_as_clip_benchmark_does_where_nothing_ties():
    evaluator = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    scores, shown = random_set(ties=False)
    expected = evaluator.average_precision_per_class(scores, shown.float())
    assert average_precisions(scores, shown) == pytest.approx(expected.tolist(), abs=1e-6)  # theirs is in fp32
    theirs = evaluator.average_precision_per_class(torch.zeros(8, 1), torch.tensor([[1.0]] * 2 + [[0.0]] * 6))
    assert float(theirs) == 1  # there the order of equal scores counts: a collapsed model can get anything


def test_the_interval_covers_the_mean_and_repeats_itself():
    scores, shown = random_set(ties=False)
    scores = scores + shown
    low, high = mean_interval(scores, shown)
    assert low < np.mean(average_precisions(scores, shown)) < high < 1
    assert (low, high) == mean_interval(scores, shown)


def test_the_interval_of_scores_that_know_nothing_covers_chance():
    """As it does not without the mirror: draws of these are above the set, and the set is above 0.1."""
    generator = torch.Generator().manual_seed(0)
    scores, shown = torch.randn(500, 40, generator=generator), torch.rand(500, 40, generator=generator) < 0.1
    low, high = mean_interval(scores, shown)
    assert low < 0.1 < high < 0.13


def test_there_is_no_interval_where_draws_do_not_differ():
    assert all(
        math.isnan(limit) for limit in mean_interval(torch.tensor([[1.0], [0]]), torch.tensor([[True], [False]]))
    )


def test_a_draw_of_a_picture_twice_counts_twice():
    """Weights are the same as rows that stand there as often."""
    from vlp.evaluation.average_precision import _of_classes

    scores, shown = random_set(ties=True)
    weights = np.random.default_rng(0).integers(0, 3, 200)
    rows = np.repeat(np.arange(200), weights)
    assert _of_classes(scores, shown, weights[None])[:, 0] == pytest.approx(
        average_precisions(scores[rows], shown[rows])
    )
