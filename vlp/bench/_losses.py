"""Losses with backward, each measured in a process of its own: CPU time, memory, and what rounding costs."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlp.features import Embeddings
from vlp.objectives import base

OURS = "vlp"
_MIB = 1 << 20
_CHUNK = 1024  # texts of SigLipLoss's chunks and side of Inf-CL's tiles
_LEAST_SECONDS = 0.1  # a shorter loss is repeated, for clocks tick in steps
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # image ND, text ND, logit scale, logit bias


def ours(name: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Objective ``name`` by default, of a single process, by the way that it takes at this size."""
    return of_objective(base.parse({"name": name}), image, text, scale, bias)


def measurable(objective: base.Objective) -> bool:
    """Whether features and identities are all that it needs."""
    known = ("image", "text", "picture_ids", "caption_ids", "logit_bias")
    return all(need in known or need.startswith("text_views:") for need in objective.needs)


def of_objective(objective: base.Objective, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """An objective with its options: the views of its texts are equal, no two rows show or say the same."""
    views = base.text_views([objective])
    places_N = torch.arange(len(image))
    captions_VN = torch.arange(views * len(image)).view(views, -1)
    texts_VND = text.expand(views, -1, -1)
    embedded = Embeddings(image[None], texts_VND, scale, bias, picture_N=places_N, caption_VN=captions_VN)
    return objective.loss(embedded).total


def clip_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return ClipLoss()(image, text, scale)


def siglip_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return SigLipLoss()(image, text, scale, bias)


def siglip_loss_in_chunks(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """An emulation of open_clip's ``chunk_size``, which 3.3.0 lacks: autograd keeps what each chunk needs."""
    total = image.new_zeros(())
    for start in range(0, len(text), _CHUNK):
        logits = scale * image @ text[start : start + _CHUNK].T + bias
        signs = -torch.ones_like(logits)
        signs.diagonal(-start).fill_(1.0)
        total = total - F.logsigmoid(signs * logits).sum()
    return total / len(image)


def inf_cl_structure(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """An emulation of the calls of Inf-CL (Cheng et al. 2024), whose kernels need CUDA: a pass for each direction."""
    matching = scale * (image * text).sum(1)
    over_texts, over_images = (_InfCL.apply(scale * a, b) for a, b in ((image, text), (text, image)))
    return (over_texts + over_images - 2 * matching).mean() / 2


class _InfCL(torch.autograd.Function):
    """Log-sum-exp of each row of q k^T; a product forward, two for the gradient of q and two for that of k."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        parts = []
        for rows in q.split(_CHUNK):
            total = torch.full((len(rows),), -torch.inf)
            for columns in k.split(_CHUNK):
                total = torch.logaddexp(total, (rows @ columns.T).logsumexp(1))
            parts.append(total)
        ctx.save_for_backward(q, k, torch.cat(parts))
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows: Tensor) -> tuple[Tensor, Tensor]:
        q, k, total = ctx.saved_tensors
        of_q, of_k = torch.zeros_like(q), torch.zeros_like(k)
        starts_q, starts_k = (range(0, len(x), _CHUNK) for x in (q, k))

        def derivative(i: slice, j: slice) -> Tensor:
            return (q[i] @ k[j].T).sub_(total[i, None]).exp_().mul_(of_rows[i, None])

        for i in (slice(start, start + _CHUNK) for start in starts_q):
            for j in (slice(start, start + _CHUNK) for start in starts_k):
                of_q[i].addmm_(derivative(i, j), k[j])
        for j in (slice(start, start + _CHUNK) for start in starts_k):
            for i in (slice(start, start + _CHUNK) for start in starts_q):
                of_k[j].addmm_(derivative(i, j).T, q[i])
        return of_q, of_k


PEERS: dict[str, dict[str, Loss]] = {
    "infonce": {"open_clip ClipLoss": clip_loss, "Inf-CL's structure, emulated": inf_cl_structure},
    "siglip": {"open_clip SigLipLoss": siglip_loss, "SigLipLoss in chunks, emulated": siglip_loss_in_chunks},
}


def features(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Normalised images, and texts that are somewhat nearer to their own than to others."""
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(rows, width, generator=generator), dim=1)
    return image, F.normalize(torch.randn(rows, width, generator=generator) + 0.3 * image, dim=1)


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a forked process, whose memory is its own from there on."""
    gc.collect()  # or it inherits what lies about here, and its memory falls while it is measured
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, function, *arguments))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError("a measurement ended without a result: out of memory?") from None
    finally:
        child.join()


def _answer(sender: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    sender.send(function(*arguments))


def measure(loss: Loss, rows: int, width: int) -> dict[str, float]:
    """CPU seconds of a forward and a backward, MiB that the memory rises by above the inputs, and the loss."""
    return in_child(_measure, loss, rows, width)


def _measure(loss: Loss, rows: int, width: int) -> dict[str, float]:
    torch.set_num_threads(1)
    inputs = [value.requires_grad_() for value in (*features(rows, width), torch.tensor(50.0), torch.tensor(-5.0))]
    loss(inputs[0][:64], inputs[1][:64], *inputs[2:]).backward()
    for value in inputs:
        value.grad = None
    before, start, count = psutil.Process().memory_info().rss, time.process_time(), 0
    while not count or time.process_time() - start < _LEAST_SECONDS:
        total = loss(*inputs)
        total.backward()
        for value in inputs:
            value.grad = None
        count += 1
    seconds = (time.process_time() - start) / count
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"seconds": seconds, "mib": max(0, peak - before) / _MIB, "loss": total.item()}


def compare(
    name: str,
    rows: int,
    width: int,
    repeats: int,
    peers: Mapping[str, Loss],
    told: Callable[[str], None] | None = None,
    own: Loss | None = None,
) -> dict[str, Any]:
    """Ours and its peers turn by turn: medians, ratios theirs / ours with their spread, how far the losses differ.

    ``own`` is ours where it has options, by default the plain ``name``.
    """
    losses: dict[str, Loss] = {OURS: own or partial(ours, name), **peers}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in losses}
    for repeat in range(repeats):
        for contender in losses if repeat % 2 else reversed(losses):
            if told:
                told(contender)
            runs[contender].append(measure(losses[contender], rows, width))
    medians = {
        contender: {key: statistics.median(run[key] for run in found) for key in ("seconds", "mib")}
        for contender, found in runs.items()
    }
    ratios = {
        peer: {
            key: spread([b[key] / max(a[key], 1e-9) for a, b in zip(runs[OURS], runs[peer], strict=True)])
            for key in ("seconds", "mib")
        }
        for peer in peers
    }
    difference = max(abs(run["loss"] - runs[OURS][0]["loss"]) for found in runs.values() for run in found)
    return {"objective": name, "batch": rows, "losses": medians, "ratio": ratios, "loss_difference": difference}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def rounding(rows: int, width: int) -> dict[str, float]:
    """Relative error of the gradient by images and texts under autocast to bf16, scale 100.

    Of bf16 features, against fp64 of the same numbers; ours first, then open_clip's ClipLoss.
    """
    return in_child(_rounding, rows, width)


def _rounding(rows: int, width: int) -> dict[str, float]:
    torch.set_num_threads(1)
    short = [value.bfloat16() for value in features(rows, width)]
    bias = torch.tensor(0.0)

    def gradients(loss: Loss, dtype: torch.dtype, autocast: bool = True) -> Tensor:
        image, text = (value.to(dtype).requires_grad_() for value in short)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total = loss(image, text, torch.tensor(100.0, dtype=dtype), bias)
        total.backward()
        return torch.cat([x.grad for x in (image, text) if x.grad is not None]).double()

    exact = gradients(clip_loss, torch.float64, autocast=False)
    losses: dict[str, Loss] = {OURS: partial(ours, "infonce"), "open_clip ClipLoss": clip_loss}
    return {
        name: ((gradients(loss, torch.float32) - exact).norm() / exact.norm()).item() for name, loss in losses.items()
    }
