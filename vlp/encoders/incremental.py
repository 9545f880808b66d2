"""A captioner's states id by id: what was read stays as keys and values, so each id goes through the layers once.

The same states as `CaptionPath.states`, which reads the whole text again for each of its ids. K texts of one picture
(the beams of a search) stand side by side in the place of its queries: the keys and values of the picture are computed
and kept once, however many texts there are, and the texts share those of their common beginning. A text that goes on
from another one is not copied: each keeps which of the picture's places are its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from vlp.encoders.captioner import CaptionPath
from vlp.types import UserError


class IncrementalDecoder:
    """``beams`` texts for each of N pictures, which all begin with the same number of ids.

    Args:
        path: of the model, in evaluation mode.
        memory_NQW: what the decoder attends to.
        capacity: ids of the longest text that will be read.
        beams: texts of each picture, K.

    Raises:
        UserError: the text tower has blocks of another class than open_clip's default.
    """

    def __init__(self, path: CaptionPath, memory_NQW: Tensor, capacity: int, beams: int = 1) -> None:
        assert capacity <= path.context_length
        self.path, self.capacity, self.beams = path, capacity, beams
        check_blocks(path)
        decoder = path.decoder
        self.half = [_SelfAttention(block) for block in path.half.transformer.resblocks]
        self.layers = [
            (_SelfAttention(block), _CrossAttention(cross, memory_NQW))
            for block, cross in zip(decoder.resblocks, decoder.cross_attn, strict=True)
        ]
        self.length = 0
        self.visible_NKC: Tensor | None = None  # with several beams: which places each text has gone through

    def start(self, text_NL: Tensor) -> Tensor:
        """States NLW of how all texts of a picture begin."""
        pictures, length = text_NL.shape
        assert self.length == 0
        places = length + self.beams * (self.capacity - length)
        causal_LL = torch.ones(length, length, dtype=torch.bool, device=text_NL.device).tril()
        states_NLW = self._read(text_NL, slice(0, length), slice(0, length), causal_LL, places)
        if self.beams > 1:
            self.visible_NKC = text_NL.new_zeros(pictures, self.beams, places, dtype=torch.bool)
            self.visible_NKC[..., :length] = True
        self.length, self._used = length, length
        return states_NLW

    def step(self, ids_NK: Tensor, parent_NK: Tensor | None = None) -> Tensor:
        """States NKW of one more id of each text.

        Args:
            parent_NK: the text of the step before that each goes on from; itself without it.
        """
        begin, end = self._used, self._used + self.beams
        mask_N1KC = None
        if self.visible_NKC is not None:
            if parent_NK is not None:
                index_NKC = parent_NK[..., None].expand(-1, -1, self.visible_NKC.shape[-1])
                self.visible_NKC = self.visible_NKC.gather(1, index_NKC)
            self.visible_NKC[..., begin:end] = torch.eye(self.beams, dtype=torch.bool, device=ids_NK.device)
            mask_N1KC = self.visible_NKC[:, None, :, :end]
        position = slice(self.length, self.length + 1)
        states_NKW = self._read(ids_NK, position, slice(begin, end), mask_N1KC, 0)
        self.length, self._used = self.length + 1, end
        return states_NKW

    def keep(self, pictures_n: Tensor) -> None:
        """Go on with these pictures only, by their rows."""
        if self.visible_NKC is not None:
            self.visible_NKC = self.visible_NKC[pictures_n]
        for attention in (*self.half, *(part for layer in self.layers for part in layer)):
            attention.keep(pictures_n)

    def _read(self, ids_NL: Tensor, positions: slice, places: slice, mask: Tensor | None, capacity: int) -> Tensor:
        """States of ids, whose keys and values go to ``places`` of the ``capacity``."""
        path = self.path
        states_NLW = path.half.token_embedding(ids_NL) + path.half.positional_embedding[positions]
        for own in self.half:
            states_NLW = own(states_NLW, places, mask, capacity)
        states_NLW = path.to_decoder(states_NLW)
        for own, cross in self.layers:
            states_NLW = cross(own(states_NLW, places, mask, capacity))
        return path.decoder.ln_final(states_NLW)


class _SelfAttention:
    """A block whose keys and values are kept, NHCd: heads H of width d, places C."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.keys_NHCd: Tensor | None = None
        self.values_NHCd: Tensor | None = None

    def __call__(self, states_NLW: Tensor, places: slice, mask: Tensor | None, capacity: int) -> Tensor:
        attn = self.block.attn
        projected = F.linear(self.block.ln_1(states_NLW), attn.in_proj_weight, attn.in_proj_bias)
        queries, keys, values = (_heads(part, attn.num_heads) for part in projected.chunk(3, dim=-1))
        if self.keys_NHCd is None or self.values_NHCd is None:
            shape = (*keys.shape[:2], capacity, keys.shape[-1])
            self.keys_NHCd, self.values_NHCd = keys.new_empty(shape), keys.new_empty(shape)
        self.keys_NHCd[:, :, places] = keys
        self.values_NHCd[:, :, places] = values
        seen = slice(0, places.stop)
        return _rest(self.block, states_NLW, queries, self.keys_NHCd[:, :, seen], self.values_NHCd[:, :, seen], mask)

    def keep(self, pictures_n: Tensor) -> None:
        assert self.keys_NHCd is not None
        assert self.values_NHCd is not None
        self.keys_NHCd, self.values_NHCd = self.keys_NHCd[pictures_n], self.values_NHCd[pictures_n]


class _CrossAttention:
    """A block that attends to the picture, whose keys and values do not change."""

    def __init__(self, block: Any, memory_NQW: Tensor) -> None:
        self.block = block
        attn, width = block.attn, block.attn.embed_dim
        projected = F.linear(block.ln_1_kv(memory_NQW), attn.in_proj_weight[width:], attn.in_proj_bias[width:])
        self.keys_NHQd, self.values_NHQd = (_heads(part, attn.num_heads) for part in projected.chunk(2, dim=-1))

    def __call__(self, states_NLW: Tensor) -> Tensor:
        attn, width = self.block.attn, self.block.attn.embed_dim
        projected = F.linear(self.block.ln_1(states_NLW), attn.in_proj_weight[:width], attn.in_proj_bias[:width])
        queries = _heads(projected, attn.num_heads)
        return _rest(self.block, states_NLW, queries, self.keys_NHQd, self.values_NHQd, None)

    def keep(self, pictures_n: Tensor) -> None:
        self.keys_NHQd, self.values_NHQd = self.keys_NHQd[pictures_n], self.values_NHQd[pictures_n]


def _heads(states_NLW: Tensor, heads: int) -> Tensor:
    return states_NLW.unflatten(-1, (heads, -1)).transpose(1, 2)


def _rest(block: Any, states_NLW: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """What a block does once it has queries, keys and values."""
    found = F.scaled_dot_product_attention(queries, keys, values, mask).transpose(1, 2).flatten(2)
    states_NLW = states_NLW + block.ls_1(block.attn.out_proj(found))
    return states_NLW + block.ls_2(block.mlp(block.ln_2(states_NLW)))


def check_blocks(path: CaptionPath) -> None:
    """Refuse a text tower whose blocks cannot be read id by id.

    Raises:
        UserError: it has blocks of another class than open_clip's default.
    """
    for block in path.half.transformer.resblocks:
        if type(block) is not ResidualAttentionBlock:
            raise UserError(
                f"model: captions are not told through blocks of the class {type(block).__name__}: leave out what "
                "text_cfg says of attention (qk_norm, scaled_cosine_attn, scale_*), or give a captioning head a causal "
                "half of its own (model.captioner.text_layers)"
            )
