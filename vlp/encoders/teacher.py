"""A frozen model beside the one in training, which sees the same pictures and captions in its own format."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.encoders.openclip import load
from vlp.types import Batch, UserError


class Teacher:
    """Any MODEL. Pictures are those of the student, resized where it wants another size; captions are tokenised anew.

    It is in evaluation mode, its weights in fp32; the caller's autocast says in what it computes. CLIP's tokenizer
    takes 0.02 ms a caption, in the process that trains.

    Raises:
        UserError: nothing is there, or it cannot be loaded.
    """

    def __init__(self, reference: str, device: torch.device) -> None:
        try:
            self.model = load(reference, device).requires_grad_(False)
        except UserError as error:
            raise UserError(f"objectives: the teacher cannot be had: {error}") from error

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Its outputs for the first view of each picture and the first caption."""
        text_NL = self.model.tokenizer(list(batch.captions)).to(self.model.device)
        return self.model(self._resized(batch.image_NCHW)[None], text_NL[None])

    def _resized(self, image_NCHW: Tensor) -> Tensor:
        size = self.model.picture_format.size
        if tuple(image_NCHW.shape[-2:]) == size:
            return image_NCHW
        mode = self.model.picture_format.interpolation
        pixels = F.interpolate(image_NCHW.float(), size, mode=mode, antialias=True)
        return pixels.round_().clamp_(0, 255).to(torch.uint8)
