"""Triple contrastive learning (TCL): between modalities, within each, and of a picture or text with its own parts.

u_i, v_i are the normalised features of pair i, u'_i, v'_i those of the momentum twin (its own crop of the picture, the
same caption), U' = [u'_1 ... u'_B; queue], V' likewise, s the logit scale. With CE(t, x) the cross-entropy of
softmax(x) against t, and means over i:

    cma_loss = 1/2 [ CE(alpha softmax(s u'_i V') + (1 - alpha) onehot_i, s u_i V') + the same from texts to U' ]
    imc_loss = 1/2 [ CE(onehot_i, s u_i U') + CE(onehot_i, s v_i V') ]
    lmi_loss = 1/2 [ mean_k -ln( e^(s l_ik.u_i) / (e^(s l_ik.u_i) + sum_{j != i} sum_k' e^(s l_jk'.u_i)) ) + of texts ]
    loss     = mean of the terms chosen; of all three: a sixth of the paper's six sums

l_ik are the twin's local features, without gradient and normalised. Of pictures: a g x g grid of patches averaged in
windows of floor(sqrt g), which do not overlap; patches that are no square, at most 16 means of neighbours. Of texts:
the words. A text without any adds 0 to its half of lmi_loss; their share is logged.

Columns: image, text; momentum (a second crop); queue, for cma and imc; momentum.image_tokens and momentum.text_tokens,
for lmi. Cost per process:
- compute: a forward pass of the twin; N (B + Q) D multiply-adds a direction of cma and imc and B N K D a modality of
  lmi, with K locals a row, as many again in backward and where strips are recomputed; 2 N (B + Q) D more a direction
  of cma where alpha > 0;
- memory: the twin (the weights once more), 8 Q D bytes for the queue, twice as many while the loss is computed, a few
  times N K D floats for the locals; up to 2^20 logits (on accelerators 2^24) a matrix, above that strips of it;
- communication: all-gathers of the twin's N x 2D features (no gradient), for lmi of the online N x 2D features and
  of W x 2B floats, with theirs. The locals themselves stay where they are.
Value at initialisation: cma_loss about ln(B + Q), lmi_loss about ln(1 + (B - 1) K); imc_loss below, since two crops of
a picture begin alike.
Relations: alpha = 0, no queue, the twin equal to the model and one view: cma_loss is `infonce`. Of the paper's code it
leaves two things out: negatives of lmi from the own process only (here the global batch, so that any number of
processes computes the same), and paddings masked by a constant that leaves them in the mean (here they are not there).
Source: Yang et al. 2022, "Vision-Language Pre-Training with Triple Contrastive Learning", section 3; alpha and
the momentum as Li et al. 2021 (ALBEF), the queue as He et al. 2019 (MoCo).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from typing_extensions import Self

from vlp.durations import Schedule, Scheduled, largest, settled, smallest
from vlp.features import Embeddings, Features
from vlp.objectives import base
from vlp.similarity.parts import log_sum_exps_of_others
from vlp.similarity.rows import by_rows
from vlp.types import Loss

Term = Literal["cma", "imc", "lmi"]
_MOST_LOCALS = 16  # of pictures whose patches are no square


class Objective(base.Objective, frozen=True, extra="forbid"):
    """Mean of cross-modal alignment (cma), intra-modal contrast (imc) and local mutual information (lmi)."""

    couples_batch: ClassVar[bool] = True

    terms: tuple[Term, ...] = Field(
        ("cma", "imc", "lmi"),
        min_length=1,
        description="which of the three are averaged",
        examples=[("cma",), ("imc",), ("lmi",)],
    )
    momentum: float = Field(0.995, ge=0, le=1, description="share of itself that the twin keeps at each step")
    queue_size: int = Field(
        65_536,
        ge=0,
        description="earlier pairs that cma and imc compare with, a multiple of the global batch; 0: none",
        examples=[0],
    )
    alpha: Scheduled = Field(
        Schedule(start=0.0, end=0.4, after=0, over="1 epochs", shape="linear"),
        description="share of the twin's similarities in the targets of cma: a number from 0 to 1, or a schedule",
        examples=[0.0, 1.0],
    )

    @field_validator("terms")
    @classmethod
    def _each_once(cls, terms: tuple[Term, ...]) -> tuple[Term, ...]:
        if len(set(terms)) < len(terms):
            raise ValueError("names a term twice: give each once")
        return terms

    @field_validator("alpha")
    @classmethod
    def _is_a_share(cls, alpha: Scheduled) -> Scheduled:
        if not 0 <= smallest(alpha) <= largest(alpha) <= 1:
            raise ValueError("must lie between 0 and 1")
        return alpha

    @model_validator(mode="after")
    def _all_has_an_effect(self) -> Self:
        for field, terms in (("alpha", {"cma"}), ("queue_size", {"cma", "imc"})):
            default = type(self).model_fields[field].default
            if getattr(self, field) != default and not terms & {*self.terms}:
                raise ValueError(
                    f"{field} has no effect without {' or '.join(sorted(terms))}: remove it, or add one to terms"
                )
        return self

    @property
    def needs(self) -> frozenset[str]:
        needs = {"image", "text", "momentum"}
        if self.queue_size and {"cma", "imc"} & {*self.terms}:
            needs.add("queue")
        if "lmi" in self.terms:
            needs |= {"momentum.image_tokens", "momentum.text_tokens"}
        return frozenset(needs)

    def loss(self, embeddings: Embeddings) -> Loss:
        twin = embeddings.momentum
        assert twin is not None
        parts: dict[str, Tensor] = {}
        if {"cma", "imc"} & {*self.terms}:
            parts |= self._contrasts(embeddings, twin)
        share_without_words = None
        if "lmi" in self.terms:
            parts["lmi_loss"], share_without_words = _local_information(embeddings, twin)
        total = torch.stack(list(parts.values())).mean()
        if "cma" in self.terms:
            parts["alpha"] = total.new_tensor(settled(self.alpha))
        if share_without_words is not None:
            parts["share_without_words"] = share_without_words
        return Loss(total, parts)

    def _contrasts(self, embeddings: Embeddings, twin: Features) -> dict[str, Tensor]:
        scale = embeddings.logit_scale
        queue = embeddings.queue if self.queue_size else None  # another objective may have one
        images = _bank(twin.image_ND, twin.image_BD, queue.image_QD if queue else None)
        texts = _bank(twin.text_ND, twin.text_BD, queue.text_QD if queue else None)
        parts = {}
        if "cma" in self.terms:
            alpha = settled(self.alpha)
            to_texts = _targets(twin.image_ND, texts, scale, alpha)
            to_images = _targets(twin.text_ND, images, scale, alpha)
            i2t = _cross_entropy(embeddings.image_ND, texts, to_texts, scale)
            parts["cma_loss"] = (i2t + _cross_entropy(embeddings.text_ND, images, to_images, scale)) / 2
        if "imc" in self.terms:
            of_images = _cross_entropy(embeddings.image_ND, images, images.own_ND, scale)
            parts["imc_loss"] = (of_images + _cross_entropy(embeddings.text_ND, texts, texts.own_ND, scale)) / 2
        return parts


class _Bank(NamedTuple):
    """The twin's features of the global batch and the queue, and of the own rows, less the mean of all.

    A softmax does not see what is common to all columns; without it, gradients have the digits that it would cost.
    """

    columns_CD: Tensor
    own_ND: Tensor


@torch.no_grad()
def _bank(own_ND: Tensor, batch_BD: Tensor, queue_QD: Tensor | None) -> _Bank:
    columns_CD = batch_BD if queue_QD is None else torch.cat([batch_BD, queue_QD])
    mean_D = columns_CD.mean(0)
    return _Bank(columns_CD - mean_D, own_ND - mean_D)


@torch.no_grad()
def _targets(from_ND: Tensor, bank: _Bank, logit_scale: Tensor, alpha: float) -> Tensor:
    """The mean of the bank's columns by their soft targets, N D."""
    if alpha == 0:
        return bank.own_ND

    def mean_by_softmax(logits_nC: Tensor, _rows: slice) -> Tensor:
        return logits_nC.softmax(1) @ bank.columns_CD.to(logits_nC.dtype)

    soft_ND = by_rows(mean_by_softmax, from_ND, bank.columns_CD, logit_scale)
    return torch.lerp(bank.own_ND, soft_ND, alpha)


def _cross_entropy(rows_ND: Tensor, bank: _Bank, targets_ND: Tensor, logit_scale: Tensor) -> Tensor:
    """Mean over rows of the cross-entropy over the bank's columns, of which ``targets_ND`` are means by target."""
    # sum_j t_ij s x_i.c_j = s x_i.sum_j t_ij c_j: no matrix of targets is needed.
    targeted_N = logit_scale * (rows_ND * targets_ND).sum(-1)
    over_columns_N = by_rows(lambda logits, _: logits.logsumexp(1), rows_ND, bank.columns_CD, logit_scale)
    return (over_columns_N - targeted_N).mean()


def _local_information(embeddings: Embeddings, twin: Features) -> tuple[Tensor, Tensor]:
    """lmi_loss, and the share of texts without words."""
    patches_NPD, tokens_NLD, words_NL = twin.image_tokens_NPD, twin.text_tokens_NLD, twin.text_mask_NL
    assert patches_NPD is not None
    assert tokens_NLD is not None
    assert words_NL is not None
    with torch.no_grad():
        regions_NKD = F.normalize(_regions(patches_NPD), dim=-1)
        tokens_NLD = F.normalize(tokens_NLD, dim=-1)
    all_NK = torch.ones(regions_NKD.shape[:2], dtype=torch.bool, device=regions_NKD.device)
    scale, first_row = embeddings.logit_scale, embeddings.first_row
    of_images = _own_parts(embeddings.image_ND, embeddings.image_BD, regions_NKD, all_NK, scale, first_row)
    of_texts = _own_parts(embeddings.text_ND, embeddings.text_BD, tokens_NLD, words_NL, scale, first_row)
    without_words = 1 - words_NL.any(1).to(of_texts.dtype).mean()
    return (of_images + of_texts) / 2, without_words


def _own_parts(
    whole_ND: Tensor, whole_BD: Tensor, locals_NKD: Tensor, valid_NK: Tensor, logit_scale: Tensor, first_row: int
) -> Tensor:
    """Mean over rows of the mean over its valid locals of finding the own one among those of all other rows."""
    locals_NKD = locals_NKD.masked_fill(~valid_NK[..., None], 0.0)  # paddings may be anything, NaN too
    local = slice(first_row, first_row + len(whole_ND))
    owner_NK = torch.arange(len(whole_BD), device=whole_BD.device)[local, None].expand_as(valid_NK)
    others_N = log_sum_exps_of_others(whole_BD, locals_NKD[valid_NK], owner_NK[valid_NK], logit_scale, local)
    own_NK = logit_scale * (locals_NKD * whole_ND[:, None]).sum(-1)
    losses_NK = F.softplus(others_N[:, None] - own_NK) * valid_NK
    return (losses_NK.sum(1) / valid_NK.sum(1).clamp_min(1)).mean()


def _regions(patches_NPD: Tensor) -> Tensor:
    """Means of neighbouring patches, N K D."""
    number = patches_NPD.shape[1]
    side = math.isqrt(number)
    patches_NDP = patches_NPD.transpose(1, 2)
    if side * side != number:
        return F.adaptive_avg_pool1d(patches_NDP, min(_MOST_LOCALS, number)).transpose(1, 2)
    pooled = F.avg_pool2d(patches_NDP.unflatten(2, (side, side)), math.isqrt(side))
    return pooled.flatten(2).transpose(1, 2)
