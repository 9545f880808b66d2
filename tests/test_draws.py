"""Draws are the hash they claim to be, on any shape, and uniform."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vlp import draws

MASK = (1 << 64) - 1


def splitmix64(*parts: int) -> int:
    """In Python's unbounded integers."""
    state = None
    for part in parts:
        state = part & MASK if state is None else (state ^ part) & MASK
        state = (state + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    assert state is not None
    return state


def test_it_is_splitmix64():
    assert splitmix64(0) == 0xE220A8397B1DCDAF, "the first number of the published generator"
    cases = [(0,), (1,), (-1,), (2**63 - 1,), (-(2**63),), (5, 7), (5, -7, 49407)]
    for case in cases:
        assert draws.hashed(*(torch.tensor(part) for part in case)).item() & MASK == splitmix64(*case)
        assert draws.hashed(*case).item() & MASK == splitmix64(*case)


def test_parts_are_broadcast():
    rows_N1, columns_M = torch.arange(3)[:, None], torch.arange(4)
    table_NM = draws.hashed(9, rows_N1, columns_M)
    assert table_NM[2, 3].item() & MASK == splitmix64(9, 2, 3)
    assert table_NM.unique().numel() == 12


def test_rows_have_one_identity_and_others_have_others():
    ids = torch.randint(0, 3, (2000, 5), generator=torch.Generator().manual_seed(0))
    different = ids.unique(dim=0)
    found = draws.identities(ids)
    assert found.unique().numel() == len(different)
    assert torch.equal(draws.identities(ids.view(4, 500, 5)).flatten(), found)


def test_an_order_of_ids_is_another_row():
    assert draws.identities(torch.tensor([[1, 2], [2, 1]])).unique().numel() == 2


def test_no_id_at_one_place_is_taken_for_another_id_at_another_place():
    places_L = torch.arange(1000) * draws._STEP
    differences = (places_L[:, None] - places_L).fill_diagonal_(1 << 62)
    assert differences.abs().min() > 1 << 48


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def test_identities_take_few_operations_however_long_the_rows():
    """Every step of every run takes them of all its captions."""
    with Operations() as operations:
        draws.identities(torch.randint(0, 49408, (1, 64, 77)))
    assert operations.number < 25


def test_numbers_are_uniform_and_never_zero_or_one():
    numbers = draws.uniforms(3, torch.arange(200_000))
    assert numbers.dtype == torch.float64
    assert numbers.min() > 0
    assert numbers.max() < 1
    share = torch.histc(numbers, 20, 0, 1) / len(numbers)
    assert (share - 0.05).abs().max() < 0.003
    neighbours = torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]
    assert abs(neighbours) < 0.01
