"""Batch norms whose statistics are those of the global batch, so that several processes compute what one does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp import distributed
from vlp.types import UserError


def synchronise(model: nn.Module) -> None:
    """Give the batch norms inside ``model`` the statistics of all processes, in place."""
    if distributed.world_size() == 1:
        return
    if torch.cuda.is_available():
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) and module.track_running_stats:
            module.__class__ = GlobalBatchNorm  # parameters, buffers and their names stay as they are


def is_local(module: nn.Module) -> bool:
    """Whether ``module`` is a batch norm in training that sees this process's rows only."""
    batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    return batch_norm and not isinstance(module, nn.SyncBatchNorm | GlobalBatchNorm)


def check(model: nn.Module, cached: bool) -> None:
    """Refuse batch norms in training whose statistics would be those of a part of the batch.

    Over processes they are synchronised where their kind is known; cached micro-batches have no remedy.
    """
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules())
    if cached and batch_norm:
        raise UserError(
            "train.micro_batch_size: this model has batch norms, whose statistics would be those of a micro-batch: "
            "leave it out, or choose a tower with layer norms"
        )
    if distributed.world_size() > 1 and any(map(is_local, model.modules())):
        raise UserError(
            "model: this tower has batch norms of a kind that cannot be synchronised on the CPU: "
            "use one process or GPUs, or choose a tower with layer norms"
        )


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch's SyncBatchNorm is for GPUs only; this is the same on the CPU, in two small collectives a layer.

    Every process must have equally many rows, N C or N C H W.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        values = input.float()
        others = [dim for dim in range(values.ndim) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(values.ndim)]
        mean_C = distributed.mean_with_gradient(values.mean(others))
        centred = values - mean_C.view(shape)
        variance_C = distributed.mean_with_gradient(centred.square().mean(others))
        self._remember(mean_C.detach(), variance_C.detach(), values.numel() // len(mean_C) * distributed.world_size())
        normed = centred * (variance_C + self.eps).rsqrt().view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean_C: Tensor, variance_C: Tensor, count: int) -> None:
        """Running statistics as torch keeps them: with the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean_C, share)
        self.running_var.lerp_(variance_C * count / max(1, count - 1), share)
