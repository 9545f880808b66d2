"""Activations of layers that the backward pass computes again instead of keeping them.

All of them (Chen et al. 2016, arXiv:1604.06174), or only those that cost little: norms, activation functions and sums,
but no product of matrices and no attention (the choice by cost: Korthikanti et al. 2022, arXiv:2205.05198, section 5).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from vlp.encoders.blocks import blocks
from vlp.types import UserError

Policy = Literal["full", "selective"]

_aten = torch.ops.aten
_KEPT = [
    *(_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten.convolution.default),
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
]


def recompute(model: nn.Module, policy: Policy) -> None:
    """Let each of the `blocks` of ``model`` keep its input (full), or its products of matrices and attention as well.

    Gradients are the same, random numbers drawn again included. Layers with batch norms keep all, as their running
    statistics would see a batch twice. The wrapped layers keep the names of their weights and can be copied.

    Raises:
        UserError: no layer is left.
    """
    contexts = noop_context_fn if policy == "full" else partial(create_selective_checkpoint_contexts, _KEPT)
    layers = [block for block in blocks(model) if not any(isinstance(m, _BatchNorm) for m in block.modules())]
    if not layers:
        raise UserError(
            "train.gradient_checkpointing: this model has no layers that could be computed again (those with batch "
            "norms cannot): remove it"
        )
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward, contexts)


def _recomputed(forward: Callable[..., Any], contexts: Callable[[], Any], *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **options)
