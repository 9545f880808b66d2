"""Masked language modelling: words that were hidden in a caption, found again with the help of the picture.

    loss = 1/N sum_i 1/|H_i| sum_{l in H_i} CE(f(t~_i, p_i)_l, id_il)

t~_i are the tokens of caption i in which the ids at the places H_i became one mask id (`vlp.encoders.masking`), p_i
the patches of its picture, f the fusion tower's logits over the vocabulary. ``share`` of the words of a caption are
hidden, at least one; which ones is a function of the step and of the caption. A caption without words counts 0, in the
accuracy too.

The text tower reads the masked caption once more, with gradient. CLIP's is causal, so the states it gives know the
words to their left only; what stands to the right comes in through the fusion tower, which reads in both directions.

Columns: image_tokens, masked_text, fusion (`model.fusion`). Cost: a second pass of the text tower, with backward; N
texts through the fusion tower; the logits of the hidden words, M x vocabulary floats and as many again for their
gradient, with M about N x words x share. It is a mean over samples: evaluated inside each micro-batch, without
communication.
The fusion tower computes in fp32 whatever train.precision is.
Parts: masked_words_loss, masked_words_accuracy.
Value at initialisation: about ln vocabulary (10.8 for CLIP's 49,408 ids).
Relations: goes with a contrastive objective (`infonce`, `triple`); `matching` uses the same tower.
Source: Devlin et al. 2019, "BERT"; with pictures in Li et al. 2021, "Align before Fuse", section 3.2, and TCL (Yang et
al. 2022, section 3.5). Unlike BERT, no hidden word is kept or replaced by another; unlike ALBEF and TCL, the targets
are the words alone: the distillation from the momentum twin's guesses is left out.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from vlp.features import Embeddings
from vlp.objectives import base
from vlp.types import Loss


class Objective(base.Objective, frozen=True, extra="forbid"):
    """Cross-entropy of hidden words given the others and the picture, by the fusion tower."""

    couples_batch: ClassVar[bool] = False

    share: float = Field(0.15, gt=0, le=1, description="of the words of a caption that are hidden, at least one")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image_tokens", "masked_text", "fusion"})

    def loss(self, embeddings: Embeddings) -> Loss:
        masked = embeddings.masked
        assert masked is not None
        hidden_NL = masked.labels_NL >= 0
        # Only hidden places get logits: those of all would be L x vocabulary floats a row.
        logits_MK = embeddings.fusion.words(masked.tokens_NLD, masked.mask_NL, embeddings.image_tokens_NPD, hidden_NL)
        labels_M = masked.labels_NL[hidden_NL]
        weights_M = (hidden_NL / hidden_NL.sum(1, keepdim=True).clamp(min=1) / len(hidden_NL))[hidden_NL]
        total = (weights_M * F.cross_entropy(logits_MK, labels_M, reduction="none")).sum()
        accuracy = (weights_M * (logits_MK.detach().argmax(-1) == labels_M)).sum()
        return Loss(total, {"masked_words_loss": total, "masked_words_accuracy": accuracy})
