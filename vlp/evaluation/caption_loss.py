"""What a captioner expects of the true captions of a set: its loss with their own pictures and with those of others.

Nothing is generated: each id is told from the true ones before it. If the loss is no higher with another's picture, the
captioner does not look. Others are the next ones in a fixed random ring of all pictures, so that the figures depend
neither on the batch size nor on how the set is sorted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.data.ahead import batches_ahead
from vlp.data.benchmark_sets import DECODERS, StoredFile
from vlp.encoders.captioner import CaptionPath
from vlp.encoders.evaluating import evaluating
from vlp.encoders.two_tower import TwoTower
from vlp.generation import check_captioner
from vlp.types import UserError

TOKENS = 256  # whose logits are held at once: of 49,408 ids each, 50 MB


@dataclass(frozen=True)
class TrueCaptions:
    """Means over all ids of all true captions.

    Attributes:
        loss: -log p of the right id, in nats; exp of it is the perplexity.
        loss_shuffled: the same with other pictures; NaN where the set has only one.
        token_accuracy: share of ids that are the likeliest.
        most_frequent: share of the most frequent id: what token accuracy is of one who always tells this.
    """

    loss: float
    loss_shuffled: float
    token_accuracy: float
    most_frequent: float


@dataclass
class _Sums:
    nll: float = 0.0
    right: int = 0
    number: int = 0


def of_true_captions(
    model: TwoTower, images: Sequence[StoredFile], texts: Sequence[str], image_of_text: Sequence[int], batch_size: int
) -> TrueCaptions:
    """The figures of a set, ``batch_size`` pictures, and captions, at a time.

    Raises:
        UserError: the model tells no captions, or its loss is not finite.
    """
    path = check_captioner(model)
    ids_NL = model.tokenizer(list(texts))
    told_NL = model.special_tokens.told(ids_NL)
    counts = ids_NL[:, 1:][told_NL].bincount()
    texts_of: list[list[int]] = [[] for _ in images]
    for text, image in enumerate(image_of_text):
        texts_of[image].append(text)
    own, other = _Sums(), _Sums()
    with evaluating(model):
        for pictures, memory_NQW, before_NQW in _memories(model, images, batch_size):
            rows = [(place, text) for place, picture in enumerate(pictures) for text in texts_of[picture]]
            for start in range(0, len(rows), batch_size):
                places, chosen = zip(*rows[start : start + batch_size], strict=True)
                place_N, text_N = torch.tensor(places, device=model.device), torch.tensor(chosen)
                length = int(told_NL[text_N].sum(1).max()) + 1
                text_NL, told = ids_NL[text_N, :length].to(model.device), told_NL[text_N, : length - 1].to(model.device)
                _add(own, path, text_NL, told, memory_NQW[place_N])
                if len(images) > 1:
                    _add(other, path, text_NL, told, before_NQW[place_N])
    if not math.isfinite(own.nll):
        raise UserError(
            "the model's captioning loss is not finite: its weights have diverged, take an earlier checkpoint"
        )
    return TrueCaptions(
        own.nll / own.number,
        other.nll / other.number if other.number else math.nan,
        own.right / own.number,
        int(counts.max()) / int(counts.sum()),
    )


def others(number: int) -> list[int]:
    """For each of so many pictures another one, the one before it in the ring; itself where there is no other."""
    ring = _ring(number)
    before = dict(zip(ring, [ring[-1], *ring], strict=False))
    return [before[picture] for picture in range(number)]


def _ring(number: int) -> list[int]:
    ring = list(range(number))
    random.Random(0).shuffle(ring)
    return ring


def _memories(
    model: TwoTower, images: Sequence[StoredFile], batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Pictures in the order of the ring, what the decoder attends to of each, and of the one before it."""
    ring = _ring(len(images))
    transform = model.eval_transform
    order = [ring[-1], *ring]  # the last one is read twice, as the first of the ring comes after it
    before_1QW: Tensor | None = None
    done = 0
    for batch in batches_ahead(lambda image: transform(images[image].load()), order, batch_size, DECODERS):
        memory_NQW = model.caption_memory(torch.stack(batch).to(model.device))
        memory_NQW = memory_NQW if before_1QW is None else torch.cat([before_1QW, memory_NQW])
        before_1QW = memory_NQW[-1:]
        pictures = ring[done : done + len(memory_NQW) - 1]
        done += len(pictures)
        yield pictures, memory_NQW[1:], memory_NQW[:-1]


def _add(sums: _Sums, path: CaptionPath, text_NL: Tensor, told_NL: Tensor, memory_NQW: Tensor) -> None:
    """Count the ids of captions as they are told from ``memory_NQW``."""
    states_MW = path.states(text_NL[:, :-1], memory_NQW)[told_NL]
    labels_M = text_NL[:, 1:][told_NL]
    for states, labels in zip(states_MW.split(TOKENS), labels_M.split(TOKENS), strict=True):
        logits = (states @ path.head_WV).float()
        sums.nll += float(F.cross_entropy(logits, labels, reduction="sum"))
        sums.right += int((logits.argmax(1) == labels).sum())
    sums.number += len(labels_M)
