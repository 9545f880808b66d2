"""Copies in host memory: whole, contiguous, and nobody else's."""

from __future__ import annotations

import pytest
import torch

from vlp.checkpoint import to_host


def test_the_step_may_go_on_changing_the_weights():
    weight = torch.arange(6.0).reshape(2, 3)
    copies = to_host([("weight", weight), ("tied", weight), ("view", weight[:, 1:])])
    weight.zero_()
    expected = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(copies["weight"], expected)
    assert torch.equal(copies["tied"], expected)
    assert torch.equal(copies["view"], expected[:, 1:])
    assert len({copy.untyped_storage().data_ptr() for copy in copies.values()}) == 3


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(3, 4).T,
        torch.tensor(7, dtype=torch.int64),
        torch.randn(5).bfloat16(),
        torch.empty(0, 3),
        torch.nn.Parameter(torch.randn(3)),
    ],
    ids=["channels last", "transposed", "number", "bf16", "empty", "parameter"],
)
def test_whatever_the_memory_looks_like(value):
    (copy,) = to_host([("value", value)]).values()
    assert torch.equal(copy, value)
    assert copy.dtype == value.dtype
    assert copy.is_contiguous()
    assert not copy.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_from_a_gpu_they_are_whole_when_it_returns():
    value = torch.randn(1 << 24, device="cuda")
    (copy,) = to_host([("value", value)]).values()
    assert copy.is_pinned()
    assert torch.equal(copy, value.cpu())
