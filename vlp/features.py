"""What objectives see: features of this process's rows, and of the global batch once somebody asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp import distributed


@dataclass(frozen=True)
class Features:
    """L2-normalised fp32 features of this process's rows, and of the global batch once somebody asks for them.

    Row ``first_row + i`` of ``image_BD`` is row ``i`` of ``image_ND``; gathering carries the exact gradient, and every
    process has to ask alike. ``logit_scale`` is the multiplier itself (exp of the parameter), ``logit_bias`` is 0
    where the model has none. Tokens are the local features (patches; words without start, end and padding, where
    ``text_mask_NL`` is true) in the common space, not normalised, None where nothing needs them.
    """

    image_VND: Tensor
    text_VND: Tensor
    logit_scale: Tensor
    logit_bias: Tensor
    image_tokens_NPD: Tensor | None = None
    text_tokens_NLD: Tensor | None = None
    text_mask_NL: Tensor | None = None
    text_gathering: distributed.Gathering | None = None  # of text_ND, where it began while the image tower worked

    @property
    def image_ND(self) -> Tensor:
        """The first view of each picture."""
        return self.image_VND[0]

    @property
    def text_ND(self) -> Tensor:
        """The first caption of each picture."""
        return self.text_VND[0]

    @cached_property
    def image_BD(self) -> Tensor:
        with torch.enable_grad():  # kept: who asks first, perhaps without gradient, must not take it away from others
            return distributed.gather_rows(self.image_ND)

    @cached_property
    def text_BD(self) -> Tensor:
        with torch.enable_grad():
            return distributed.gather_rows(self.text_ND) if self.text_gathering is None else self.text_gathering.wait()

    @cached_property
    def image_tokens_BPD(self) -> Tensor:
        assert self.image_tokens_NPD is not None
        with torch.enable_grad():
            return distributed.gather_rows(self.image_tokens_NPD)

    @cached_property
    def text_tokens_BLD(self) -> Tensor:
        assert self.text_tokens_NLD is not None
        with torch.enable_grad():
            return distributed.gather_rows(self.text_tokens_NLD)

    @cached_property
    def text_mask_BL(self) -> Tensor:
        assert self.text_mask_NL is not None
        return distributed.gather_rows(self.text_mask_NL)

    @property
    def first_row(self) -> int:
        return distributed.rank() * self.image_VND.shape[1]


class Queue(NamedTuple):
    """Momentum features of earlier batches, L2-normalised, without gradient; as many rows as there were yet."""

    image_QD: Tensor
    text_QD: Tensor


class Masked(NamedTuple):
    """Texts with hidden words: their tokens, which of them are words, and the ids to find (-100 where none is)."""

    tokens_NLD: Tensor
    mask_NL: Tensor
    labels_NL: Tensor


class Captions(NamedTuple):
    """What the captioner makes of the captions, in nats an id: the loss, and without smoothed labels and gradient."""

    loss: Tensor
    nll: Tensor


@dataclass(frozen=True)
class Embeddings(Features):
    """What objectives see: `Features` of the model, and what else they declare to need.

    Attributes:
        momentum: features, without gradient, of the slowly moving twin, which sees a crop of its own.
        queue: of momentum features.
        teacher: features of a frozen model of another width, with its logit scale; without gradient.
        fusion: the tower that reads text tokens with image tokens, `vlp.encoders.fusion`.
        masked: word tokens of the texts with some ids hidden, and what was hidden, for `fusion`.
        captions: of these rows, as sums that add up to the mean over the ids of the global batch.
        picture_N: equal where two rows show the same picture.
        caption_VN: equal where two captions are the same, of whatever rows and views.
        hard_text_KND: features of captions that are nearly right but false of the picture, L2-normalised.
        hard_mask_KN: false where a row has fewer of them than K: that feature means nothing.
        hard_caption_KN: as caption_VN, comparable with it, of the hard captions.
        seed: of this step, the same on all processes, for what an objective draws.
    """

    momentum: Features | None = None
    queue: Queue | None = None
    teacher: Features | None = None
    fusion: Any = None
    masked: Masked | None = None
    captions: Captions | None = None
    picture_N: Tensor | None = None
    caption_VN: Tensor | None = None
    hard_text_KND: Tensor | None = None
    hard_mask_KN: Tensor | None = None
    hard_caption_KN: Tensor | None = None
    seed: int = 0

    @classmethod
    def of(
        cls, image_ND: Tensor, text_ND: Tensor, logit_scale: Tensor, logit_bias: Tensor | float = 0.0, **others: Any
    ) -> Embeddings:
        """Embeddings of plain features of any length, for losses outside a recipe: one view and one caption each."""
        wide = torch.promote_types(image_ND.dtype, torch.float32)
        image_ND, text_ND = F.normalize(image_ND.to(wide), dim=-1), F.normalize(text_ND.to(wide), dim=-1)
        return cls(image_ND[None], text_ND[None], logit_scale, torch.as_tensor(logit_bias), **others)
