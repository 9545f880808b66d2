"""The one place where local becomes global: normalise, gather, and cache gradients so that micro-batches stay exact."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp import distributed
from vlp.types import Batch, Embeddings, Loss

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]  # image ND, text ND, logit scale parameter, logit bias parameter


def global_embeddings(image_ND: Tensor, text_ND: Tensor, log_scale: Tensor, bias: Tensor) -> Embeddings:
    """Normalise this rank's features in fp32 and gather everybody's in one packed collective."""
    image_ND = F.normalize(image_ND.float(), dim=-1)
    text_ND = F.normalize(text_ND.float(), dim=-1)
    packed = distributed.gather_rows(torch.cat([image_ND, text_ND], dim=1))
    image_BD, text_BD = packed.split(image_ND.shape[1], dim=1)
    first_row = distributed.rank() * image_ND.shape[0]
    return Embeddings(image_ND, text_ND, image_BD, text_BD, first_row, log_scale.float().exp(), bias.float())


def backward(
    model: nn.Module,
    batch: Batch,
    loss_of: Callable[[Embeddings], Loss],
    *,
    micro_batch_size: int,
    seed: int,
    backward_of: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager[object]],
) -> Loss:
    """Add the gradient of the global batch's loss to ``.grad`` and return the loss of this rank's rows.

    Micro-batches smaller than the batch go twice through the encoders: first without a graph to get all features,
    from which the loss is evaluated once, then with a graph to carry the features' gradients to the parameters
    (GradCache, Gao et al. 2021, section 3). Both passes of a micro-batch draw the same random numbers.

    Args:
        model: maps (image_NCHW, text_NL) to ``Outputs``; may be wrapped in DDP.
        micro_batch_size: rows per pass; the batch size or more means one plain pass.
        seed: of this step and rank; dropout is a function of it and of the micro-batch.
        backward_of: runs backward from the scalar loss (with loss scaling where the precision needs it).
        no_sync: context in which backward does not average gradients over ranks.
    """
    if micro_batch_size >= len(batch):
        torch.manual_seed(seed)
        outputs = model(batch.image_NCHW, batch.text_NL)
        loss = loss_of(global_embeddings(*outputs))
        # DDP waits for the gradient of every parameter, also where the objectives leave an output unused.
        backward_of(loss.total + sum(0.0 * output.sum() for output in outputs))
        return Loss(loss.total.detach(), loss.parts)

    starts = range(0, len(batch), micro_batch_size)
    chunks = [batch.rows(start, start + micro_batch_size) for start in starts]

    def encode(index: int) -> Outputs:
        torch.manual_seed(distributed.seed_of(seed, index))
        return model(chunks[index].image_NCHW, chunks[index].text_NL)

    with torch.no_grad():
        cached = [encode(index) for index in range(len(chunks))]
    _, _, log_scale, bias = cached[0]
    features = [
        torch.cat([c[0] for c in cached]),
        torch.cat([c[1] for c in cached]),
        log_scale.clone(),
        bias.clone(),
    ]
    image_ND, text_ND, log_scale, bias = (f.detach().requires_grad_() for f in features)
    loss = loss_of(global_embeddings(image_ND, text_ND, log_scale, bias))
    backward_of(loss.total)

    for index, start in enumerate(starts):
        last = index == len(chunks) - 1
        if last:
            _backward_chunk(encode(index), (image_ND, text_ND, log_scale, bias), start, last=True)
        else:
            with no_sync():
                _backward_chunk(encode(index), (image_ND, text_ND, log_scale, bias), start, last=False)
    return Loss(loss.total.detach(), loss.parts)


def _backward_chunk(outputs: Outputs, leaves: Outputs, start: int, *, last: bool) -> None:
    """Carry the cached gradients of one micro-batch to the parameters; scale and bias take theirs with the last."""
    rows = outputs[0].shape[0]
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    features = [gradient[start : start + rows] for gradient in gradients[:2]]
    scalars = gradients[2:] if last else [torch.zeros_like(gradient) for gradient in gradients[2:]]
    pairs = [(o, g.to(o.dtype)) for o, g in zip(outputs, [*features, *scalars], strict=True) if o.requires_grad]
    torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
