"""The ids that begin, end and fill up a text, from the tokenizer itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from vlp.types import UserError


class SpecialTokens(NamedTuple):
    """Ids of the start and the end of a text and of what stands behind it, which may also be a word's (CLIP's "!")."""

    start: int
    end: int
    padding: int

    def lengths(self, text_NL: Tensor) -> Tensor:
        """Ids of each text up to its end, start and end included (N); all of them where a text has no end."""
        ends_NL = text_NL[:, 1:] == self.end  # from the second on: start and end may be one id
        places_N = ends_NL.int().argmax(dim=1) + 2
        return torch.where(ends_NL.any(dim=1), places_N, text_NL.shape[1])

    def told(self, text_NL: Tensor) -> Tensor:
        """Which ids a captioner tells, N (L - 1): the second to the end of each text."""
        places_L = torch.arange(1, text_NL.shape[1], device=text_NL.device)
        return places_L < self.lengths(text_NL)[:, None]


def padding_id(tokenizer: Any) -> int:
    """What an open_clip tokenizer fills texts up with; 0 where it has nothing of its own."""
    return 0 if isinstance(tokenizer, SimpleTokenizer) else int(tokenizer.tokenizer.pad_token_id or 0)


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """Those of an open_clip tokenizer.

    Raises:
        UserError: its texts have no start or no end of their own, so that nothing says where to begin or to stop.
    """
    if isinstance(tokenizer, SimpleTokenizer):
        return SpecialTokens(tokenizer.sot_token_id, tokenizer.eot_token_id, padding_id(tokenizer))
    inner, padding = tokenizer.tokenizer, padding_id(tokenizer)
    ids_NL = tokenizer(["a", "dog"])
    starts, ends = ((inner.bos_token_id, inner.cls_token_id), (inner.eos_token_id, inner.sep_token_id))
    last_N = (ids_NL != padding).sum(1) - 1
    if padding in ends:  # the end itself is the first of what texts are filled up with, behind the start
        last_N = (ids_NL[:, 1:] == padding).int().argmax(1) + 1
    found = {
        "start": next((i for i in starts if i is not None and bool((ids_NL[:, 0] == i).all())), None),
        "end": next((i for i in ends if i is not None and bool((ids_NL.gather(1, last_N[:, None]) == i).all())), None),
    }
    for name, id_ in found.items():
        if id_ is None:
            raise UserError(
                f"model: the tokenizer gives texts no {name} token, which captions need: choose another text tower"
            )
    return SpecialTokens(found["start"], found["end"], padding)  # type: ignore[arg-type]
