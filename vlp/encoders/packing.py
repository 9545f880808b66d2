"""Texts side by side without their padding, through a causal tower of open_clip's.

All that a layer does but attention concerns one position alone, so it is done on the ids that there are, one after the
other. Attention alone puts them back into rows: shortest texts first, in a few groups, each as wide as its longest. A
layer is called once for all texts, as sharded parameters want it, and the kernel of attention gets no mask.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, Transformer
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

# Of the texts in order of their lengths, where each group of attention ends: a long tail stays in a small group.
_ENDS = (1 / 2, 3 / 4, 7 / 8)
_SMALL = 8  # rows of a group that is not worth kernels of its own


class TextShapes(NamedTuple):
    """What the host has to know of the lengths of texts, so that it need not wait for the device.

    Attributes:
        ids: of all texts together, T.
        groups: rows and longest text of each group of attention, shortest texts first.
    """

    ids: int
    groups: tuple[tuple[int, int], ...]

    @property
    def longest(self) -> int:
        return self.groups[-1][1]


def shapes_of(length_N: Tensor) -> TextShapes:
    """Those of texts of ``length_N`` ids, a tensor on the CPU."""
    length_N = length_N.sort().values
    rows, ends = len(length_N), [0]
    for end in (round(share * rows) for share in _ENDS):
        if min(end - ends[-1], rows - end) >= _SMALL:
            ends.append(end)
    groups = tuple((end - start, int(length_N[end - 1])) for start, end in pairwise([*ends, rows]))
    return TextShapes(int(length_N.sum()), groups)


class Packing:
    """Where the ids of texts lie, side by side and in the rows of attention.

    Attributes:
        id_T: the texts' ids.
        place_T: the place of each in its text.
        last_N: where the last id of each text lies.
    """

    def __init__(self, text_NL: Tensor, length_N: Tensor, shapes: TextShapes) -> None:
        device, self._groups = text_NL.device, shapes.groups
        shortest_first_N = length_N.argsort()
        sorted_N = length_N[shortest_first_N]
        end_N = sorted_N.cumsum(0)
        row_T = torch.repeat_interleave(sorted_N, output_size=shapes.ids)
        self.place_T = torch.arange(shapes.ids, device=device) - (end_N - sorted_N)[row_T]
        self.id_T = text_NL[shortest_first_N[row_T], self.place_T]
        self.last_N = end_N[shortest_first_N.argsort()] - 1
        starts, self._slots = [], 0
        for rows, length in self._groups:
            starts.append(torch.arange(rows, device=device) * length + self._slots)
            self._slots += rows * length
        self._slot_T = torch.cat(starts)[row_T] + self.place_T

    def to(self, _dtype: torch.dtype) -> Packing:
        """Itself: open_clip's layers convert what they get in the place of a mask."""
        return self

    def attend(self, projected_TX: Tensor, heads: int) -> Tensor:
        """What each id finds in its text up to itself, TW, of its query, key and value, T 3W."""
        in_rows = projected_TX.new_zeros(self._slots, projected_TX.shape[1]).index_copy(0, self._slot_T, projected_TX)
        found = []
        parts = in_rows.split([rows * length for rows, length in self._groups])
        for part, (rows, length) in zip(parts, self._groups, strict=True):
            queries, keys, values = part.view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            of_group = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            found.append(of_group.transpose(1, 2).reshape(rows * length, -1))
        return torch.cat(found).index_select(0, self._slot_T)


class PackedAttention(nn.MultiheadAttention):
    """open_clip's attention, which takes a `Packing` in the place of its mask, too; T W then, not N L W."""

    def forward(self, query: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        packing = options.get("attn_mask")
        if not isinstance(packing, Packing):
            return super().forward(query, *others, **options)
        projected_TX = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        return self.out_proj(packing.attend(projected_TX, self.num_heads)), None


def prepare(tower: Any) -> bool:
    """Let a causal text tower take packed texts; False for one with layers of another kind.

    Weights and their names stay as they are.
    """
    if type(tower) not in (CLIP, TextTransformer) or type(tower.transformer) is not Transformer:
        return False
    blocks = tower.transformer.resblocks
    if not all(type(block) is ResidualAttentionBlock and _is_plain(block.attn) for block in blocks):
        return False
    for block in blocks:
        if not isinstance(block.attn, PackedAttention):  # which LoRA may have made a subclass of
            block.attn.__class__ = PackedAttention
    return True


def is_prepared(tower: Any) -> bool:
    if not isinstance(tower, CLIP | TextTransformer):
        return False
    return isinstance(tower.transformer.resblocks[0].attn, PackedAttention)


def pools_at_end(tower: Any) -> bool:
    """Whether a tower of open_clip takes a text's feature at an id that ends it."""
    return _pool(tower)[0] in ("argmax", "eos")


def pooled_lengths(tower: Any, text_NL: Tensor) -> Tensor:
    """Ids of each text up to the one where such a tower takes the feature (N)."""
    kind, eos_id = _pool(tower)
    return (text_NL if kind == "argmax" else torch.eq(text_NL, eos_id).int()).argmax(dim=1) + 1


def _pool(tower: Any) -> tuple[str, Any]:
    if isinstance(tower, CLIP):  # the towers of this class lie in the model itself, under other names
        return tower.text_pool_type, tower.text_eos_id
    return tower.pool_type, tower.eos_id


def encode(tower: Any, text_NL: Tensor, shapes: TextShapes) -> Tensor:
    """Features ND of a prepared tower that pools at the end of a text; ``shapes`` are those of `pooled_lengths`."""
    packing = Packing(text_NL, pooled_lengths(tower, text_NL), shapes)
    dtype = tower.transformer.get_cast_dtype()
    embedded_TW = tower.token_embedding(packing.id_T).to(dtype)
    embedded_TW = embedded_TW + F.embedding(packing.place_T, tower.positional_embedding).to(dtype)
    states_TW = tower.transformer(embedded_TW, attn_mask=packing)
    pooled_NW = tower.ln_final(states_TW.index_select(0, packing.last_N))
    projection = tower.text_projection
    if projection is None:
        return pooled_NW
    return projection(pooled_NW) if isinstance(projection, nn.Linear) else pooled_NW @ projection


def _is_plain(attention: Any) -> bool:
    return (
        type_before_parametrizations(attention) in (nn.MultiheadAttention, PackedAttention)
        and attention._qkv_same_embed_dim
        and attention.bias_k is None
        and not attention.add_zero_attn
        and attention.dropout == 0
        and attention.batch_first
    )
