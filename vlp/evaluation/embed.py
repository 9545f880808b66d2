"""Embedding the pictures and captions of an evaluation set."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vlp.data.benchmark_sets import StoredFile, decoded
from vlp.encoders.evaluating import evaluating
from vlp.evaluation.team import ALONE, Team
from vlp.types import UserError

Input = TypeVar("Input", bound=Hashable)


class Encoder(Protocol):
    """What evaluation needs of a model; ``vlp.encoders.two_tower.TwoTower`` is one."""

    @property
    def device(self) -> torch.device: ...

    @property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Strings -> LongTensor NL."""

    @property
    def eval_transform(self) -> Callable[[Image.Image], Tensor]:
        """RGB picture -> uint8 CHW, all of one size."""

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of the multiplier of the cosines."""

    def encode_image(self, image_NCHW: Tensor) -> Tensor:
        """uint8 pictures -> features ND, not normalised."""

    def encode_text(self, text_NL: Tensor) -> Tensor:
        """Token ids -> features ND, not normalised."""

    def text_lengths(self, text_NL: Tensor) -> Tensor:
        """Of each text, the number of its first ids on which its feature depends (N); the others may be left out."""

    def modules(self) -> Iterator[nn.Module]: ...


def embed_images(encoder: Encoder, images: Sequence[StoredFile], batch_size: int, team: Team = ALONE) -> Tensor:
    """L2-normalised fp32 features ND, one row a picture, on the encoder's device, on every process of ``team``.

    Equal files are decoded and embedded once and get equal rows.
    """
    distinct, rows = _distinct(images)

    def features() -> Tensor:
        with evaluating(encoder):
            found = [
                encoder.encode_image(batch_NCHW.to(encoder.device))
                for batch_NCHW in decoded(team.share(distinct), encoder.eval_transform, batch_size)
            ]
        return torch.cat(found)

    distinct_ND = _normalised(team.gather(features, len(distinct)), lambda row: distinct[row].name)
    return distinct_ND[torch.tensor(rows, device=distinct_ND.device)]


def embed_texts(encoder: Encoder, texts: Sequence[str], batch_size: int, team: Team = ALONE) -> Tensor:
    """L2-normalised fp32 features ND, one row a text, on every process of ``team``.

    Texts that the model reads alike (of the same token ids, as "A dog" and "a dog") are embedded once and get equal
    rows: in two batches their features would differ by rounding, and one of them would win. Texts go through the tower
    beside others of their length, without the padding that has no part in the features.
    """
    distinct, rows = _distinct(texts)
    ids_NL, row_of_distinct = encoder.tokenizer(distinct).unique(dim=0, return_inverse=True)
    lengths_N = encoder.text_lengths(ids_NL)
    longest_first = lengths_N.argsort(descending=True, stable=True)

    def features() -> Tensor:
        with evaluating(encoder):
            found = [
                encoder.encode_text(ids_NL[batch, : int(lengths_N[batch].max())].to(encoder.device))
                for batch in team.share(longest_first).split(batch_size)
            ]
        return torch.cat(found)

    features_ND = team.gather(features, len(ids_NL))
    row_of_text = longest_first.argsort()[row_of_distinct][rows].to(features_ND.device)
    text_ND = _normalised(features_ND, lambda row: f"'{texts[row_of_text.tolist().index(row)]}'")
    return text_ND[row_of_text]


def _distinct(inputs: Sequence[Input]) -> tuple[list[Input], list[int]]:
    """The inputs without repetition, and for each input its place among them."""
    row_of: dict[Input, int] = {}
    rows = [row_of.setdefault(one, len(row_of)) for one in inputs]
    return list(row_of), rows


def _normalised(features_ND: Tensor, name: Callable[[int], str]) -> Tensor:
    features_ND = features_ND.float()
    broken = (~features_ND.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise UserError(
            f"the model's features are not finite for {len(broken)} of {len(features_ND)} inputs, first for "
            f"{name(broken[0])}: its weights have diverged, take an earlier checkpoint"
        )
    return F.normalize(features_ND, dim=1)
