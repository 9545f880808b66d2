"""Batches made ahead: in order, whole, and never more than one too many."""

from __future__ import annotations

import threading

import pytest

from vlp.data.ahead import batches_ahead


def test_batches_are_in_order_and_the_last_one_is_shorter() -> None:
    assert list(batches_ahead(lambda x: 2 * x, range(7), 3, threads=4)) == [[0, 2, 4], [6, 8, 10], [12]]
    assert list(batches_ahead(str, [], 3, threads=1)) == []


def test_one_batch_is_at_work_while_another_is_used() -> None:
    done, enough = [], threading.Event()

    def work(item: int) -> int:
        done.append(item)
        if len(done) == 4:
            enough.set()
        return item

    batches = batches_ahead(work, iter(range(100)), 2, threads=2)
    assert next(batches) == [0, 1]
    assert enough.wait(10), "the second batch is not begun before the first one is used"
    assert sorted(done) == [0, 1, 2, 3], "more is read than who waits can use"
    batches.close()


def test_what_goes_wrong_in_a_thread_is_raised_where_it_is_waited_for() -> None:
    batches = batches_ahead(lambda x: 1 // x, [2, 1, 0], 2, threads=1)
    assert next(batches) == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(batches)
