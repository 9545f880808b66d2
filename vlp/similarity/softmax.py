"""Log-sum-exps over texts and over images of one pass over the similarities, in memory that does not grow with N x B.

    over_texts_i = ln sum_j exp(s u_i.v_j),   over_images_j = ln sum_i exp(s u_i.v_j)

A tile of logits serves both directions with one exp, shifted by the constant s - 60: the logits of normalised features
lie in [-s, s], so no sum overflows fp32, and all are exact whose largest logit is above s - 129. Where one is not, or
features are not normalised, the pass is repeated with running maxima. Backward keeps the first tiles and recomputes
the others:

    dL/dlogit_ij = exp(logit_ij) (g_i / sum_i + h_j / sum_j),   g, h the gradients of the two outputs

Tiles come in a fixed order, so the same inputs give the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlp import distributed
from vlp.features import Embeddings
from vlp.similarity import tiles

_HEADROOM = 60.0  # exp(60) summed over 2^40 items is still an fp32 number
_LEAST_SUM = 1e-30


class _Sums(NamedTuple):
    """Sums of exp(logit - shift): over texts for each local image, over all processes' images for each text."""

    row_shift: Tensor
    row_sum: Tensor
    column_shift: Tensor
    column_sum: Tensor


def log_sum_exps(
    image_ND: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor,
    first_row: int,
    *,
    without_matches: bool = False,
    minus_matches: bool = False,
    tile: tuple[int, int] | None = None,
    most_kept: int = tiles.MOST_KEPT,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of the scaled similarities: of each local image over all texts, of each local text over all images.

    8 N B D multiply-adds with backward, 6 N B D up to ``most_kept`` logits. Memory beside inputs and their gradients:
    what is kept, and two tiles. With several processes, an all-reduce of B floats forward and an all-gather of N floats
    backward; the image features are never gathered.
    Gradients are those of the sum of all processes' losses, that of ``text_BD`` this process's part of it: what the
    backward of `vlp.distributed.gather_rows` adds up.

    Args:
        image_ND: features of this process's images: normalised for speed, right if not. fp64 is computed in fp64,
            anything shorter in fp32, under autocast too.
        text_BD: those of the texts of all processes.
        logit_scale: factor of the similarities, a scalar.
        first_row: column of the text that matches the first image.
        without_matches: leave the matching pair out of both sums (decoupled losses).
        minus_matches: from each, subtract the logit of the matching pair: the loss of a softmax that has it in the sum.
            Its gradients then need no memory of their own.
        tile: images and texts of a tile; by default what suits the device.
        most_kept: logits of which the exponentials are kept for backward, which then saves one product in four.

    Returns:
        Over texts (N) and over images (N), fp32 (fp64 for fp64 features); -inf for a sum of nothing.
    """
    if distributed.world_size() > 1 and first_row != distributed.rank() * len(image_ND):
        raise ValueError("with several processes, first_row must be rank x rows")
    size = tile or tiles.size_for(image_ND.device)
    most_kept = most_kept if torch.is_grad_enabled() else 0
    return _LogSumExps.apply(image_ND, text_BD, logit_scale, first_row, without_matches, minus_matches, size, most_kept)


def margins_of_negatives(embeddings: Embeddings) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the negatives minus the logit of the match: of local images over texts, of texts over images, N.

    Its softplus is the loss of a softmax that has the match in the sum, exact also where that is nearly 0.
    """
    return log_sum_exps(
        embeddings.image_ND,
        embeddings.text_BD,
        embeddings.logit_scale,
        embeddings.first_row,
        without_matches=True,
        minus_matches=True,
    )


class _LogSumExps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image_ND: Tensor,
        text_BD: Tensor,
        logit_scale: Tensor,
        first_row: int,
        without_matches: bool,
        minus_matches: bool,
        tile: tuple[int, int],
        most_kept: int,
    ) -> tuple[Tensor, Tensor]:
        excluded = first_row if without_matches else None
        kept = _Kept(most_kept if any(ctx.needs_input_grad[:3]) else 0)
        with torch.autocast(image_ND.device.type, enabled=False):
            sums = _fixed_shift_sums(image_ND, text_BD, logit_scale, excluded, tile, kept)
            ctx.running = sums is None
            if sums is None:
                kept.tiles.clear()
                sums = _running_maximum_sums(image_ND, text_BD, logit_scale, excluded, tile)
        ctx.kept = [(piece.rows, piece.columns) for piece in kept.tiles]
        ctx.save_for_backward(image_ND, text_BD, logit_scale, *sums, *(piece.values for piece in kept.tiles))
        ctx.first_row, ctx.excluded, ctx.minus_matches, ctx.tile = first_row, excluded, minus_matches, tile
        local = slice(first_row, first_row + len(image_ND))
        over_texts_N = sums.row_sum.log() + sums.row_shift
        over_images_N = sums.column_sum[local].log() + sums.column_shift[local]
        if minus_matches:
            matching_N = logit_scale * tiles.row_products(image_ND, text_BD[local])
            over_texts_N, over_images_N = over_texts_N - matching_N, over_images_N - matching_N
        return over_texts_N, over_images_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows_N: Tensor, of_columns_N: Tensor) -> tuple[Tensor | None, ...]:
        image_ND, text_BD, logit_scale, *saved = ctx.saved_tensors
        sums, kept = _Sums(*saved[:4]), saved[4:]
        with torch.autocast(image_ND.device.type, enabled=False):
            row_weight = _over(of_rows_N, sums.row_sum)
            # Every process holds a block of rows of all columns, so each needs what every text's owner was given.
            of_columns = distributed.gather_rows(of_columns_N)
            first = 0 if distributed.world_size() > 1 else ctx.first_row
            of_columns_B = torch.zeros_like(sums.column_sum)
            of_columns_B[first : first + len(of_columns)] = of_columns
            column_weight = _over(of_columns_B, sums.column_sum)
            gradients = tiles.Gradients(image_ND, text_BD, logit_scale, ctx.needs_input_grad[:3])
            spare = torch.empty(0, dtype=sums.row_sum.dtype, device=image_ND.device)

            def add(rows: slice, columns: slice, exponentials: Tensor) -> None:
                weights = torch.add(row_weight[rows, None], column_weight[columns], out=spare.resize_(0))
                gradients.add(tiles.Tile(rows, columns, weights.mul_(exponentials)))

            for (rows, columns), exponentials in zip(ctx.kept, kept, strict=True):
                add(rows, columns, exponentials)
            for piece in tiles.logits(image_ND, text_BD, logit_scale, ctx.tile, ctx.excluded, len(kept)):
                rows, columns, values = piece
                if ctx.running:
                    by_columns = (values - sums.column_shift[columns]).exp_().mul_(column_weight[columns])
                    values.sub_(sums.row_shift[rows, None]).exp_().mul_(row_weight[rows, None]).add_(by_columns)
                    gradients.add(piece)
                else:
                    add(rows, columns, values.sub_(sums.row_shift[rows, None]).exp_())
            if ctx.minus_matches:
                gradients.add_matches(ctx.first_row, -(of_rows_N + of_columns_N))
            return *gradients.total(), None, None, None, None, None


class _Kept:
    """The first tiles, as many as there is room for."""

    def __init__(self, most_logits: int) -> None:
        self._room = most_logits
        self.tiles: list[tiles.Tile] = []

    def offer(self, piece: tiles.Tile) -> None:
        """Keep a copy of the tile; after one that did not fit, none fits."""
        self._room -= piece.values.numel()
        if self._room >= 0:
            self.tiles.append(piece._replace(values=piece.values.clone()))


def _over(gradient: Tensor, total: Tensor) -> Tensor:
    """gradient / total, 0 where nothing was summed."""
    return torch.where(total == 0, 0.0, gradient / total)


def _fixed_shift_sums(
    image_ND: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor,
    excluded: int | None,
    tile: tuple[int, int],
    kept: _Kept,
) -> _Sums | None:
    """Sums with one shift for all; None, on all processes, where fp32 could not hold one of them."""
    wide = tiles.precision(image_ND)
    shift = logit_scale.to(wide).reshape(()) - _HEADROOM
    row_sum = torch.zeros(len(image_ND), dtype=wide, device=image_ND.device)
    # One element more: how many processes hold a row they cannot use travels with the sums.
    packed = torch.zeros(len(text_BD) + 1, dtype=wide, device=image_ND.device)
    column_sum = packed[:-1]
    for piece in tiles.logits(image_ND, text_BD, logit_scale, tile, excluded):
        piece.values.sub_(shift).exp_()
        row_sum[piece.rows] += piece.values.sum(1)
        column_sum[piece.columns] += piece.values.sum(0)
        kept.offer(piece)
    packed[-1] = _unusable(row_sum)
    distributed.sum_over_ranks(packed)
    if bool((packed[-1] > 0) | _unusable(column_sum)):
        return None
    return _Sums(shift.expand_as(row_sum), row_sum, shift.expand_as(column_sum), column_sum)


def _unusable(sums: Tensor) -> Tensor:
    """Whether a sum is too small to be exact, too large or not a number."""
    return ~((sums >= _LEAST_SUM) & sums.isfinite()).all()


def _running_maximum_sums(
    image_ND: Tensor, text_BD: Tensor, logit_scale: Tensor, excluded: int | None, tile: tuple[int, int]
) -> _Sums:
    """Sums with a shift for each row and column: its largest logit. Two exps a tile instead of one."""
    wide = tiles.precision(image_ND)
    row_max, column_max = (torch.full((len(x),), -torch.inf, dtype=wide, device=x.device) for x in (image_ND, text_BD))
    row_sum, column_sum = torch.zeros_like(row_max), torch.zeros_like(column_max)
    for rows, columns, values in tiles.logits(image_ND, text_BD, logit_scale, tile, excluded):
        for maximum, total, axis in ((row_max[rows], row_sum[rows], 1), (column_max[columns], column_sum[columns], 0)):
            higher = torch.maximum(maximum, values.amax(axis))
            shift = _finite(higher)
            total.mul_((maximum - shift).exp_()).add_((values - shift.unsqueeze(axis)).exp_().sum(axis))
            maximum.copy_(higher)
    column_shift = column_max.clone()
    distributed.max_over_ranks(column_shift)
    column_shift = _finite(column_shift)
    column_sum.mul_((column_max - column_shift).exp_())
    distributed.sum_over_ranks(column_sum)
    return _Sums(_finite(row_max), row_sum, column_shift, column_sum)


def _finite(maximum: Tensor) -> Tensor:
    """The maximum as a shift; of nothing (-inf) it is 0, so that the sum of nothing comes out as 0."""
    return torch.where(maximum == -torch.inf, 0.0, maximum)
