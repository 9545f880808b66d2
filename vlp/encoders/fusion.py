"""A small tower that reads a text together with a picture: text tokens attend to image tokens.

It serves objectives only: it is trained and saved with the run, but is no part of the exported model, nor of the
average of the weights (EMA) or the momentum twin, which are of the two towers.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn


class FusionOptions(BaseModel, frozen=True, extra="forbid"):
    """The tower that objectives read texts and pictures with together; it is not exported."""

    layers: int = Field(2, ge=1, description="of self-attention over the text and cross-attention to the picture")
    width: int = Field(256, ge=1, description="of the states")
    heads: int = Field(4, ge=1, description="of attention; a divisor of the width")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> FusionOptions:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}: change one of them")
        return self


class FusionTower(nn.Module):
    """Transformer over a summary token and the words, bidirectional, with cross-attention to the patches.

    Tokens come in the common space and of any length: a linear map and a layer norm take them to the tower's width.
    There is no dropout, so that a pair has the same states whatever else is in the batch.

    Args:
        embed_dim: of the tokens, D.
        vocab_size: ids that `words` tells apart; None for a tower without `words`, whose head is most of a small tower.
    """

    def __init__(self, options: FusionOptions, embed_dim: int, vocab_size: int | None) -> None:
        super().__init__()
        width = options.width
        self.text = nn.Sequential(nn.Linear(embed_dim, width), nn.LayerNorm(width))
        self.image = nn.Sequential(nn.Linear(embed_dim, width), nn.LayerNorm(width))
        self.summary = nn.Parameter(torch.randn(width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, options.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.match_head = nn.Linear(width, 2)
        self.words_head = nn.Linear(width, vocab_size) if vocab_size is not None else None
        for head in filter(None, (self.match_head, self.words_head)):  # at first, all answers are about as likely
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    def forward(self, text_NLD: Tensor, mask_NL: Tensor, image_NPD: Tensor) -> Tensor:
        """States of the summary and of each position of the text, N (1 + L) width.

        Positions where ``mask_NL`` is false are read by no other; their own states mean nothing.
        """
        states = torch.cat([self.summary.expand(len(text_NLD), 1, -1), self.text(text_NLD)], dim=1)
        patches = self.image(image_NPD)
        padded = nn.functional.pad(~mask_NL, (1, 0), value=False)
        for layer in self.layers:
            states = layer(states, patches, tgt_key_padding_mask=padded)
        return self.norm(states)

    def match(self, text_NLD: Tensor, mask_NL: Tensor, image_NPD: Tensor) -> Tensor:
        """Logits, N 2, of text and picture not belonging (0) and belonging (1) together."""
        return self.match_head(self(text_NLD, mask_NL, image_NPD)[:, 0])

    def words(self, text_NLD: Tensor, mask_NL: Tensor, image_NPD: Tensor, wanted_NL: Tensor) -> Tensor:
        """Logits over the ids at the positions where ``wanted_NL`` is true, row by row: (positions, vocabulary)."""
        assert self.words_head is not None
        return self.words_head(self(text_NLD, mask_NL, image_NPD)[:, 1:][wanted_NL])
