"""The sigmoid loss and all its gradients from one sweep over the similarities, in memory that does not grow with N x B.

A sigmoid needs no sum over the batch, so the derivative of a pair is known when its logit is: gradients are computed
in the forward pass, and backward only scales them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlp.similarity import tiles


def softplus_sum(
    image_ND: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    first_row: int,
    *,
    tile: tuple[int, int] | None = None,
) -> Tensor:
    """Sum over local images and all texts of softplus(-z (s u.v + b)): z is 1 for the matching text, else -1.

    6 N B D multiply-adds with gradients, 2 without; two tiles of memory beside inputs and gradients; no communication.
    The gradient of ``text_BD`` is this process's part of it, which the backward of `vlp.distributed.gather_rows` adds
    up.

    Args:
        image_ND: features of this process's images. fp64 is computed in fp64, anything shorter in fp32, under
            autocast too.
        text_BD: those of the texts of all processes.
        logit_scale: factor of the similarities, a scalar.
        logit_bias: added to them, a scalar.
        first_row: column of the text that matches the first image.
        tile: images and texts of a tile; by default what suits the device.

    Returns:
        A scalar, fp32 (fp64 for fp64 features).
    """
    size = tile or tiles.size_for(image_ND.device)
    return _SoftplusSum.apply(image_ND, text_BD, logit_scale, logit_bias, first_row, size, torch.is_grad_enabled())


class _SoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image_ND: Tensor,
        text_BD: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        first_row: int,
        tile: tuple[int, int],
        with_gradients: bool,
    ) -> Tensor:
        needed = [with_gradients and need for need in ctx.needs_input_grad[:4]]
        with torch.autocast(image_ND.device.type, enabled=False):
            wide = tiles.precision(image_ND)
            total, of_bias = torch.zeros(2, dtype=torch.float64, device=image_ND.device)
            gradients = tiles.Gradients(image_ND, text_BD, logit_scale, (needed[0], needed[1], needed[2]))
            spare = torch.empty(0, dtype=wide, device=image_ND.device)
            for piece in tiles.logits(image_ND, text_BD, logit_scale, tile):
                piece.values.add_(logit_bias)
                piece.matches(first_row).neg_()
                total += _softplus_to_sigmoid(piece.values, spare)
                if any(needed):
                    piece.matches(first_row).neg_()
                    of_bias += _sum(piece.values)
                    gradients.add(piece)
            found = [*gradients.total(), of_bias.to(logit_bias.dtype).reshape(logit_bias.shape) if needed[3] else None]
        ctx.save_for_backward(*found)
        return total.to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor) -> tuple[Tensor | None, ...]:
        found = (None if gradient is None else gradient * of_total.to(gradient.dtype) for gradient in ctx.saved_tensors)
        return *found, None, None, None


def _softplus_to_sigmoid(values: Tensor, spare: Tensor) -> Tensor:
    """Turn values into their sigmoids and give the sum of their softplus, fp64, with one exp for both.

    softplus(x) = max(x, 0) - log1p(-min(p, 1 - p)), p = sigmoid(x): where p is small it has all its digits, and where
    1 - p is small it has lost some, x is the larger term. Right to the last digits of the precision for every x.
    """
    positive = _sum(torch.clamp_min(values, 0.0, out=spare.resize_(0)))
    p = values.sigmoid_()
    least = torch.sub(1.0, p, out=spare.resize_(0))
    return positive - _sum(torch.minimum(least, p, out=least).neg_().log1p_())


def _sum(values: Tensor) -> Tensor:
    """fp64 sum of fp32 sums of rows: nearly as exact as fp64 throughout, and several times as fast."""
    return values.sum(1).sum(dtype=torch.float64)
