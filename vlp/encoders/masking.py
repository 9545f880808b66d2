"""Texts with some of their words hidden, for an objective that finds them again.

A word is one id between the start and the end of a text. Hidden ids become one mask id: that of the tokenizer where it
has one, otherwise its id for the start of a text. CLIP's vocabulary has no mask. Its start stands inside no caption
that does not spell it out, the tower knows it, and the end, where the tower pools, keeps the larger id. Its padding
would not do: 0 is the id of the exclamation mark.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer
from torch import Tensor

from vlp import draws
from vlp.types import UserError

NOT_HIDDEN = -100


class Masking:
    """Hides a share of the words of each text, at least one where there are words.

    Of n words, n x share are hidden, rounded up or down at random so that the mean is right (but for texts so short
    that it is less than one). Ids for unknown words stay: there is nothing to find. Which words is a function of the
    seed and the text alone, so neither the number of processes nor that of micro-batches matters. Unlike BERT, no
    hidden word is kept or replaced by another one.

    Args:
        tokenizer: open_clip's, as `vlp.encoders.text_tower.tokenizer` gives it.

    Raises:
        UserError: the tokenizer has no id to hide words behind.
    """

    def __init__(self, tokenizer: Any, share: float) -> None:
        self._share = share
        if isinstance(tokenizer, HFTokenizer):
            inner = tokenizer.tokenizer
            self._special: list[int] | None = list(inner.all_special_ids)
            candidates = [inner.mask_token_id, inner.bos_token_id, inner.cls_token_id, inner.unk_token_id]
            usable = [
                id_ for id_ in candidates if id_ is not None and id_ not in (inner.pad_token_id, inner.eos_token_id)
            ]
            if not usable:
                raise UserError(
                    "objective 'masked_words': the tokenizer has no mask, start or unknown token to hide words behind: "
                    "choose another text tower"
                )
            self.mask_id = int(usable[0])
        else:
            self._special = None
            self.mask_id = int(tokenizer.sot_token_id)

    def words(self, text_NL: Tensor) -> Tensor:
        """Where the ids of words are, NL."""
        if self._special is not None:
            return ~torch.isin(text_NL, torch.tensor(self._special, device=text_NL.device))
        places_L = torch.arange(text_NL.shape[1], device=text_NL.device)
        return (places_L > 0) & (places_L < text_NL.argmax(dim=1, keepdim=True))  # the end has the largest id

    def __call__(self, text_NL: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """The ids with the hidden ones replaced, and the hidden ones with `NOT_HIDDEN` elsewhere, both NL."""
        words_NL, identity_N1 = self.words(text_NL), draws.identities(text_NL)[:, None]
        places_L = torch.arange(text_NL.shape[1], device=text_NL.device)
        random_NL = draws.uniforms(seed, identity_N1, places_L)
        wanted_N1 = words_NL.sum(1, keepdim=True) * self._share + draws.uniforms(seed, identity_N1, -1)
        order_NL = random_NL.masked_fill(~words_NL, 2.0).argsort(dim=1).argsort(dim=1)
        hidden_NL = words_NL & (order_NL < wanted_N1.floor().clamp(min=1))
        return text_NL.masked_fill(hidden_NL, self.mask_id), text_NL.masked_fill(~hidden_NL, NOT_HIDDEN)
