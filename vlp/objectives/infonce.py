"""InfoNCE: the softmax contrastive loss of CLIP, over all negatives of the global batch.

    loss = 1/2B sum_i [ lse_j s u_i.v_j - s u_i.v_i ] + [ lse_j s u_j.v_i - s u_i.v_i ]

u_i, v_i are the normalised image and text features of pair i, s the logit scale: learned, or fixed or on a schedule by
`train.temperature`, its inverse.

Options, each of which works with the others but for `captions` with `duplicates: soft`:
- `label_smoothing: e`: the target is (1 - e) for the match and e spread evenly over all that the denominator holds,
  which adds e (s mean_i u_i.v_i - s mean_ij u_i.v_j), in any number of rows for the price of two mean features.
  ALIGN's loss is e = 0.1 with `weight: 2`, as it sums the two directions, and a temperature learned from 1.0,
  `model.init_logit_scale: 0`, which takes many thousand steps (recipe `align` has a schedule instead).
- `hardest: a`: of each row's n negatives only the ceil(a n) with the largest similarity stay in the denominator: never
  more than the loss of all of them; 1 is that loss, and one negative alone gives softplus(s max_j u_i.v_j - s u_i.v_i).
- `duplicates`: i and j match if their pictures are equal, or their captions. `masked`: the matches of i other than
  itself leave its denominator. `soft`: the target of i is shared equally by all its matches, itself among them.
- `captions: K`: v_i^1 .. v_i^K of each picture at once. Each of them finds its picture among B, and the picture
  finds each of them among those of other pictures, which weigh 1/K:

      image -> text:  1/K sum_k -ln( exp(s u_i.v_i^k) / (exp(s u_i.v_i^k) + 1/K sum_{j != i, m} exp(s u_i.v_j^m)) )

  The picture's other captions are not in the denominator: they are no negatives, and as positives in there they would
  be drawn to one common similarity, however differently they describe it. With the weight, K times the same caption is
  one caption, the loss starts at ln B for any K, and the order of captions does not matter.

Columns: image, text; text_views:K with `captions`; picture_ids and caption_ids with `duplicates`. Cost per process,
with backward:
- up to 2^18 logits (N x B) of one process: an N x B fp32 matrix and its softmaxes, 6 N B D multiply-adds;
- above, and over several processes: tiles of 4 MiB (on accelerators 256 MiB), however large N x B, and up to 256 MiB
  of exponentials kept for backward: 6 N B D multiply-adds up to 2^26 logits, towards 8 N B D above. An all-gather of
  N x D text features and the reduce-scatter of their gradient, an all-reduce of B and an all-gather of N floats;
  images are not gathered. With `captions`, K times all that;
- with `hardest` or `duplicates`: 16 N K B D multiply-adds, about ten strips of 16 MiB, however large N x B, both
  features gathered; for `hardest` a partial sort of each row, which takes longer than the products.
Value at initialisation: about ln B; with `hardest` about ln(1 + a B).
Relations: `siglip` replaces the softmax over the batch by independent pairs, `decoupled` leaves the match out of the
denominator. LaCLIP's multi-text variant is the mean over k of losses in which picture i meets the k-th captions only:
`captions` has the negatives of all k in one denominator. `duplicates: soft` is SupCon's L_out with pictures or captions
as classes, whose denominator holds all positives.
Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3;
the exact gradient over processes as in open_clip with local_loss and gather_with_grad. Smoothing: Jia et al. 2021,
"Scaling Up Visual and Vision-Language Representation Learning With Noisy Text Supervision" (ALIGN), section 4.
Hardest: Wang and Liu 2021, "Understanding the Behaviour of Contrastive Loss". Soft targets: Khosla et al. 2020,
"Supervised Contrastive Learning", equation 2. Several captions: Fan et al. 2023, "Improving CLIP Training with Language
Rewrites".
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from vlp import similarity
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.similarity import tiles
from vlp.similarity.rows import Items, by_rows, items
from vlp.similarity.softmax import log_sum_exps, margins_of_negatives
from vlp.types import Loss

_COUNT_AS = {
    "negatives": "count as negatives",
    "masked": "are left out of each other's denominators",
    "soft": "are positives that share the target equally",
}


class Objective(base.Objective, frozen=True, extra="forbid"):
    """Symmetric cross-entropy over the rows and columns of the global similarity matrix."""

    couples_batch: ClassVar[bool] = True
    shared_parts: ClassVar[frozenset[str]] = frozenset({"contrastive_loss"})

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, examples=[0.1], description="share of the target that is spread evenly over all candidates"
    )
    hardest: float | None = Field(
        None,
        gt=0,
        le=1,
        examples=[0.4],
        description="share of each row's negatives that stay in the denominator, those most similar to it; null: all",
    )
    duplicates: Literal["negatives", "masked", "soft"] = Field(
        "negatives",
        description="what pairs that show the same picture or say the same caption are to each other: `negatives`, "
        "`masked` (neither positive nor negative), or `soft` (positives that share the target)",
    )
    captions: int = Field(
        1, ge=1, examples=[2], description="captions of each picture compared at once; one with fewer repeats some"
    )

    @model_validator(mode="after")
    def _one_way_to_share(self) -> Self:
        if self.captions > 1 and self.duplicates == "soft":
            raise ValueError(
                "duplicates: soft shares one target, but with several captions each has a target of its own: "
                "use masked, or captions: 1"
            )
        return self

    @property
    def needs(self) -> frozenset[str]:
        views = {f"text_views:{self.captions}"} if self.captions > 1 else set()
        identities = {"picture_ids", "caption_ids"} if self.duplicates != "negatives" else set()
        return frozenset({"image", "text"} | views | identities)

    def notes(self) -> list[str]:
        return [f"pairs with equal pictures or equal captions {_COUNT_AS[self.duplicates]} (option duplicates)"]

    def loss(self, embeddings: Embeddings) -> Loss:
        if self.hardest is not None or self.duplicates != "negatives":
            total = self._by_rows(embeddings)
        else:
            if self.captions > 1:
                total = _several_captions(embeddings, self.captions)
            else:
                total = _tiled(embeddings) if similarity.in_tiles(embeddings) else _dense(embeddings)
            if self.label_smoothing:
                total = total + self.label_smoothing * _matches_above_all(embeddings, self.captions)
        return Loss(total, {"contrastive_loss": total})

    def _by_rows(self, embeddings: Embeddings) -> Tensor:
        pictures, texts, all_pictures, all_texts = items(embeddings, self.captions, self.duplicates != "negatives")
        scale = embeddings.logit_scale
        from_images = partial(self._of_strip, rows=pictures, columns=all_texts, captions=self.captions)
        from_texts = partial(self._of_strip, rows=texts, columns=all_pictures, captions=1)
        from_images_N = by_rows(from_images, pictures.features_ND, all_texts.features_ND, scale)
        from_texts_N = by_rows(from_texts, texts.features_ND, all_pictures.features_ND, scale)
        return (from_images_N.mean() + from_texts_N.mean()) / 2

    def _of_strip(self, logits_nC: Tensor, strip: slice, rows: Items, columns: Items, captions: int) -> Tensor:
        """Losses of a strip of rows, n; each pair has ``captions`` neighbouring columns, of the weight 1/captions."""
        nothing = torch.finfo(logits_nC.dtype).min / 2  # finite: of a row without negatives the gradient must be 0
        match_nC = rows.matches(strip, columns)
        number_n = (~match_nC).sum(1)
        negative_nM = logits_nC.masked_fill(match_nC, nothing)
        if self.hardest is not None:
            negative_nM, number_n = _hardest(negative_nM, number_n, self.hardest, captions)
        over_negatives_n = negative_nM.logsumexp(1) - math.log(captions)

        if self.duplicates == "soft":
            positive_n = torch.where(match_nC, logits_nC, 0.0).sum(1) / match_nC.sum(1)
            over_positives_n = logits_nC.masked_fill(~match_nC, nothing).logsumexp(1)
            loss_n = torch.logaddexp(over_negatives_n, over_positives_n) - positive_n
            weight_n = match_nC.sum(1)
        else:
            own_nK = rows.pair_N[strip, None] * captions + torch.arange(captions, device=logits_nC.device)
            positive_nK = logits_nC.gather(1, own_nK)
            positive_n = positive_nK.mean(1)
            loss_n = F.softplus(over_negatives_n[:, None] - positive_nK).mean(1)
            weight_n = torch.ones_like(number_n)
        if self.label_smoothing:
            of_negatives_n = torch.where(negative_nM > nothing, negative_nM, 0.0).sum(1) / captions
            candidate_n = (weight_n * positive_n + of_negatives_n) / (weight_n + number_n / captions)
            loss_n = loss_n + self.label_smoothing * (positive_n - candidate_n)
        return loss_n


def _dense(embeddings: Embeddings) -> Tensor:
    matches = similarity.matches(embeddings)
    logits_BB = similarity.logits_per_image(embeddings)
    return (F.cross_entropy(logits_BB, matches) + F.cross_entropy(logits_BB.T, matches)) / 2


def _tiled(embeddings: Embeddings) -> Tensor:
    over_texts_N, over_images_N = margins_of_negatives(embeddings)
    return (F.softplus(over_texts_N) + F.softplus(over_images_N)).mean() / 2


def _several_captions(embeddings: Embeddings, captions: int) -> Tensor:
    """The log-sum-exps over the k-th captions of all other pictures, for each k, are those over all of them."""
    over_texts, over_images, matching = [], [], []
    for view in range(captions):
        over = log_sum_exps(
            embeddings.image_ND,
            similarity.text_BD(embeddings, view),
            embeddings.logit_scale,
            embeddings.first_row,
            without_matches=True,
            most_kept=tiles.MOST_KEPT // captions,
        )
        over_texts.append(over[0])
        over_images.append(over[1])
        matching.append(similarity.logits_of_matches(embeddings, view))
    matching_KN = torch.stack(matching)
    # A batch of one has no negatives, and the gradient of ln 0 is not a number: a bound keeps it 0.
    over_texts_KN = torch.stack(over_texts).clamp_min(torch.finfo(matching_KN.dtype).min / 2)
    over_texts_N = over_texts_KN.logsumexp(0) - math.log(captions)
    from_images, from_texts = F.softplus(over_texts_N - matching_KN), F.softplus(torch.stack(over_images) - matching_KN)
    return (from_images.mean() + from_texts.mean()) / 2


def _matches_above_all(embeddings: Embeddings, captions: int) -> Tensor:
    """Mean logit of this process's matching pairs minus that of all pairs of the global batch."""
    wide = tiles.precision(embeddings.image_ND)
    image_ND, text_ND = embeddings.image_ND.to(wide), embeddings.text_VND[:captions].to(wide).mean(0)
    image_D, text_D = similarity.global_mean(torch.stack([image_ND, text_ND], 1))
    return embeddings.logit_scale * ((image_ND * text_ND).sum(-1).mean() - (image_D * text_D).sum())


def _hardest(negative_nC: Tensor, number_n: Tensor, share: float, captions: int) -> tuple[Tensor, Tensor]:
    """The share of each row's ``number_n`` negatives with the largest logits, n M, the least number for the others.

    Rounded up to whole pictures, of ``captions`` columns each; also how many they are, n.
    """

    def kept(number: Tensor) -> Tensor:
        pictures = torch.ceil(share * number.double() / captions - 1e-9).clamp_min(1)
        return torch.minimum((pictures * captions).long(), number)

    most = int(kept(torch.tensor(negative_nC.shape[1])))
    negative_nM = negative_nC.topk(most, dim=1).values
    number_n = kept(number_n)
    left_out_nM = torch.arange(most, device=number_n.device) >= number_n[:, None]
    return negative_nM.masked_fill(left_out_nM, torch.finfo(negative_nM.dtype).min / 2), number_n
