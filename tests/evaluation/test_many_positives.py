import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from vlp.evaluation.many_positives import RightRanks, chance_of_map_at_r, chance_of_r_precision, right_ranks


def ranks_of(scores, right, number=None, depth=10):
    """Ranks from a table of scores, a query a row."""
    scores = torch.tensor(scores)
    number = number or [len(rows) for rows in right]
    return right_ranks(scores, torch.eye(scores.shape[1]), right, number, depth)


def test_figures_by_hand():
    # Four right ones at places 1, 3, 4 and 6 of seven.
    ranks = ranks_of([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]], [[5, 0, 2, 3]])
    assert ranks.rank_NK.tolist() == [[1, 3, 4, 6]]
    assert ranks.r_precision().tolist() == [3 / 4]
    assert ranks.map_at_r().tolist() == pytest.approx([(1 + 0 + 2 / 3 + 3 / 4) / 4])
    assert [ranks.recall(k).item() for k in (1, 2)] == [1, 1]


def test_a_query_with_fewer_right_answers_and_some_outside_the_set():
    ranks = ranks_of([[0.9, 0.8, 0.7], [0.7, 0.8, 0.9]], [[0, 2], [1]], number=[2, 2])
    assert ranks.rank_NK.tolist() == [[1, 3], [2, 0]]
    assert ranks.r_precision().tolist() == [1 / 2, 1 / 2]
    assert ranks.map_at_r().tolist() == pytest.approx([1 / 2, (0 + 1 / 2) / 2])
    assert ranks.recall(1).tolist() == [1, 0]
    assert ranks_of([[0.9, 0.8]], [[]], number=[1]).recall(5).tolist() == [0]


def test_what_is_wrong_stands_first_where_scores_tie():
    ranks = ranks_of([[0.9, 0.9, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]], [[0, 2], [0, 1]])
    assert ranks.rank_NK.tolist() == [[2, 4], [3, 4]]
    assert ranks.map_at_r().tolist() == [1 / 4, 0]
    # Two right answers that tie do not stand in each other's way.
    assert ranks_of([[0.9, 0.9, 0.1]], [[0, 1]]).map_at_r().tolist() == [1]


def test_nan_counts_against_the_model_on_either_side():

    def figures(scores, right):
        ranks = right_ranks(torch.ones(1, 1), torch.tensor(scores)[:, None], [right], [2], depth=2)
        return ranks.recall(1).item(), ranks.r_precision().item(), ranks.map_at_r().item()

    assert figures([math.nan, 0.8, 0.7], right=[1, 2]) == (0, 1 / 2, 1 / 4)
    assert figures([math.nan, 0.8, 0.7], right=[0, 1]) == (1, 1 / 2, 1 / 2)
    assert figures([math.nan, 0.8, 0.7], right=[0, 2]) == (0, 1 / 2, 1 / 4)
    assert figures([math.nan] * 3, right=[1, 2]) == (0, 0, 0)


def test_a_constant_model_finds_nothing():
    feature = F.normalize(torch.linspace(0.1, 1, 333), dim=0)
    right = [[i, i + 1, i + 2] for i in range(20)]
    ranks = right_ranks(feature.repeat(20, 1), feature.repeat(50, 1), right, [3] * 20, depth=5)
    assert ranks.map_at_r().sum() == ranks.r_precision().sum() == ranks.recall(5).sum() == 0


def test_depth_and_tiles_change_no_figure(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query_ND, candidate_MD = (F.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (30, 40))
    right = [torch.randperm(40, generator=generator)[: 1 + i % 7].tolist() for i in range(30)]
    number = [len(rows) for rows in right]
    deep = right_ranks(query_ND, candidate_MD, right, number, depth=100)
    monkeypatch.setattr("vlp.evaluation.many_positives.TILE_ELEMENTS", 7 * 40)
    shallow = right_ranks(query_ND, candidate_MD, right, number, depth=7)
    assert torch.equal(deep.map_at_r(), shallow.map_at_r())
    assert torch.equal(deep.r_precision(), shallow.r_precision())
    assert all(torch.equal(deep.recall(k), shallow.recall(k)) for k in (1, 5))
    # By sorting, as a person would.
    order = (query_ND.double() @ candidate_MD.double().T).argsort(dim=1, descending=True).tolist()
    expected = [[place for place, row in enumerate(order[q], start=1) if row in right[q]] for q in range(30)]
    assert [[rank for rank in row if rank] for row in deep.rank_NK.tolist()] == expected


def test_chance_is_the_mean_over_all_orders():
    right, number, candidates = [[0, 1], [2], [0, 3]], [2, 1, 3], 5
    orders = list(itertools.permutations(range(candidates)))
    ranks = [
        [[1 + order.index(row) for row in rows] for order in orders] for rows in right
    ]  # for each query its ranks in every order
    map_at_r, r_precision = 0.0, 0.0
    for rows, upto in zip(ranks, number, strict=True):
        found = RightRanks(torch.tensor([sorted(row) for row in rows]), torch.tensor([upto] * len(rows)), candidates)
        map_at_r += found.map_at_r().mean().item() / 3
        r_precision += found.r_precision().mean().item() / 3
    assert chance_of_map_at_r(right, number, candidates) == pytest.approx(map_at_r)
    assert chance_of_r_precision(right, candidates) == pytest.approx(r_precision)
