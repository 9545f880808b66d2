"""The arithmetic of queries, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vlp.search.directions import moved, residual
from vlp.types import UserError

X, Y, Z = np.eye(3, dtype=np.float32)


def test_the_residual_is_of_normalised_means() -> None:
    # mean{x, y} = (x + y) / 2, of length 1: (x + y) / sqrt 2; minus z, of length sqrt 2.
    expected = np.array([0.5, 0.5, -1 / np.sqrt(2)])
    np.testing.assert_allclose(residual(np.stack([X, Y]), Z[None]), expected, atol=1e-6)


def test_a_side_that_is_missing_counts_as_zero() -> None:
    np.testing.assert_allclose(residual(np.stack([X, Y]), None), (X + Y) / np.sqrt(2), atol=1e-6)
    np.testing.assert_allclose(residual(None, Z[None]), -Z)


def test_a_query_is_moved_by_the_weighted_direction_and_has_length_1() -> None:
    np.testing.assert_allclose(moved(X, Y, 0.75), np.array([0.8, 0.6, 0]), atol=1e-6)
    np.testing.assert_allclose(moved(X, Y, 0), X)
    assert moved(None, Y) is Y
    assert moved(X, None) is not None


def test_what_all_share_falls_out_of_a_difference() -> None:
    shared = 3 * Z
    red, blue = (v / np.linalg.norm(v) for v in (X + shared, Y + shared))
    np.testing.assert_allclose(residual(red[None], blue[None]), (X - Y) / np.sqrt(2), atol=1e-6)


def test_what_cancels_out_is_refused() -> None:
    with pytest.raises(UserError, match="are the same"):
        residual(X[None], X[None])
    with pytest.raises(UserError, match="cancel each other out"):
        residual(np.stack([X, -X]), Y[None])
    with pytest.raises(UserError, match="take away all"):
        moved(X, -X, 1)
