"""Image-text matching: whether a text and a picture belong together, told by a tower that reads both.

    loss = 1/B sum_i [ CE(f(t_i, p_i), 1) + CE(f(t_j, p_i), 0) + CE(f(t_i, p_k), 0) ] / 3

f are the two logits of the fusion tower for the words of a text and the patches of a picture. For each pair i, text j
is drawn from softmax_j(s u_i.v_j) and picture k from softmax_k(s u_k.v_i) over the global batch: the more alike, the
likelier. Left out are the pair itself and all with its caption or its picture; a pair for which nothing else is there
counts with its positive alone. Which ones are drawn is a function of the step and of what the pairs say and show, the
same on any number of processes and micro-batches. No gradient goes into the draw.

Columns: image, text (for the draw), image_tokens, text_tokens, caption_ids, picture_ids, fusion (`model.fusion`). Cost
per process and step:
- 3 N texts through the fusion tower, with backward four times its forward: in strips of 2^13 tokens it is computed
  again in backward, so memory beside the tokens is that of a strip;
- an all-gather of features, and of the tokens, N (L + P) D floats, with the reduce-scatter of their gradient;
  B (L + P) D floats are kept, which is what limits the batch;
- 2 N B D multiply-adds for the draw.
The fusion tower computes in fp32 whatever train.precision is.
Parts: matching_loss, matching_accuracy (of the 3 N items).
Value at initialisation: about ln 2. A tower that tells nothing apart soon says no to all: 0.637, and two thirds right.
Relations: goes with a contrastive objective (`infonce`, `triple`), whose similarities make the negatives hard;
`masked_words` uses the same tower.
Source: ITM of Li et al. 2021, "Align before Fuse", section 3.2, as in TCL (Yang et al. 2022, section 3.5). They draw
from the process's own batch with similarities to momentum features, here it is the global batch and the model's own.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlp.features import Embeddings
from vlp.objectives import base
from vlp.similarity.negatives import hard_negatives
from vlp.types import Loss

_TOKENS_OF_STRIP = 1 << 13


class Objective(base.Objective, frozen=True, extra="forbid"):
    """Two-way cross-entropy of pairs and of their hard negatives, by the fusion tower."""

    couples_batch: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "image_tokens", "text_tokens", "caption_ids", "picture_ids", "fusion"})

    def loss(self, embeddings: Embeddings) -> Loss:
        text_NLD, mask_NL, image_NPD = embeddings.text_tokens_NLD, embeddings.text_mask_NL, embeddings.image_tokens_NPD
        assert text_NLD is not None
        assert mask_NL is not None
        assert image_NPD is not None
        negatives = hard_negatives(embeddings)
        # Taken at once, so that backward spreads their gradient over the global batch once.
        other_text = embeddings.text_tokens_BLD[negatives.text_N], embeddings.text_mask_BL[negatives.text_N]
        items = [
            (text_NLD, mask_NL, image_NPD),
            (*other_text, image_NPD),
            (text_NLD, mask_NL, embeddings.image_tokens_BPD[negatives.image_N]),
        ]
        logits_NK2 = torch.stack([_logits(embeddings.fusion, *item) for item in items], dim=1)
        labels_NK = torch.tensor([1, 0, 0], device=logits_NK2.device).expand(len(logits_NK2), -1)
        weights_NK = torch.stack([torch.ones_like(negatives.exist_N), negatives.exist_N, negatives.exist_N], dim=1)
        weights_NK = weights_NK / weights_NK.sum(1, keepdim=True)

        losses_NK = F.cross_entropy(logits_NK2.flatten(0, 1), labels_NK.flatten(), reduction="none").view_as(weights_NK)
        total = (weights_NK * losses_NK).sum(1).mean()
        accuracy = (weights_NK * (logits_NK2.detach().argmax(-1) == labels_NK)).sum(1).mean()
        return Loss(total, {"matching_loss": total, "matching_accuracy": accuracy})


def _logits(fusion: Any, text_NLD: Tensor, mask_NL: Tensor, image_NPD: Tensor) -> Tensor:
    rows = max(1, _TOKENS_OF_STRIP // (text_NLD.shape[1] + image_NPD.shape[1]))
    if rows >= len(text_NLD):
        return fusion.match(text_NLD, mask_NL, image_NPD)
    strips = zip(text_NLD.split(rows), mask_NL.split(rows), image_NPD.split(rows), strict=True)
    # Nothing in the tower is random, so there is no state to bring back.
    return torch.cat([checkpoint(fusion.match, *s, use_reentrant=False, preserve_rng_state=False) for s in strips])
