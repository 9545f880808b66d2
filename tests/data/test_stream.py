from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vlp.data.stream import Order, batch_positions, sample_generator

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=8)
windows = st.integers(1, 60)


def epoch_of(order: Order, epoch: int) -> list[tuple[int, int]]:
    return [order.sample(epoch * order.num_samples + place) for place in range(order.num_samples)]


@given(lengths, windows, st.integers(0, 2**40), st.integers(0, 3))
def test_an_epoch_holds_every_sample_once(lengths: list[int], window: int, seed: int, epoch: int) -> None:
    seen = epoch_of(Order(lengths, seed, window), epoch)
    assert sorted(seen) == [(shard, row) for shard, length in enumerate(lengths) for row in range(length)]


@given(lengths, windows, st.data())
def test_a_jump_lands_where_the_walk_passes(lengths: list[int], window: int, data: st.DataObject) -> None:
    order = Order(lengths, 7, window)
    walk = [order.sample(position) for position in range(3 * order.num_samples)]
    places = data.draw(st.lists(st.integers(0, len(walk) - 1), min_size=1, max_size=10))
    fresh = Order(lengths, 7, window)
    assert [fresh.sample(place) for place in places] == [walk[place] for place in places]


def test_epochs_and_seeds_differ() -> None:
    order, other = Order([50, 50], 1, 100), Order([50, 50], 2, 100)
    assert epoch_of(order, 0) != epoch_of(order, 1)
    assert epoch_of(order, 0) != epoch_of(other, 0)


def test_samples_move_within_a_window_only_and_shards_are_shuffled() -> None:
    order = Order([10] * 20, 3, window=30)
    seen = epoch_of(order, 0)
    for start in range(0, 200, 30):
        window = seen[start : start + 30]
        assert len({shard for shard, _ in window}) == len(window) / 10
        assert window != sorted(window)
    assert [shard for shard, _ in seen[::30]] != sorted(shard for shard, _ in seen[::30])


def test_the_shuffle_has_no_bias() -> None:
    """Over many epochs every sample comes first equally often: chi-square, 9 degrees of freedom, p > 0.001."""
    order = Order([3, 7], 0, window=10)
    firsts = [order.sample(epoch * 10) for epoch in range(2000)]
    counts = np.array([firsts.count(place) for place in set(firsts)])
    assert ((counts - 200) ** 2 / 200).sum() < 27.9


def test_the_order_never_changes() -> None:
    """Runs are resumed by later versions: these are the values of the first one."""
    order = Order([4, 3, 5], 42, window=6)
    assert [order.sample(position) for position in range(6)] == [
        (2, 2),
        (0, 0),
        (2, 3),
        (2, 1),
        (2, 4),
        (2, 0),
    ]
    assert order.replacement(3, 1) == 7


@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 99))
def test_a_replacement_is_another_sample_of_the_same_epoch(n: int, position: int, attempt: int) -> None:
    order = Order([n], 5, window=10)
    other = order.replacement(position, attempt)
    assert other // n == position // n
    assert n == 1 or other != position
    assert other == Order([n], 5, window=10).replacement(position, attempt)


def test_replacements_reach_every_other_sample() -> None:
    order = Order([6], 5, window=10)
    assert {order.replacement(2, attempt) for attempt in range(1, 100)} == {0, 1, 3, 4, 5}


@given(st.integers(0, 50), st.integers(1, 8), st.integers(1, 8))
def test_ranks_partition_the_global_batch(step: int, rows: int, world: int) -> None:
    parts = [batch_positions(step, rows * world, rank, world) for rank in range(world)]
    assert [p for part in parts for p in part] == list(batch_positions(step, rows * world))
    assert parts[0][0] == step * rows * world


def test_draws_differ_by_seed_position_and_attempt() -> None:
    draws = {sample_generator(s, p, a).random() for s in (0, 1) for p in (0, 1, 2**33) for a in (0, 1)}
    assert len(draws) == 12
    assert sample_generator(1, 2, 0).random() == sample_generator(1, 2, 0).random()
