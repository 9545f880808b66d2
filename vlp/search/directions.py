"""What is asked for, as one vector: a point, moved along the direction from one set of things to another.

The direction is RAVE's residual vector of two sets in the space of CLIP, with ``f`` the L2-normalised features:

    r = norm(norm(mean_P f) - norm(mean_Q f))        (P: towards, Q: away from; an empty set counts as zero)

and the query is ``norm(f(base) + w r)``, or ``r`` itself where there is no base. "picture + red - blue" is P = {red},
Q = {blue}: what the two texts share, such as that they are texts, falls out of the difference.

Source: the residual is that of github.com/Atmyre/RAVE (train_rave.py), there of two sets of pictures; adding it to a
query with a weight is ours.
"""

from __future__ import annotations

import numpy as np

from vlp.types import UserError

WEIGHT = 1.0
_SMALLEST = 1e-4  # the length of a difference below which its direction is rounding


def residual(towards_ND: np.ndarray | None, away_ND: np.ndarray | None) -> np.ndarray:
    """r, a direction D of length 1.

    Args:
        towards_ND, away_ND: features of length 1 of the two sets, one of which may be missing.

    Raises:
        UserError: the two sets have the same mean.
    """
    difference_D = _mean(towards_ND) - _mean(away_ND)
    if np.linalg.norm(difference_D) < _SMALLEST:
        raise UserError("what to go towards and away from are the same for this model: name other terms")
    return _unit(difference_D)


def moved(base_D: np.ndarray | None, direction_D: np.ndarray | None, weight: float = WEIGHT) -> np.ndarray:
    """The query of length 1; at least one of the two must be given.

    Raises:
        UserError: nothing is left of the base.
    """
    if base_D is None:
        assert direction_D is not None
        return direction_D
    query_D = base_D if direction_D is None else base_D + np.float32(weight) * direction_D
    if np.linalg.norm(query_D) < _SMALLEST:
        raise UserError("the terms take away all that is asked for: name others, or a smaller weight")
    return _unit(query_D)


def _mean(features_ND: np.ndarray | None) -> np.ndarray:
    if features_ND is None or not len(features_ND):
        return np.zeros((), np.float32)
    mean_D = features_ND.mean(axis=0)
    if np.linalg.norm(mean_D) < _SMALLEST:
        raise UserError("the terms on one side cancel each other out: name fewer")
    return _unit(mean_D)


def _unit(vector_D: np.ndarray) -> np.ndarray:
    return np.asarray(vector_D / np.linalg.norm(vector_D), np.float32)
