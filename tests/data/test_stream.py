from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vlp.data.stream import Mixture, Order, Resampled, SampleOrder, batch_positions, sample_generator

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=8)
windows = st.integers(1, 60)
streams = st.integers(1, 7)


def epoch_of(order: SampleOrder, epoch: int) -> list[tuple[int, int]]:
    return [order.sample(epoch * order.num_samples + place) for place in range(order.num_samples)]


@given(lengths, windows, streams, st.integers(0, 2**40), st.integers(0, 3))
def test_an_epoch_holds_every_sample_once(lengths: list[int], window: int, streams: int, seed: int, epoch: int) -> None:
    seen = epoch_of(Order(lengths, seed, window, streams), epoch)
    assert sorted(seen) == [(shard, row) for shard, length in enumerate(lengths) for row in range(length)]


def orders(lengths: list[int], window: int, streams: int) -> list[SampleOrder]:
    """One of each kind."""
    order, resampled = Order(lengths, 7, window, streams), Resampled(lengths, 7, window)
    mixture = Mixture([Order(lengths, 8, window, streams), Resampled([2, 1], 9, window)], [0.7, 0.1], [2, 0], 7)
    return [order, resampled, mixture]


@given(lengths, windows, streams, st.integers(0, 2), st.data())
def test_a_jump_lands_where_the_walk_passes(
    lengths: list[int], window: int, streams: int, kind: int, data: st.DataObject
) -> None:
    order = orders(lengths, window, streams)[kind]
    walk = [order.sample(position) for position in range(3 * order.num_samples)]
    places = data.draw(st.lists(st.integers(0, len(walk) - 1), min_size=1, max_size=10))
    fresh = orders(lengths, window, streams)[kind]
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
    assert order.sample(3, attempt=1) == (1, 2)


def test_the_order_of_streams_and_mixtures_never_changes() -> None:
    order, resampled, mixture = orders([4, 3, 5], 2, 3)
    assert [order.sample(p) for p in range(6)] == [(2, 0), (0, 1), (2, 1), (0, 2), (2, 2), (0, 3)]
    assert [resampled.sample(p) for p in range(4)] == [(1, 0), (2, 3), (1, 1), (0, 3)]
    assert [mixture.sample(p) for p in range(6)] == [(1, 0), (4, 0), (2, 1), (4, 1), (2, 2), (4, 2)]


@given(st.integers(1, 40), streams, st.integers(0, 200), st.integers(1, 99))
def test_a_replacement_is_another_sample(n: int, streams: int, position: int, attempt: int) -> None:
    order = Order([n], 5, 10, streams)
    other = order.sample(position, attempt)
    assert n == 1 or other != order.sample(position)
    assert other == Order([n], 5, 10, streams).sample(position, attempt)


def test_replacements_reach_every_other_sample() -> None:
    order = Order([6], 5, window=10)
    reached = {order.sample(2, attempt)[1] for attempt in range(1, 100)}
    assert reached == set(range(6)) - {order.sample(2)[1]}


# ---- Streams


def test_a_batch_mixes_as_many_places_as_there_are_streams() -> None:
    order = Order([10] * 40, 3, window=25, streams=16)
    for start in range(0, 400, 16):
        assert len({shard for shard, _ in (order.sample(p) for p in range(start, start + 16))}) >= 14


def test_short_data_is_one_stream_whose_epochs_are_plain_permutations() -> None:
    assert Order([50, 49], 0, window=50, streams=16).streams == 1
    assert Order([50, 50], 0, window=50, streams=16).streams == 2
    assert Order([3], 0, window=50, streams=16).streams == 1


def test_ranks_read_different_shards() -> None:
    order = Order([100] * 32, 3, window=100, streams=16)
    read = [
        {order.sample(p)[0] for step in range(20) for p in batch_positions(step, 160, rank, 8)} for rank in range(8)
    ]
    assert all(len(shards) <= 4 for shards in read), "two streams of two shards each"
    assert not any(read[a] & read[b] for a in range(8) for b in range(a))


# ---- Mixtures


weights = st.lists(st.integers(1, 10_000).map(lambda value: value / 100), min_size=2, max_size=5)


@given(weights, st.integers(0, 3))
def test_proportions_are_exact(weights: list[float], seed: int) -> None:
    """After each block every source has given its share, to within one sample."""
    counted = [Order([5], seed, 5) for _ in weights]
    mixture = Mixture(counted, weights, list(range(len(weights))), seed)
    given_so_far = np.zeros(len(weights))
    for number in range(3):
        sources, _ = mixture.drawn_block(number)
        given_so_far += np.bincount(sources, minlength=len(weights))
        share = np.array(weights) / sum(weights) * (number + 1) * mixture.block
        assert (abs(given_so_far - share) <= 1.001).all()


@given(weights, st.integers(0, 3))
def test_each_source_walks_on_through_its_own_stream(weights: list[float], seed: int) -> None:
    mixture = Mixture([Order([5], seed, 5) for _ in weights], weights, list(range(len(weights))), seed)
    walked: dict[int, list[int]] = {}
    for position in range(2500):
        source, place = mixture.source(position)
        walked.setdefault(source, []).append(place)
    assert all(places == list(range(len(places))) for places in walked.values())


def test_a_small_source_is_whole_before_it_comes_again() -> None:
    mixture = Mixture([Order([1000], 1, 100), Order([10], 2, 100)], [1, 1], [0, 1], 3)
    small = [mixture.sample(p)[1] for p in range(2000) if mixture.source(p)[0] == 1]
    for start in range(0, 990, 10):
        assert sorted(small[start : start + 10]) == list(range(10))


def test_with_replacement_all_samples_are_equally_likely() -> None:
    """Runs make neighbours come together, so windows are drawn often: each of ten within 5 % of a tenth."""
    order = Resampled([3, 7], 0, window=4)
    counts = np.zeros(10)
    for position in range(0, 80_000, 4):
        shard, row = order.sample(position)
        counts[3 * shard + row] += 1
    assert abs(counts / 2000 - 1).max() < 0.1
    repeated = [order.sample(position) for position in range(10)]
    assert len(set(repeated)) < 10


# ---- Ranks and draws


@given(st.integers(0, 50), st.integers(1, 8), st.integers(1, 8))
def test_ranks_partition_the_global_batch(step: int, rows: int, world: int) -> None:
    parts = [batch_positions(step, rows * world, rank, world) for rank in range(world)]
    assert [p for row in zip(*parts, strict=True) for p in row] == list(batch_positions(step, rows * world))
    assert parts[0][0] == step * rows * world


def test_draws_differ_by_seed_position_and_attempt() -> None:
    draws = {sample_generator(s, p, a).random() for s in (0, 1) for p in (0, 1, 2**33) for a in (0, 1)}
    assert len(draws) == 12
    assert sample_generator(1, 2, 0).random() == sample_generator(1, 2, 0).random()
