"""Distillation: the student's similarities over the batch follow those of a frozen teacher.

    loss = -1/2B sum_ij [ p(t U_i.V_j) ln p(s u_i.v_j) ] + [ p(t V_i.U_j) ln p(s v_i.u_j) ],   p = softmax over j

u_i, v_i are the student's normalised image and text features of pair i, s its logit scale; U_i, V_i and t are the
teacher's. Nothing else of the teacher is used, so its features may have any width, and the two need share neither the
size of pictures nor the tokenizer. The teacher is any MODEL and sees the student's first crop of each picture, resized,
and its first caption, tokenised anew. It computes in train.precision as the student does; normalisation and logits of
both are in fp32.

Columns: image, text, teacher. Cost per process:
- a forward pass of the teacher, in which CLIP's tokenizer takes the training process 0.02 ms a caption;
- with backward 16 N B D multiply-adds and 8 N B D' for the teacher's width D', a quarter and a half less up to 2^20
  logits (N x B; on accelerators 2^24); above, strips of as many, about five of which are there at once, however large
  N x B;
- an all-gather of N x 2D features with its gradient, and one of the teacher's, N x 2D'.
Parts: distill_loss; teacher_entropy, which is its lower bound, reached where the similarities are the teacher's.
Value at initialisation: about ln B, whatever the teacher.
Relations: `infonce` is this for a teacher with t to infinity that finds every match. In a recipe the two go together.
Source: open_clip's DistillClipLoss, whose second value this is with local_loss and gather_with_grad (the first is
`infonce`); affinity mimicking in Wu et al. 2023, "TinyCLIP: CLIP Distillation via Affinity Mimicking and Weight
Inheritance".
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vlp.features import Embeddings
from vlp.objectives import base
from vlp.similarity import tiles
from vlp.similarity.rows import by_rows
from vlp.types import Loss


class Objective(base.Objective, frozen=True, extra="forbid"):
    """Cross-entropy between the softmaxes of teacher and student over the global batch, in both directions."""

    couples_batch: ClassVar[bool] = True

    teacher: str = Field(
        description="MODEL that is followed: a run, a checkpoint, an export, `NAME:TAG` of open_clip, `hf-hub:`"
    )
    teacher_scale: float | None = Field(
        None, gt=0, examples=[20.0], description="multiplier of the teacher's cosines; null: its own logit scale"
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "teacher"})

    def loss(self, embeddings: Embeddings) -> Loss:
        teacher = embeddings.teacher
        assert teacher is not None
        scale = teacher.logit_scale if self.teacher_scale is None else self.teacher_scale
        from_images = partial(_of_strip, row_ND=teacher.image_ND, column_BD=teacher.text_BD, scale=scale)
        from_texts = partial(_of_strip, row_ND=teacher.text_ND, column_BD=teacher.image_BD, scale=scale)
        image_N2 = by_rows(from_images, embeddings.image_ND, embeddings.text_BD, embeddings.logit_scale)
        text_N2 = by_rows(from_texts, embeddings.text_ND, embeddings.image_BD, embeddings.logit_scale)
        total, entropy = ((image_N2 + text_N2) / 2).mean(0)
        return Loss(total, {"distill_loss": total, "teacher_entropy": entropy})


def _of_strip(logits_nB: Tensor, rows: slice, row_ND: Tensor, column_BD: Tensor, scale: Tensor | float) -> Tensor:
    """Cross-entropy of each row of the student with the teacher's, and the entropy of the teacher's, n 2."""
    with torch.no_grad():
        wide = tiles.precision(logits_nB)
        target_nB = (row_ND[rows].to(wide) @ column_BD.to(wide).T).mul_(scale).log_softmax(1)
        entropy_n = torch.special.entr(target_nB.exp_()).sum(1)
    return torch.stack([-(target_nB * logits_nB.log_softmax(1)).sum(1), entropy_n], dim=1)
