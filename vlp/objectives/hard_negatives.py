"""Hard captions as further columns of the picture side (NegCLIP): nearly right ones, to tell the caption from.

Beside the true captions v of the batch stand captions h that are nearly right but false of their picture, as
`vlp data negatives` writes them. A picture i meets those of all pictures (`scope: all`, NegCLIP) or only its own
(`scope: own`, CompA); no caption meets them, as they have no picture.

    softmax:  loss = 1/2 1/B sum_i softplus( ln sum_{h in scope} exp(s (u_i.h + m)) - ln sum_j exp(s u_i.v_j) )
    sigmoid:  loss = 1/B sum_i sum_{h in scope} softplus( s (u_i.h + m) + b )

u, v, h are normalised features, s the logit scale, b the logit bias, m the margin. The softmax form is what hard
columns add to the cross-entropy of pictures over texts, -ln( e^match / (sum over v + sum over h) ), so that
`[{name: infonce}, {name: hard_negatives}]` is NegCLIP and without hard captions exactly CLIP; the sigmoid form is what
they add to `siglip`. Either may stand beside any other objective that compares pictures with texts; the sum over j is
that of plain `infonce`, whatever the other one leaves out of its own (`duplicates`, `hardest`, the `decoupled` match).

A hard caption of one picture that is the caption of another picture in the batch is no negative of that other one:
that column is left out of its row (equal token ids; NegCLIP counts it against the match). Pictures without a hard
caption keep their place in all sums; they only bring no columns.

Columns: image, hard_texts:K (of `data.hard_captions`), caption_ids; text for softmax, logit_bias for sigmoid.
Parts: ``hard_negative_loss``; ``hard_caption_share``, of the K hard captions of each picture those that are there;
``hard_caption_errors``, the share of all pictures with a first hard caption that is at least as similar as the caption.
Cost per process, with backward: K more captions through the text tower, which is most of it; 8 N B (1 + K) D
multiply-adds in strips of rows, however large N x B. `scope: all` gathers the hard captions, K times the text
features, apart from the true ones: stacked before the gathering, as in the released code, they would stand between
the true captions of other processes, and the labels would point at wrong columns. `scope: own` gathers none: 8 N B D.
The sigmoid form needs none of the true captions: 8 N B K D, or nothing to speak of with `scope: own`.
Value at initialisation: softmax about 1/2 ln(1 + K) for `all`, near 0 for `own`.
Relations: `own` is at most `all`. The sums over texts are computed here again, beside those of the objective it joins.
Source: Yuksekgonul et al. 2023, "When and Why Vision-Language Models Behave Like Bags-Of-Words, and What to Do About
It?", section 4 (NegCLIP). Own scope: Ghosh et al. 2024, "CompA: Addressing the Gap in Compositional Reasoning in
Audio-Language Models", section 4; its released mask multiplies logits by a large number, which turns negative ones
into huge ones, here they are left out of the sum. Margin in the cosine: Wang et al. 2018, "Additive Margin Softmax for
Face Verification".
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vlp import similarity
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.similarity import hard_texts, tiles
from vlp.similarity.rows import by_rows
from vlp.types import Loss


class Objective(base.Objective, frozen=True, extra="forbid"):
    """What hard captions add to the loss of pictures over texts."""

    couples_batch: ClassVar[bool] = True

    number: int = Field(1, ge=1, examples=[2], description="hard captions of each picture in a step")
    scope: Literal["all", "own"] = Field(
        "all",
        description="whose hard captions a picture meets: all of the global batch (NegCLIP), or its own (CompA)",
    )
    form: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="columns of a softmax, for infonce and its kin; or questions of their own, for siglip"
    )
    margin: float = Field(
        0.0, ge=0, lt=2, examples=[0.1], description="by how much of the cosine a hard caption must be less similar"
    )

    @property
    def needs(self) -> frozenset[str]:
        compared = "logit_bias" if self.form == "sigmoid" else "text"
        return frozenset({"image", "caption_ids", f"hard_texts:{self.number}", compared})

    def loss(self, embeddings: Embeddings) -> Loss:
        own = hard_texts.own(embeddings, self.number)
        wide = tiles.precision(embeddings.image_ND)
        with torch.autocast(own.features.device.type, enabled=False):
            cosines_NK = (embeddings.image_ND.to(wide)[:, None] * own.features.to(wide)).sum(-1)
        own_NK = embeddings.logit_scale * cosines_NK
        if self.scope == "all":
            loss_N = self._all(embeddings)
        else:
            there_NK = hard_texts.negatives_of(embeddings, own, slice(None))
            loss_N = self._added(own_NK, there_NK, embeddings, self._over_texts(embeddings))
        total = loss_N.mean() / (2 if self.form == "softmax" else 1)
        with torch.no_grad():
            match_N = similarity.logits_of_matches(embeddings)
            wrong_N = own.there[:, 0] & ~(own_NK[:, 0] < match_N)
        shares = {"hard_caption_share": own.there, "hard_caption_errors": wrong_N}
        return Loss(
            total, {"hard_negative_loss": total, **{name: value.float().mean() for name, value in shares.items()}}
        )

    def _over_texts(self, embeddings: Embeddings) -> Tensor | None:
        """Log-sum-exps of the rows over the true captions, N; the sigmoid form needs none."""
        if self.form == "sigmoid":
            return None
        columns_BD, scale = embeddings.text_BD, embeddings.logit_scale
        return by_rows(lambda logits_nB, rows: logits_nB.logsumexp(1), embeddings.image_ND, columns_BD, scale)

    def _all(self, embeddings: Embeddings) -> Tensor:
        """Losses of the rows, N, where each meets the hard captions of the global batch."""
        hard = hard_texts.of_everybody(embeddings, self.number)
        columns_CD, texts = hard.features, 0
        if self.form == "softmax":
            columns_CD, texts = torch.cat([embeddings.text_BD, hard.features]), len(embeddings.text_BD)

        def of_strip(logits_nC: Tensor, rows: slice) -> Tensor:
            there_nC = hard_texts.negatives_of(embeddings, hard, rows)
            over_texts_n = logits_nC[:, :texts].logsumexp(1) if texts else None
            return self._added(logits_nC[:, texts:], there_nC, embeddings, over_texts_n)

        return by_rows(of_strip, embeddings.image_ND, columns_CD, embeddings.logit_scale)

    def _added(self, hard_nC: Tensor, there_nC: Tensor, embeddings: Embeddings, over_texts_n: Tensor | None) -> Tensor:
        """What hard columns add to the losses of rows, n; ``there_nC`` tells which of them count."""
        hard_nC = hard_nC + self.margin * embeddings.logit_scale
        if over_texts_n is None:
            return torch.where(there_nC, F.softplus(hard_nC + embeddings.logit_bias), 0.0).sum(1)
        # Finite: where no column counts, the gradient must be 0, and that of ln 0 is not a number.
        nothing = torch.finfo(hard_nC.dtype).min / 2
        return F.softplus(hard_nC.masked_fill(~there_nC, nothing).logsumexp(1) - over_texts_n)
