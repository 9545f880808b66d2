"""What the file of a format holds, and the pictures and texts that all formats are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlp.encoders.two_tower import TwoTower
from vlp.types import UserError

TOLERANCE = 1e-5
TEXTS = [
    "a red circle left of a blue square",
    "",
    "Two CATS, one dog & a very long caption " + "about pictures " * 60,
    "ein grüner Stern über dem gelben Dreieck – 星",
]


class DiffersError(UserError):
    """The other library does not load the same model."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; nothing was kept: export --to another format, and report this one")


class Format(Protocol):
    """A module of `vlp.export.formats`; its docstring's first line is its summary."""

    LIBRARY: str
    """The model card's ``library_name``."""

    def check(self, model: TwoTower) -> None:
        """
        Raises:
            UserError: the format does not have the model's shape, with the part that does not fit.
        """

    def left_out(self, model: TwoTower) -> list[str]:
        """Parts of the model that the format has no place for, a sentence each."""

    def write(self, model: TwoTower, directory: Path, final: Path) -> None:
        """Fill ``directory``, which will be renamed to ``final``."""

    def compare(self, model: TwoTower, directory: Path) -> dict[str, float]:
        """Differences between ``model`` and what the other library alone loads, among them ``max_abs_difference``.

        Raises:
            DiffersError: pixels, ids or features differ by more than the format allows.
        """

    def usage(self, model: TwoTower) -> str:
        """Python that loads the directory ``path/to/this/directory`` and scores a picture against texts.

        It leaves ``image_features`` and ``text_features``, of length 1, of ``picture`` and ``texts``.
        """


def pictures() -> list[Image.Image]:
    """Noise and a gradient in shapes of which resizing and cropping have something to do."""
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, size, dtype=np.uint8) for size in ((97, 61, 3), (40, 200, 3))]
    gradient = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    return [Image.fromarray(pixels) for pixels in (*noise, gradient)]


def largest(pairs: Sequence[tuple[Tensor, Tensor]], tolerance: float, where: str) -> float:
    """The largest difference of any element.

    Raises:
        DiffersError: it is above ``tolerance``.
        UserError: one of them is no number.
    """
    difference = max((a.detach().cpu().float() - b.detach().cpu().float()).abs().max().item() for a, b in pairs)
    if not math.isfinite(difference):
        raise UserError(f"{where} are not finite: the weights have diverged, take an earlier checkpoint")
    if difference > tolerance:
        raise DiffersError(f"{where} differ by {difference:.2g}, more than {tolerance:.0e}")
    return difference


@torch.no_grad()
def unit_features(model: TwoTower, image_NCHW: Tensor, text_NL: Tensor) -> tuple[Tensor, Tensor]:
    """Of uint8 pictures and ids: features of length 1, in the memory of the host."""
    image_ND = model.encode_image(image_NCHW.to(model.device))
    text_ND = model.encode_text(text_NL.to(model.device))
    return F.normalize(image_ND, dim=-1).cpu(), F.normalize(text_ND, dim=-1).cpu()
