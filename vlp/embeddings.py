"""From the encoders' outputs to what objectives see, and back: cached gradients keep micro-batches exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp import distributed, draws
from vlp.distributed import Gathering
from vlp.features import Captions, Embeddings, Features, Masked, Queue
from vlp.types import Batch, Loss

Outputs = dict[str, Tensor]
"""What encoders give under the names that objectives need: rows first, but for scalars."""

Encode = Callable[[Batch], Outputs]
LossOf = Callable[[Embeddings], Loss]


@dataclass(frozen=True)
class Encoders:
    """What turns a batch into `Embeddings`.

    Attributes:
        model: with gradient; gives ``image`` and ``text`` (N V D), ``logit_scale`` (the logarithm), ``logit_bias``,
            and the tokens that the objectives need.
        first_pass: the same without what only means over samples need, for the first pass of cached gradients.
        momentum, teacher: without gradient, the same names.
        fusion: module whose parameters the losses use.
        queue: of earlier batches.
        text_gathering: after a plain pass of ``model``, the gathering of its texts if it began one.
    """

    model: Encode
    first_pass: Encode | None = None
    momentum: Encode | None = None
    teacher: Encode | None = None
    fusion: nn.Module | None = None
    queue: Queue | None = None
    text_gathering: Callable[[], Gathering | None] = lambda: None


class Step(NamedTuple):
    """What a backward pass leaves: the loss of this process's rows, and what its losses saw, but for tokens."""

    loss: Loss
    embeddings: Embeddings


def embed(
    outputs: Outputs,
    batch: Batch,
    seed: int = 0,
    *,
    momentum: Outputs | None = None,
    teacher: Outputs | None = None,
    fusion: nn.Module | None = None,
    queue: Queue | None = None,
    text_gathering: Gathering | None = None,
) -> Embeddings:
    """Embeddings of ``batch`` from what the encoders gave for it."""
    masked = None
    if "masked_tokens" in outputs:
        masked = Masked(outputs["masked_tokens"].float(), outputs["masked_mask"], outputs["masked_labels"])
    captions = Captions(outputs["caption_loss"], outputs["caption_nll"]) if "caption_loss" in outputs else None
    hard: dict[str, Tensor] = {}
    if "hard_text" in outputs:
        assert batch.hard_text_KNL is not None
        assert batch.hard_mask_KN is not None
        features_NKD = F.normalize(outputs["hard_text"].float(), dim=-1)
        number = features_NKD.shape[1]
        hard = {
            "hard_text_KND": features_NKD.transpose(0, 1),
            "hard_mask_KN": batch.hard_mask_KN[:number],
            "hard_caption_KN": draws.identities(batch.hard_text_KNL[:number]),
        }
    return Embeddings(
        **_features(outputs),
        text_gathering=text_gathering,
        momentum=Features(**_features(momentum)) if momentum is not None else None,
        queue=queue,
        teacher=Features(**_features(teacher)) if teacher is not None else None,
        fusion=fusion,
        masked=masked,
        captions=captions,
        picture_N=batch.picture_N,
        caption_VN=draws.identities(batch.text_VNL),
        seed=seed,
        **hard,
    )


def _features(outputs: Outputs) -> dict[str, Any]:
    tokens = {name: outputs[name].float() if name in outputs else None for name in ("image_tokens", "text_tokens")}
    return {
        "image_VND": F.normalize(outputs["image"].float(), dim=-1).transpose(0, 1),
        "text_VND": F.normalize(outputs["text"].float(), dim=-1).transpose(0, 1),
        "logit_scale": outputs["logit_scale"].float().exp(),
        "logit_bias": outputs["logit_bias"].float(),
        "image_tokens_NPD": tokens["image_tokens"],
        "text_tokens_NLD": tokens["text_tokens"],
        "text_mask_NL": outputs.get("text_mask"),
    }


def backward(
    encoders: Encoders,
    batch: Batch,
    coupled: LossOf | None,
    per_sample: LossOf | None,
    *,
    micro_batch_size: int,
    seeds: tuple[int, int],
    backward_of: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager[object]],
) -> Step:
    """Add the gradient of the global batch's loss to ``.grad``.

    Micro-batches smaller than the batch go twice through the encoders: first without a graph to get all features,
    from which the loss is evaluated once, then with a graph to carry the features' gradients to the parameters
    (GradCache, Gao et al. 2021, section 3). Both passes of a micro-batch draw the same random numbers. Losses that
    are means over samples need no other rows: they are evaluated in the second pass, on the micro-batch alone.

    Args:
        coupled: the loss of those objectives that compare rows; None if there are none.
        per_sample: that of those that are means over samples; None if there are none.
        micro_batch_size: rows per pass; the batch size or more means one plain pass.
        seeds: of this step on all processes, and of this step and rank; dropout is a function of the second and of the
            micro-batch.
        backward_of: runs backward from a scalar (with loss scaling where the precision needs it).
        no_sync: context in which backward does not average gradients over ranks.
    """
    chunks = [batch.rows(start, start + micro_batch_size) for start in range(0, len(batch), micro_batch_size)]
    seed, seed_here = seeds

    def encode(index: int, encoder: Encode) -> Outputs:
        torch.manual_seed(distributed.seed_of(seed_here, index))
        return encoder(chunks[index])

    with torch.no_grad():
        guides = {
            name: _joined([guide(chunk) for chunk in chunks])
            for name, guide in (("momentum", encoders.momentum), ("teacher", encoders.teacher))
            if guide is not None
        }
    shared = [p for p in encoders.fusion.parameters() if p.requires_grad] if encoders.fusion is not None else []
    rest: dict[str, Any] = {**guides, "fusion": encoders.fusion, "queue": encoders.queue}

    if len(chunks) == 1:
        outputs = encode(0, encoders.model)
        embedded = embed(outputs, batch, seed, text_gathering=encoders.text_gathering(), **rest)
        losses = [loss_of(embedded) for loss_of in (coupled, per_sample) if loss_of is not None]
        loss = _sum(losses, [1.0] * len(losses))
        # DDP waits for the gradient of every parameter, also where the objectives leave an output unused.
        unused = sum(0.0 * tensor.sum() for tensor in [*_floating(outputs).values(), *shared])
        backward_of(loss.total + unused)
        return Step(Loss(loss.total.detach(), loss.parts), embedded)

    losses, weights = [], []
    cached = _Cached({}, [torch.zeros_like(parameter) for parameter in shared])
    seen: Embeddings | None = None
    if coupled is not None:
        first_pass = encoders.first_pass or encoders.model
        with torch.no_grad():
            outputs = _joined([encode(index, first_pass) for index in range(len(chunks))])
        leaves = {name: tensor.requires_grad_() for name, tensor in _floating(outputs).items()}
        seen = embed({**outputs, **leaves}, batch, seed, **rest)
        loss = coupled(seen)
        cached = _cached_gradients(loss.total, leaves, shared)
        losses, weights = [Loss(loss.total.detach(), loss.parts)], [1.0]

    start = 0
    passed: list[Outputs] = []
    for index, chunk in enumerate(chunks):
        rows, last = slice(start, start + len(chunk)), index == len(chunks) - 1
        start += len(chunk)
        with nullcontext() if last else no_sync():
            outputs = encode(index, encoders.model)
            passed.append({name: outputs[name].detach() for name in ("image", "text", "logit_scale", "logit_bias")})
            total = cached.carried_by(outputs, rows, shared if last else None)
            if per_sample is not None:
                here = {name: {n: v[rows] if v.ndim else v for n, v in guide.items()} for name, guide in guides.items()}
                loss = per_sample(embed(outputs, chunk, seed, **{**rest, **here}))
                losses.append(Loss(loss.total.detach(), loss.parts))
                weights.append(len(chunk) / len(batch))
                total = total + weights[-1] * loss.total
            if total.requires_grad:  # with locked towers, only the scalars, which take theirs last
                backward_of(total)
    return Step(_sum(losses, weights), seen or embed(_joined(passed), batch, seed, **rest))


class _Cached(NamedTuple):
    """Gradients of a loss by the outputs of all micro-batches, and by the parameters that it uses itself."""

    of_outputs: Outputs
    of_shared: Sequence[Tensor]

    def carried_by(self, outputs: Outputs, rows: slice, shared: Sequence[Tensor] | None) -> Tensor:
        """A scalar whose derivative by each of ``outputs``, those of ``rows``, is the cached one.

        The last micro-batch gives ``shared``: it takes those of the parameters and of scalars, which are there once.
        """
        last = shared is not None
        pairs = [(outputs[n], of if not of.ndim else of[rows]) for n, of in self.of_outputs.items() if of.ndim or last]
        pairs += zip(shared or [], self.of_shared if last else [], strict=True)
        total = torch.zeros((), device=outputs["image"].device)
        for value, of in pairs:
            total = total + (value.float() * of).sum()
        # DDP waits for the gradient of every parameter, also of those that no comparing loss sees, and ZeRO 3 begins
        # each sum of gradients anew with the first micro-batch only.
        carried = {name for name, of in self.of_outputs.items() if of.ndim or last}
        return total + sum(0.0 * v.sum() for name, v in _floating(outputs).items() if name not in carried)


def _cached_gradients(total: Tensor, leaves: Outputs, shared: Sequence[Tensor]) -> _Cached:
    total = total + 0.0 * leaves["logit_scale"]  # where every weight has become 0, it depends on nothing
    gradients = torch.autograd.grad(total, [*leaves.values(), *shared], allow_unused=True, materialize_grads=True)
    return _Cached(dict(zip(leaves, gradients, strict=False)), gradients[len(leaves) :])


def _joined(outputs: Sequence[Outputs]) -> Outputs:
    """The rows of several micro-batches one after the other; scalars are the same in all."""
    return {
        name: torch.cat([one[name] for one in outputs]) if value.ndim else value.clone()
        for name, value in outputs[0].items()
    }


def _floating(outputs: Outputs) -> Outputs:
    return {name: value for name, value in outputs.items() if value.is_floating_point()}


def _sum(losses: Sequence[Loss], weights: Sequence[float]) -> Loss:
    total = sum(weight * loss.total for weight, loss in zip(weights, losses, strict=True))
    parts: dict[str, Tensor] = {}
    for weight, loss in zip(weights, losses, strict=True):
        for name, value in loss.parts.items():
            parts[name] = parts.get(name, 0.0) + weight * value
    return Loss(total, parts)  # type: ignore[arg-type]
