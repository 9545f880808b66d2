"""Pictures through the image tower: all of their patches, or a part of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class PatchDropout(NamedTuple):
    """Which patches a training step leaves out: ``share`` of each picture's, drawn by ``seed`` and the picture."""

    share: float
    seed: int


def encode(clip: Any, pixels_NCHW: Tensor, dropout: PatchDropout | None = None) -> Tensor:
    """Features ND of normalised pixels, not of length 1."""
    return clip.encode_image(pixels_NCHW, normalize=False)
