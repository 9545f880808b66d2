"""A matrix of similarities one tile at a time, and the gradients that its tiles add up to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TILE = (512, 2048)  # images x texts: fits the processor's cache, and matrix products reach their full speed
ACCELERATOR_TILE = (4096, 16384)  # 256 MiB of fp32: there, starting a product costs as much as 2^20 logits of it
MOST_KEPT = 1 << 26  # logits whose exponentials wait for backward instead of being computed again: 256 MiB of fp32
_ROWS = 1 << 9


def size_for(device: torch.device) -> tuple[int, int]:
    """Images and texts of a tile."""
    return TILE if device.type == "cpu" else ACCELERATOR_TILE


class Tile(NamedTuple):
    """``values`` (rows x columns) may be overwritten; its memory is that of the next tile."""

    rows: slice
    columns: slice
    values: Tensor

    def matches(self, first_row: int) -> Tensor:
        """View of the values where image i meets text ``first_row + i``; empty where they do not meet here."""
        return self.values.diagonal(first_row + self.rows.start - self.columns.start)


def precision(features: Tensor) -> torch.dtype:
    """fp32 for fp32 and everything shorter, fp64 for fp64."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def logits(
    image_ND: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor,
    size: tuple[int, int],
    excluded: int | None = None,
    first: int = 0,
) -> Iterator[Tile]:
    """Tiles of s I T^T, row by row of tiles; features shorter than fp32 are widened tile by tile.

    Args:
        image_ND: rows.
        text_BD: columns.
        logit_scale: s, a scalar.
        size: images and texts of a tile; those at the edges are smaller.
        excluded: logits of image i with text ``excluded + i`` become -inf.
        first: tiles before this one are left out.
    """
    wide = precision(image_ND)
    high, broad = min(size[0], len(image_ND)), min(size[1], len(text_BD))
    memory = torch.empty(high * broad, dtype=wide, device=image_ND.device)
    per_row = -(-len(text_BD) // broad)
    for top in range(first // per_row * high, len(image_ND), high):
        scaled = image_ND[top : top + high].to(wide) * logit_scale
        passed = max(0, first - top // high * per_row)
        for left in range(passed * broad, len(text_BD), broad):
            text = text_BD[left : left + broad].to(wide)
            values = memory[: len(scaled) * len(text)].view(len(scaled), len(text))
            torch.mm(scaled, text.T, out=values)
            tile = Tile(slice(top, top + len(scaled)), slice(left, left + len(text)), values)
            if excluded is not None:
                tile.matches(excluded).fill_(-torch.inf)
            yield tile


def row_products(left_ND: Tensor, right_ND: Tensor) -> Tensor:
    """Dot product of each row of the one with that of the other, N, in pieces that need little memory."""
    wide = precision(left_ND)
    pieces = zip(left_ND.split(_ROWS), right_ND.split(_ROWS), strict=True)
    # vecdot would be rounded to bf16 by autocast.
    return torch.cat([(left.to(wide) * right.to(wide)).sum(-1) for left, right in pieces])


class Gradients:
    """Gradients of a function of the logits, from its derivative by each of them."""

    def __init__(self, image_ND: Tensor, text_BD: Tensor, logit_scale: Tensor, needed: tuple[bool, bool, bool]) -> None:
        self._image_ND, self._text_BD, self._scale = image_ND, text_BD, logit_scale
        self._needs_scale = needed[2]
        wide = precision(image_ND)
        # By the scale, the derivative is the sum over images of <u, gradient of u> / s: it needs no sum of its own.
        self._of_image = torch.zeros_like(image_ND, dtype=wide) if needed[0] or needed[2] else None
        self._of_text = torch.zeros_like(text_BD, dtype=wide) if needed[1] else None

    def add(self, tile: Tile) -> None:
        """Take in a tile of derivatives."""
        wide = tile.values.dtype
        if self._of_image is not None:
            self._of_image[tile.rows].addmm_(tile.values, self._text_BD[tile.columns].to(wide))
        if self._of_text is not None:
            self._of_text[tile.columns].addmm_(tile.values.T, self._image_ND[tile.rows].to(wide))

    def add_matches(self, first_row: int, derivatives_N: Tensor) -> None:
        """Take in derivatives by the logits of image i and text ``first_row + i``."""
        local, by_row = slice(first_row, first_row + len(self._image_ND)), derivatives_N.unsqueeze(1)
        if self._of_image is not None:
            self._of_image.addcmul_(self._text_BD[local].to(by_row.dtype), by_row)
        if self._of_text is not None:
            self._of_text[local].addcmul_(self._image_ND.to(by_row.dtype), by_row)

    def total(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of images (ND), texts (BD) and scale, None where there is none. Call it once, at the end."""
        image, text = self._of_image, self._of_text
        by_scale = None
        if image is not None and self._needs_scale:
            by_row = row_products(image, self._image_ND)
            by_scale = by_row.sum(dtype=torch.float64).to(self._scale.dtype).reshape(self._scale.shape)
        return (
            None if image is None else image.mul_(self._scale).to(self._image_ND.dtype),
            None if text is None else text.mul_(self._scale).to(self._text_BD.dtype),
            by_scale,
        )
