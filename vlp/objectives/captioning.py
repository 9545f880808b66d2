"""Captioning: the cross-entropy of each id of a caption, given those before it and the picture (CoCa).

    loss = 1/T sum_i sum_t CE( f(w_i1 .. w_it, p_i), w_i,t+1 ),    T = sum_i T_i over the global batch

w_i1 is the start of caption i, w_i,T_i+1 its end, p_i what the captioner attends to of its picture, f its logits over
the vocabulary; what stands behind the end is told by none and counts for none. With ``label_smoothing`` e a label is
1 - e of the id and e of all ids alike. A picture with several captions tells the first of those drawn.

Columns: captions (a model that is a CoCa of open_clip, or `model.captioner`), from the same pass of both towers as the
features that a contrastive objective compares. Cost: the decoder over the captions up to the longest of the batch; the
logits of 256 ids at a time, never those of all (`vlp.encoders.vocabulary_loss`); no communication but that of T. It is
a mean over samples: evaluated inside each micro-batch.
Parts: captioning_loss (in nats an id, without smoothing; exp of it is the perplexity).
Value at initialisation: about ln vocabulary (10.8 for CLIP's 49,408 ids).
Relations: the paper adds it to the contrastive loss: `infonce` at weight 1, this at weight 2. open_clip's CoCaLoss is
the same on one process; on several it averages the means of the processes, whose captions are not equally long, and so
its value depends on how many there are. The paper sums both directions of the contrastive loss, open_clip and vlp
average them: its weights 2 and 1 are 1 and 1 here; 2 is open_clip's default.
Source: Yu et al. 2022, "CoCa: Contrastive Captioners are Image-Text Foundation Models", section 3.2, equations 3 and 4.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vlp.features import Embeddings
from vlp.objectives import base
from vlp.types import Loss


class Objective(base.Objective, frozen=True, extra="forbid"):
    """Cross-entropy of the next id of the caption, mean over the ids of the global batch."""

    couples_batch: ClassVar[bool] = False

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, examples=[0.1], description="share of each label that goes to all ids alike"
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"captions"})

    def loss(self, embeddings: Embeddings) -> Loss:
        assert embeddings.captions is not None
        return Loss(embeddings.captions.loss, {"captioning_loss": embeddings.captions.nll})
