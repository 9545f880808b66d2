"""Random numbers that are pure functions of what they are for, the same on any device, process and micro-batch.

Integers of torch wrap around on every device, so a hash of tensors needs nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >> 63 else constant


_STEP, _FIRST, _SECOND = (_signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_FRACTION_BITS = 53


def hashed(*parts: Tensor | int) -> Tensor:
    """A hash of integers that are broadcast against each other, int64; a bijection in the last of them.

    The finaliser of splitmix64 (Steele, Lea and Flood 2014), once a part.
    """
    mixed: Tensor | None = None
    for part in parts:
        part = part.long() if isinstance(part, Tensor) else torch.tensor(_signed(part % (1 << 64)))
        mixed = part if mixed is None else mixed ^ part
        mixed = mixed + _STEP
        mixed = (mixed ^ _shifted(mixed, 30)) * _FIRST
        mixed = (mixed ^ _shifted(mixed, 27)) * _SECOND
        mixed = mixed ^ _shifted(mixed, 31)
    assert mixed is not None
    return mixed


def identities(ids: Tensor) -> Tensor:
    """A hash of each row of ids, (..., L) -> (...): equal rows are equal, others almost surely not (2^-64 a pair).

    The sum over places of the hash of place and id: a dozen operations, however long the rows.
    """
    # Multiples of the golden ratio keep far apart: no id below 2^48 at one place is taken for one at another.
    places_L = torch.arange(ids.shape[-1], device=ids.device) * _STEP
    return hashed(ids.long() + places_L).sum(-1)


def uniforms(*parts: Tensor | int) -> Tensor:
    """Numbers between 0 and 1, both excluded, fp64, each a function of the hash of its ``parts``."""
    return (_shifted(hashed(*parts), 64 - _FRACTION_BITS).double() + 0.5) * 2.0**-_FRACTION_BITS


def _shifted(values: Tensor, bits: int) -> Tensor:
    """A shift to the right that brings in zeros; torch's own repeats the sign, which would lose a bit."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
