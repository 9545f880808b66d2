"""The chunked cross-entropy is torch's: value, gradients, smoothing and precisions; and it never holds all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vlp.encoders import vocabulary_loss
from vlp.encoders.vocabulary_loss import cross_entropy

TOKENS, WIDTH, VOCABULARY = 23, 8, 50


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_loss, "CHUNK", 5)


def inputs(tokens: int = TOKENS, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """States, head and labels, of which some are equal, the first and the last of the vocabulary among them."""
    random = torch.Generator().manual_seed(0)
    states_MW = torch.randn(tokens, WIDTH, generator=random, dtype=torch.float64).to(dtype)
    head_WV = torch.randn(WIDTH, VOCABULARY, generator=random, dtype=torch.float64).to(dtype)
    labels_M = torch.randint(0, VOCABULARY, (tokens,), generator=random)
    labels_M[:3] = torch.tensor([0, VOCABULARY - 1, 0])[:tokens]
    return states_MW.requires_grad_(), head_WV.requires_grad_(), labels_M


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, leaves, allow_unused=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("tokens", [1, 4, 5, 6, 10, 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch(tokens: int, smoothing: float, dtype: torch.dtype) -> None:
    """With fewer tokens than a chunk, whole chunks and a rest."""
    states_MW, head_WV, labels_M = inputs(tokens, dtype)
    total, nll = cross_entropy(states_MW, head_WV, labels_M, smoothing)
    expected = F.cross_entropy(states_MW @ head_WV, labels_M, reduction="sum", label_smoothing=smoothing)
    plain = F.cross_entropy(states_MW @ head_WV, labels_M, reduction="sum")
    assert total.dtype == nll.dtype == dtype
    assert not nll.requires_grad
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(nll, plain.detach())
    found, wanted = (gradients(loss, states_MW, head_WV) for loss in (total, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradients_are_those_of_finite_differences(smoothing: float) -> None:
    """torch's gradcheck differentiates twice, which this loss refuses."""
    *leaves, labels_M = inputs(7, torch.float64)
    found = gradients(cross_entropy(*leaves, labels_M, smoothing)[0], *leaves)
    for place, gradient in enumerate(found):
        for entry in range(0, gradient.numel(), 7):
            step = torch.zeros_like(gradient).flatten()
            step[entry] = 1e-6
            around = []
            for sign in (1, -1):
                moved = [leaf.detach() for leaf in leaves]
                moved[place] = moved[place] + sign * step.view_as(gradient)
                around.append(cross_entropy(*moved, labels_M, smoothing)[0])
            measured = (around[0] - around[1]) / 2e-6
            torch.testing.assert_close(measured, gradient.flatten()[entry], rtol=1e-6, atol=1e-7)


def test_equals_torch_linear_cross_entropy() -> None:
    theirs = getattr(F, "linear_cross_entropy", None)
    if theirs is None:
        pytest.skip("this torch has none yet")
    states_MW, head_WV, labels_M = inputs()
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=5)
    expected = theirs(states_MW, head_WV.t(), labels_M, reduction="sum", options=options)
    total, _ = cross_entropy(states_MW, head_WV, labels_M)
    torch.testing.assert_close(total, expected)
    found, wanted = (gradients(loss, states_MW, head_WV) for loss in (total, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [2.0, 1024.0, 0.0])
def test_what_comes_from_above_scales_the_gradients(scale: float) -> None:
    """A weight of the objective, a scaler of half precision, a weight that has become 0."""
    states_MW, head_WV, labels_M = inputs()
    found = gradients(scale * cross_entropy(states_MW, head_WV, labels_M)[0] / 7, states_MW, head_WV)
    wanted = gradients(cross_entropy(states_MW, head_WV, labels_M)[0], states_MW, head_WV)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other * scale / 7)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient_and_changes_none(frozen: int) -> None:
    leaves = inputs()[:2]
    wanted = gradients(cross_entropy(*leaves, inputs()[2], 0.1)[0], *leaves)
    leaves[frozen].requires_grad_(False)
    cross_entropy(*leaves, inputs()[2], 0.1)[0].backward()
    assert leaves[frozen].grad is None
    torch.testing.assert_close(leaves[1 - frozen].grad, wanted[1 - frozen], rtol=0, atol=0)


def test_where_nobody_differentiates_no_gradient_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    states_MW, head_WV, labels_M = inputs()
    expected = cross_entropy(states_MW, head_WV, labels_M, 0.1)
    monkeypatch.delattr(vocabulary_loss, "_add_product")
    with torch.no_grad():
        found = cross_entropy(states_MW, head_WV, labels_M, 0.1)
    torch.testing.assert_close(found, tuple(value.detach() for value in expected), rtol=0, atol=0)


def test_a_second_backward_is_refused() -> None:
    """The gradients are used up: without them it would add nothing, and nobody would see it."""
    states_MW, head_WV, labels_M = inputs()
    total, _ = cross_entropy(states_MW, head_WV, labels_M)
    total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="once"):
        total.backward()


def test_no_tokens_are_a_loss_of_zero() -> None:
    states_MW, head_WV, labels_M = inputs()
    total, nll = cross_entropy(states_MW[:0], head_WV, labels_M[:0], 0.1)
    assert total == nll == 0
    of_states, of_head = gradients(total, states_MW, head_WV)
    assert not of_states.any()
    assert not of_head.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_decides_the_products_alone(dtype: torch.dtype) -> None:
    """As near the exact gradients as torch's dense loss in that precision; sums, softmax and leaves in fp32."""
    states_MW, head_WV, labels_M = inputs()
    exact = F.cross_entropy(states_MW @ head_WV, labels_M, reduction="sum")
    wanted = gradients(exact, states_MW, head_WV)
    with torch.autocast("cpu", dtype):
        total, nll = cross_entropy(states_MW, head_WV, labels_M)
        dense = F.cross_entropy((states_MW @ head_WV).float(), labels_M, reduction="sum")
    assert total.dtype == nll.dtype == torch.float32
    torch.testing.assert_close(total, dense, rtol=1e-3, atol=1e-3)
    found, of_dense = (gradients(loss, states_MW, head_WV) for loss in (total, dense))
    for one, other, right in zip(found, of_dense, wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - right).norm() < 1.2 * (other - right).norm() + 1e-3 * right.norm()
        assert (one - right).norm() < 0.02 * right.norm()


def test_small_probabilities_do_not_vanish_in_fp16() -> None:
    """As in dense training, where the loss is scaled before its gradient is rounded: here it is rounded first."""
    states_MW, head_WV = torch.ones(1, 1), torch.zeros(1, 200)
    head_WV[0, 0] = 14.5  # the others have a probability of 5e-7, eight steps of fp16's smallest
    head_WV.requires_grad_()
    labels_M = torch.tensor([0])
    [exact] = gradients(F.cross_entropy(states_MW @ head_WV, labels_M), head_WV)
    with torch.autocast("cpu", torch.float16):
        total, _ = cross_entropy(states_MW, head_WV, labels_M)
    [found] = gradients(1024 * total, head_WV)
    torch.testing.assert_close(found[0, 1:] / 1024, exact[0, 1:], rtol=1e-2, atol=0)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits_are_finite(size: float) -> None:
    states_MW, head_WV, labels_M = inputs()
    total, nll = cross_entropy(states_MW, size * head_WV, labels_M, 0.1)
    expected = F.cross_entropy(states_MW @ (size * head_WV), labels_M, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(total, expected)
    assert all(gradient.isfinite().all() for gradient in gradients(total, states_MW, head_WV))
    assert nll.isfinite()


class Largest(TorchDispatchMode):
    """The most values that any one result has had with as many columns as the vocabulary has ids."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] == VOCABULARY:
            self.rows = max(self.rows, len(result))
        return result


def test_no_more_than_a_chunk_has_logits() -> None:
    states_MW, head_WV, labels_M = inputs(200)
    with Largest() as largest:
        cross_entropy(states_MW, head_WV, labels_M, 0.1)[0].backward()
    assert largest.rows == WIDTH, "the head's gradient; a chunk of 5 tokens has fewer"
