"""Cross-entropy over a vocabulary that never holds the logits of all tokens.

The logits of M tokens are M x V floats, 240 MB for 16 captions of 76 tokens and CLIP's 49,408 ids, and softmax and its
gradient as many again. Here a chunk of tokens has its logits, loss and gradient computed at once, and only the
gradients of states and head are kept: the products are those of the plain loss (three), none is computed twice.
torch's own `linear_cross_entropy` (2.15) does the same, without label smoothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 256  # tokens: of 49,408 logits each, 50 MB


def cross_entropy(
    states_MW: Tensor, head_WV: Tensor, labels_M: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sums over M tokens: of the cross-entropy with smoothed labels, and, without gradient, of -log p(label).

    A smoothed label is ``1 - smoothing`` of the label and ``smoothing`` of the uniform distribution, as in
    ``torch.nn.functional.cross_entropy``. Products are in the precision of the engine's autocast, all else in fp32.
    It can be differentiated once.
    """
    dtype = torch.promote_types(states_MW.dtype, head_WV.dtype)
    kind = states_MW.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    total, nll = _CrossEntropy.apply(states_MW.to(dtype), head_WV.to(dtype), labels_M, smoothing)
    return total, nll


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states_MW: Tensor, head_WV: Tensor, labels_M: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        total, nll = (torch.zeros((), device=states_MW.device) for _ in range(2))
        of_states, of_head = ctx.needs_input_grad[:2]
        grad_states_MW = torch.empty_like(states_MW) if of_states else None
        grad_head_WV = torch.zeros_like(head_WV, dtype=torch.float32) if of_head else None
        with torch.autocast(states_MW.device.type, enabled=False):
            for start in range(0, len(states_MW), CHUNK):
                states, labels = states_MW[start : start + CHUNK], labels_M[start : start + CHUNK, None]
                logits = (states @ head_WV).float()
                normaliser = logits.logsumexp(1, keepdim=True)
                right = normaliser - logits.gather(1, labels)
                nll += right.sum()
                total += right.sum() * (1 - smoothing)
                if smoothing:
                    total += smoothing * (normaliser.sum() - logits.mean(1).sum())
                if not (of_states or of_head):
                    continue
                gradient = logits.sub_(normaliser).exp_()  # of the loss by the logits: p - smoothed label
                if smoothing:
                    gradient -= smoothing / gradient.shape[1]
                gradient.scatter_add_(1, labels, torch.full_like(right, smoothing - 1))
                gradient = gradient.to(states.dtype)
                if grad_states_MW is not None:
                    torch.mm(gradient, head_WV.t(), out=grad_states_MW[start : start + CHUNK])
                if grad_head_WV is not None:
                    _add_product(grad_head_WV, states, gradient)
        ctx.gradients = grad_states_MW, grad_head_WV
        ctx.head_dtype = head_WV.dtype
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        of_states, of_head = ctx.gradients
        ctx.gradients = None, None
        of_states = None if of_states is None else of_states.mul_(grad_total.to(of_states.dtype))
        of_head = None if of_head is None else of_head.mul_(grad_total).to(ctx.head_dtype)
        return of_states, of_head, None, None


def _add_product(sum_WV: Tensor, states: Tensor, gradient: Tensor) -> None:
    """``sum += states^T gradient``; in half precision the sum of the chunks stays in fp32."""
    if states.dtype == sum_WV.dtype:
        sum_WV.addmm_(states.t(), gradient)
    else:
        sum_WV += states.t() @ gradient
