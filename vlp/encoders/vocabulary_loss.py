"""Cross-entropy over a vocabulary that never holds the logits of all tokens.

The logits of M tokens are M x V floats, 240 MB for 16 captions of 76 tokens and CLIP's 49,408 ids, and softmax and its
gradient as many again. Here a chunk of tokens has its logits, loss and gradient computed at once, in one piece of
memory, and only the gradients of states and head are kept: the products are those of the plain loss (three), none is
computed twice. torch's own `linear_cross_entropy` (2.15) does the same, without label smoothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_FP16_UNIT = 64.0
CHUNK = 256  # tokens: of 49,408 logits each, 50 MB


def cross_entropy(
    states_MW: Tensor, head_WV: Tensor, labels_M: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sums over M tokens: of the cross-entropy with smoothed labels, and, without gradient, of -log p(label).

    A smoothed label is ``1 - smoothing`` of the label and ``smoothing`` of the uniform distribution, as in
    ``torch.nn.functional.cross_entropy``. Products are in the precision of the engine's autocast, all else is in fp32
    at least. It can be differentiated once.
    """
    if not torch.is_grad_enabled():
        states_MW, head_WV = states_MW.detach(), head_WV.detach()
    kind = states_MW.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    else:
        dtype = torch.promote_types(states_MW.dtype, head_WV.dtype)
    total, nll = _CrossEntropy.apply(states_MW, head_WV, labels_M, smoothing, dtype)
    return total, nll


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states_MW: Tensor, head_WV: Tensor, labels_M: Tensor, smoothing: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        of_states, of_head = ctx.needs_input_grad[:2]
        ctx.dtypes = states_MW.dtype, head_WV.dtype
        with torch.autocast(states_MW.device.type, enabled=False):
            states_MW, head_WV = states_MW.to(dtype), head_WV.to(dtype)
            wide = torch.promote_types(dtype, torch.float32)
            total, nll = (torch.zeros((), dtype=wide, device=states_MW.device) for _ in range(2))
            grad_states_MW = torch.empty_like(states_MW) if of_states else None
            grad_head_WV = torch.zeros_like(head_WV, dtype=wide) if of_head else None
            # Loss scaling comes later, in backward: until then the small probabilities must not vanish in fp16.
            unit = _FP16_UNIT if dtype == torch.float16 else 1.0
            for start in range(0, len(states_MW), CHUNK):
                rows = slice(start, start + CHUNK)
                logits_CV = (states_MW[rows] @ head_WV).to(wide)
                losses, right = _losses(logits_CV, labels_M[rows, None], smoothing, of_states or of_head)
                total, nll = total + losses, nll + right
                gradient_CV = logits_CV.mul_(unit).to(dtype)
                if grad_states_MW is not None:
                    torch.mm(gradient_CV, head_WV.t(), out=grad_states_MW[rows])
                if grad_head_WV is not None:
                    _add_product(grad_head_WV, states_MW[rows], gradient_CV)
                del logits_CV, gradient_CV  # before the next ones are made
        ctx.gradients, ctx.unit = (grad_states_MW, grad_head_WV), unit
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "the loss over a vocabulary can be differentiated once"
        given, ctx.gradients = ctx.gradients, None
        factor = grad_total / ctx.unit
        scaled = [None if of is None else of.mul_(factor).to(d) for of, d in zip(given, ctx.dtypes, strict=True)]
        return (*scaled, None, None, None)


def _losses(logits_CV: Tensor, labels_C1: Tensor, smoothing: float, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Sums of the loss and of -log p(label); in place of the logits their gradient, p - smoothed label."""
    logits_CV -= logits_CV.amax(1, keepdim=True)
    label_C1 = logits_CV.gather(1, labels_C1)
    mean_C1 = logits_CV.mean(1, keepdim=True) if smoothing else label_C1
    sums_C1 = logits_CV.exp_().sum(1, keepdim=True)
    normaliser_C1 = sums_C1.log()
    right = (normaliser_C1 - label_C1).sum()
    loss = (1 - smoothing) * right + smoothing * (normaliser_C1 - mean_C1).sum()
    if with_gradient:
        logits_CV /= sums_C1
        if smoothing:
            logits_CV -= smoothing / logits_CV.shape[1]
        logits_CV.scatter_add_(1, labels_C1, torch.full_like(label_C1, smoothing - 1))
    return loss, right


def _add_product(sum_WV: Tensor, states: Tensor, gradient: Tensor) -> None:
    """``sum += states^T gradient``; in half precision the sum of the chunks stays in fp32 (or more)."""
    if states.dtype == sum_WV.dtype:
        sum_WV.addmm_(states.t(), gradient)
    else:
        sum_WV += states.t() @ gradient
