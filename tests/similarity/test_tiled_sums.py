"""Sums taken tile by tile are those of the whole matrix: values and every gradient, on any number of processes."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn.functional import normalize

from vlp import similarity
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.similarity import sigmoid, softmax
from vlp.similarity.sigmoid import softplus_sum
from vlp.similarity.softmax import log_sum_exps

SHAPES = [  # images, texts, first row, tile
    (1, 1, 0, (4, 4)),
    (1, 9, 3, (4, 4)),
    (8, 8, 0, (8, 8)),
    (8, 8, 0, (3, 5)),
    (7, 21, 14, (2, 4)),
    (7, 21, 7, (16, 4)),
    (33, 65, 10, (8, 64)),
    (12, 12, 0, (1, 1)),
]


def features(rows: int, seed: int, width: int = 16, dtype: torch.dtype = torch.float64) -> Tensor:
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def leaves(*values: Tensor | float, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.as_tensor(value).to(dtype).clone().requires_grad_() for value in values]


def dense_log_sum_exps(
    image: Tensor, text: Tensor, scale: Tensor, first_row: int, without_matches: bool = False
) -> tuple[Tensor, Tensor]:
    logits = scale * image @ text.T
    if without_matches:
        logits = logits.masked_fill(torch.ones_like(logits).triu(first_row).tril(first_row).bool(), -torch.inf)
    return logits.logsumexp(1), logits.logsumexp(0)[first_row : first_row + len(image)]


def dense_margins(image: Tensor, text: Tensor, scale: Tensor, first_row: int, without: bool) -> tuple[Tensor, Tensor]:
    """Log-sum-exps minus the logits of the matching pairs."""
    matching = scale * (image * text[first_row : first_row + len(image)]).sum(1)
    over_texts, over_images = dense_log_sum_exps(image, text, scale, first_row, without)
    return over_texts - matching, over_images - matching


def dense_softplus_sum(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, first_row: int) -> Tensor:
    logits = scale * image @ text.T + bias
    signs = 2 * torch.ones_like(logits).triu(first_row).tril(first_row) - 1
    return F.softplus(-signs * logits, threshold=500).sum()


def value_and_gradients(sums: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """Outputs of ``sums`` and the gradients of a sum that weighs each of their elements differently."""
    for tensor in inputs:
        tensor.grad = None
    outputs = sums(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weighed = sum((torch.linspace(0.5, 2 + i, o.numel()).to(o) * o).sum() for i, o in enumerate(outputs))
    weighed.backward()  # type: ignore[union-attr]
    return [o.detach() for o in outputs] + [t.grad for t in inputs if t.grad is not None]


def assert_near(found: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    assert len(found) == len(exact)
    for i, (ours, theirs) in enumerate(zip(found, exact, strict=True)):
        difference = (ours.double() - theirs).norm() / theirs.norm().clamp_min(1e-30)
        assert difference <= tolerance, f"number {i} is off by {difference:.1e}"


@pytest.mark.parametrize("scale", [0.0, 1.0, 14.3, 100.0])
@pytest.mark.parametrize(("rows", "texts", "first", "tile"), SHAPES)
def test_equal_the_sums_of_the_whole_matrix(rows, texts, first, tile, scale):
    """In fp64 to rounding; in fp32 within what fp32 logits of that size allow."""
    image, text = features(rows, 0), features(texts, 1)
    text[first : first + rows] = normalize(text[first : first + rows] + image, dim=1)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6 * max(1, scale / 4))):
        with_bias = leaves(image, text, scale, -1.5, dtype=dtype)
        exact = [x.detach().double().requires_grad_() for x in with_bias]
        for without in (False, True) if texts > 1 and rows > 1 else (False,):
            found = value_and_gradients(
                lambda i, t, s, w=without: log_sum_exps(i, t, s, first, without_matches=w, tile=tile), with_bias[:3]
            )
            expected = value_and_gradients(lambda i, t, s, w=without: dense_log_sum_exps(i, t, s, first, w), exact[:3])
            assert all(tensor.dtype == dtype for tensor in found)
            assert_near(found, expected, tolerance)
            if not without or dtype == torch.float32:
                continue  # a margin that is small beside its two logits has their digits, not its own
            found = value_and_gradients(
                lambda i, t, s, w=without: log_sum_exps(
                    i, t, s, first, without_matches=w, minus_matches=True, tile=tile
                ),
                with_bias[:3],
            )
            expected = value_and_gradients(lambda i, t, s, w=without: dense_margins(i, t, s, first, w), exact[:3])
            assert_near(found, expected, tolerance)
        found = value_and_gradients(lambda *x: softplus_sum(*x, first, tile=tile), with_bias)
        expected = value_and_gradients(lambda *x: dense_softplus_sum(*x, first), exact)
        assert_near(found, expected, tolerance)


def test_finite_differences():
    u, v, s, b = leaves(features(3, 0, 4), features(5, 1, 4), 3.0, -1.0)
    for without, minus in ((False, False), (True, False), (False, True), (True, True)):
        assert torch.autograd.gradcheck(
            lambda u, v, s, w=without, m=minus: log_sum_exps(
                u, v, s, 1, without_matches=w, minus_matches=m, tile=(2, 3)
            ),
            (u, v, s),
        )
    assert torch.autograd.gradcheck(lambda *x: softplus_sum(*x, 1, tile=(2, 3)), (u, v, s, b))


def opposed(rows: int) -> tuple[Tensor, Tensor]:
    """Images and texts on opposite sides: all cosines are near -1."""
    direction = torch.zeros(rows, 16, dtype=torch.float64)
    direction[:, 0] = 5
    return normalize(features(rows, 0) + direction, dim=1), normalize(features(rows, 1) - direction, dim=1)


@pytest.mark.parametrize("without", [False, True])
@pytest.mark.parametrize("case", ["opposed", "long", "one row opposed", "steep"])
def test_sums_that_one_shift_would_lose(monkeypatch, case, without):
    """fp32 underflows or overflows with the fixed shift there, and the running maxima step in."""
    image, text, scale = features(9, 0), features(9, 1), 100.0
    if case == "opposed":
        image, text = opposed(9)
        scale = 500.0
    elif case == "one row opposed":
        image, text = opposed(9)
        image[2:], scale = -image[2:], 100.0
    elif case == "long":
        image = 10 * image
    else:
        scale = 5000.0
    calls = []
    original = softmax._running_maximum_sums
    monkeypatch.setattr(softmax, "_running_maximum_sums", lambda *x: calls.append(1) or original(*x))
    inputs = leaves(image, text, scale, dtype=torch.float32)
    found = value_and_gradients(lambda *x: log_sum_exps(*x, 0, without_matches=without, tile=(4, 4)), inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    assert calls
    largest = (scale * image @ text.T).abs().max().item()
    assert_near(found, value_and_gradients(lambda *x: dense_log_sum_exps(*x, 0, without), exact), 1e-7 * largest)


def test_both_ways_to_sum_agree():
    """The running maxima give what the fixed shift gives where that is exact."""
    arguments = (features(9, 0, dtype=torch.float32), features(9, 1, dtype=torch.float32), torch.tensor(50.0), None)
    fixed = softmax._fixed_shift_sums(*arguments, (4, 4), softmax._Kept(0))
    running = softmax._running_maximum_sums(*arguments, (4, 4))
    assert fixed is not None
    torch.testing.assert_close(fixed.row_sum.log() + fixed.row_shift, running.row_sum.log() + running.row_shift)
    torch.testing.assert_close(
        fixed.column_sum.log() + fixed.column_shift, running.column_sum.log() + running.column_shift
    )


def test_a_batch_of_one_without_its_match_sums_nothing():
    inputs = leaves(features(1, 0), features(1, 1), 3.0, dtype=torch.float32)
    over_texts, over_images = log_sum_exps(*inputs, 0, without_matches=True)
    assert over_texts.item() == over_images.item() == -torch.inf
    (over_texts + over_images).sum().backward()
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in inputs)


def test_what_is_not_a_number_is_not_hidden():
    image, text, scale = leaves(features(4, 0), features(4, 1), 3.0, dtype=torch.float32)
    with torch.no_grad():
        image[1, 2] = torch.nan
    over_texts, over_images = log_sum_exps(image, text, scale, 0)
    assert over_texts.isnan().tolist() == [False, True, False, False]
    assert over_images.isnan().all()
    over_texts.sum().backward()
    assert image.grad is not None
    assert image.grad[1].isnan().all()


def test_only_the_gradients_that_are_needed():
    image, text, scale, bias = leaves(features(6, 0), features(6, 1), 3.0, -2.0)
    whole = value_and_gradients(lambda *x: log_sum_exps(*x, 0), [image, text, scale])[2:]
    swept = value_and_gradients(lambda *x: softplus_sum(*x, 0), [image, text, scale, bias])[1:]
    for needed in range(4):
        inputs = [x.detach().requires_grad_(i == needed) for i, x in enumerate((image, text, scale, bias))]
        (found,) = value_and_gradients(lambda *x: softplus_sum(*x, 0), inputs)[1:]
        torch.testing.assert_close(found, swept[needed])
        if needed < 3:
            (found,) = value_and_gradients(lambda *x: log_sum_exps(*x, 0), inputs[:3])[2:]
            torch.testing.assert_close(found, whole[needed])
    with torch.no_grad():
        assert not softplus_sum(image, text, scale, bias, 0).requires_grad


def test_the_same_bits_every_time():
    inputs = leaves(features(40, 0), features(40, 1), 30.0, -3.0, dtype=torch.float32)
    for sums in (
        lambda i, t, s, b: log_sum_exps(i, t, s, 0, tile=(16, 12)),
        lambda *x: softplus_sum(*x, 0, tile=(16, 12)),
    ):
        first, again = (value_and_gradients(sums, inputs) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("without", [False, True])
@pytest.mark.parametrize("most_kept", [1, 8, 20, 32, 33, 47, 64, 91, 1000])
def test_what_is_kept_for_backward_changes_no_bit(most_kept, without):
    """However many tiles that is, and in each backward of several."""
    inputs = leaves(features(7, 0), features(13, 1), 30.0, dtype=torch.float32)

    def sums(most_kept: int) -> Callable[..., Any]:
        return lambda *x: log_sum_exps(*x, 3, without_matches=without, tile=(2, 4), most_kept=most_kept)

    recomputed = value_and_gradients(sums(0), inputs)
    assert all(torch.equal(a, b) for a, b in zip(value_and_gradients(sums(most_kept), inputs), recomputed, strict=True))
    total = sum(o.sum() for o in sums(most_kept)(*inputs))
    twice = [torch.autograd.grad(total, inputs, retain_graph=True) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))


def test_only_tiles_that_fit_and_only_for_backward_are_kept():
    image, text, scale = leaves(features(7, 0), features(13, 1), 30.0, dtype=torch.float32)

    def kept(*inputs: Tensor) -> list[list[int]]:
        node = log_sum_exps(*inputs, 0, tile=(2, 8), most_kept=44)[0].grad_fn
        return [list(x.shape) for x in node.saved_tensors[7:]] if node else []

    assert kept(image, text, scale) == [[2, 8], [2, 5], [2, 8]]
    with torch.no_grad():
        assert kept(image, text, scale) == []
    assert kept(image.detach(), text.detach(), scale) == [[2, 8], [2, 5], [2, 8]]


def test_sigmoid_and_softplus_of_one_exp():
    """Both to the last digits for every logit; no logit overflows."""
    x = torch.cat([torch.linspace(-200, 200, 100_001), torch.tensor([-1e30, 1e30])])
    for dtype, digits in ((torch.float32, 3e-7), (torch.float64, 1e-15)):
        values = x.to(dtype, copy=True)
        exact = values.to(torch.float64, copy=True)
        softplus = exact.clamp_min(0) + torch.log1p(torch.exp(-exact.abs()))
        spare = torch.empty(0, dtype=dtype)
        found = torch.stack([sigmoid._softplus_to_sigmoid(row.view(1, 1), spare) for row in values.clone()[::50]])
        normal = softplus[::50] > 1e-37
        assert ((found - softplus[::50]).abs() <= digits * softplus[::50])[normal].all()
        assert (found[~normal] <= 1e-37).all()
        sigmoid._softplus_to_sigmoid(values.view(1, -1), spare)
        exact = exact.sigmoid()
        assert ((values - exact).abs() <= digits * exact)[exact > 1e-37].all()
    for x, sum_of in ((torch.inf, torch.inf), (-torch.inf, 0.0), (torch.nan, torch.nan)):
        found = sigmoid._softplus_to_sigmoid(torch.tensor([[x]]), torch.empty(0))
        torch.testing.assert_close(found, torch.tensor(sum_of, dtype=torch.float64), equal_nan=True)


def embedded(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Embeddings:
    return Embeddings(image[None], text[None], scale, bias)


def objective(name: str) -> Callable[..., Tensor]:
    parsed = base.parse({"name": name})
    return lambda *inputs: parsed.loss(embedded(*inputs)).total


@pytest.mark.parametrize(("name", "count", "theirs"), [("infonce", 3, ClipLoss()), ("siglip", 4, SigLipLoss())])
def test_large_batches_have_the_loss_of_open_clip(monkeypatch, name, count, theirs):
    inputs = leaves(features(40, 0), features(40, 1), 20.0, -4.0, dtype=torch.float32)
    expected = value_and_gradients(lambda i, t, s, *b: theirs(i, t, s, logit_bias=b[0] if b else None), inputs[:count])
    dense = value_and_gradients(lambda *x: objective(name)(*x, *inputs[len(x) :]), inputs[:count])
    monkeypatch.setattr(similarity, "MOST_DENSE_LOGITS", 40 * 40 - 1)
    tiled = value_and_gradients(lambda *x: objective(name)(*x, *inputs[len(x) :]), inputs[:count])
    for found in (dense, tiled):
        assert_near(found, [tensor.double() for tensor in expected], 2e-6)
    assert not all(torch.equal(a, b) for a, b in zip(dense, tiled, strict=True)), "both took the same path"


@pytest.mark.parametrize(("threshold", "closeness"), [(1 << 30, 0.3), (0, 0.3), (0, 1.0)])
def test_bf16_features_keep_their_gradient_under_autocast(monkeypatch, threshold, closeness):
    """Scale 100, against fp64 of the same features: open_clip's product in bf16 costs a hundred times as much.

    The tiled sums keep it even where pairs are so close that the loss is 1e-8.
    """
    monkeypatch.setattr(similarity, "MOST_DENSE_LOGITS", threshold)
    image = features(512, 0, 64)
    text = normalize(features(512, 1, 64) + closeness * image, dim=1).bfloat16()
    inputs = leaves(image.bfloat16(), text, 100.0, 0.0, dtype=torch.float32)[:3]
    bias = torch.tensor(0.0)
    exact = value_and_gradients(
        lambda i, t, s: ClipLoss()(i, t, s, logit_bias=None), [x.detach().double().requires_grad_() for x in inputs]
    )
    autocast = torch.autocast("cpu", torch.bfloat16)
    ours = value_and_gradients(autocast(lambda *x: objective("infonce")(*x, bias)), inputs)
    theirs = value_and_gradients(autocast(lambda i, t, s: ClipLoss()(i, t, s, logit_bias=None)), inputs)
    assert_near(ours, exact, 1e-4)
    error = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(theirs[1:3], exact[1:3], strict=True)]
    assert min(error) > 3e-3


def test_bf16_tensors_are_widened():
    """Values are those of the same numbers in fp32; gradients are theirs, rounded once."""
    short = leaves(features(20, 0), features(20, 1), 100.0, -4.0, dtype=torch.bfloat16)
    wide = [x.detach().float().requires_grad_() for x in short]
    for sums, count in ((lambda *x: log_sum_exps(*x, 0, tile=(8, 6)), 3), (lambda *x: softplus_sum(*x, 0), 4)):
        found, expected = value_and_gradients(sums, short[:count]), value_and_gradients(sums, wide[:count])
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(
                ours, theirs.to(ours.dtype), rtol=0.01 if ours.dtype == torch.bfloat16 else 0, atol=1e-9
            )


def rank_results(rank: int, world: int, case: str) -> tuple[list[Tensor], list[Tensor]]:
    """Local sums, and gradients of rank-dependent weights of them, in the way of a training step."""
    rows = 12 // world
    local = slice(rank * rows, (rank + 1) * rows)
    all_image, all_text = opposed(12) if case == "opposed" else (features(12, 0), features(12, 1))
    log_scale, bias = torch.tensor(500.0 if case == "opposed" else 8.0).log(), torch.tensor(-2.0)
    image, text, log_scale, bias = leaves(all_image[local], all_text[local], log_scale, bias, dtype=torch.float32)
    e = Embeddings.of(image, text, log_scale.exp(), bias)
    weights = torch.linspace(0.5, 2.0, 12)[local]
    if case == "sigmoid":
        outputs: tuple[Tensor, ...] = (
            softplus_sum(e.image_ND, e.text_BD, e.logit_scale, e.logit_bias, e.first_row, tile=(2, 5)),
        )
        total = outputs[0]
    else:
        outputs = log_sum_exps(
            e.image_ND,
            e.text_BD,
            e.logit_scale,
            e.first_row,
            without_matches=case == "without",
            minus_matches=case == "minus",
            tile=(2, 5),
        )
        total = (outputs[0] * weights + outputs[1] * weights**2).sum()
    total.backward()
    return [o.detach().reshape(-1) for o in outputs], [
        torch.zeros(()) if x.grad is None else x.grad for x in (image, text, log_scale, bias)
    ]


@pytest.mark.parametrize("case", ["with", "without", "minus", "opposed", "sigmoid"])
def test_equal_on_any_number_of_processes(run_ranks, case):
    (outputs, gradients) = rank_results(0, 1, case)
    for world in (2, 4):
        results = run_ranks(rank_results, world, case)
        for i, expected in enumerate(outputs):
            parts = [found[i] for found, _ in results]
            joined = torch.stack(parts).sum(0) if case == "sigmoid" else torch.cat(parts)
            torch.testing.assert_close(joined, expected, rtol=2e-6, atol=5e-6 if case == "minus" else 1e-6)
        for i, expected in enumerate(gradients):
            parts = [found[i] for _, found in results]
            joined = torch.cat(parts) if i < 2 else torch.stack(parts).sum(0)  # scale and bias live on every rank
            torch.testing.assert_close(joined, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item() + 1e-7)


def one_rank_opposed(rank: int, world: int) -> bool:
    """Only the last process holds a row that one shift would lose; all must take the other way with it."""
    image, text = opposed(8)
    image[:-1] *= -1
    local = image[rank * 4 : rank * 4 + 4].float()
    over_texts, over_images = log_sum_exps(local, text.float(), torch.tensor(100.0), rank * 4)
    expected = (100 * image @ text.T).float()
    torch.testing.assert_close(over_texts, expected.logsumexp(1)[rank * 4 : rank * 4 + 4], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(over_images, expected.logsumexp(0)[rank * 4 : rank * 4 + 4], rtol=1e-5, atol=1e-4)
    return softmax._fixed_shift_sums(local, text.float(), torch.tensor(100.0), None, (4, 4), softmax._Kept(0)) is None


def test_all_processes_change_their_way_together(run_ranks):
    assert run_ranks(one_rank_opposed, 2) == [True, True]


def extra_memory(rank: int, world: int, kind: str) -> int:
    """Bytes that the process's high-water mark rises by, in a loss of 4096 pairs with backward."""
    image, text, scale, bias = leaves(features(4096, 0), features(4096, 1), 50.0, -4.0, dtype=torch.float32)
    run = {
        "softmax": lambda i, t, rows: sum(log_sum_exps(i, t, scale, 0, tile=(256, 1024), most_kept=0)).sum(),
        "keeping a quarter": lambda i, t, rows: sum(
            log_sum_exps(i, t, scale, 0, tile=(256, 1024), most_kept=1 << 22)
        ).sum(),
        "sigmoid": lambda i, t, rows: softplus_sum(i, t, scale, bias, 0, tile=(256, 1024)),
        "dense": lambda i, t, rows: (scale * i @ t.T).logsumexp(1).sum(),
    }[kind]
    run(image[:64], text[:64], 64).backward()
    before = psutil.Process().memory_info().rss
    run(image, text, 4096).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def test_memory_stays_below_a_tenth_of_the_dense_logits(run_ranks):
    logits = 4 * 4096 * 4096
    softmax_bytes, keeping_bytes, sigmoid_bytes, dense_bytes = (
        run_ranks(extra_memory, 1, kind)[0] for kind in ("softmax", "keeping a quarter", "sigmoid", "dense")
    )
    assert max(softmax_bytes, sigmoid_bytes) < logits / 10
    assert keeping_bytes < logits * (1 / 4 + 1 / 10)
    assert dense_bytes > logits
