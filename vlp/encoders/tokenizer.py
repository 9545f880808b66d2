"""open_clip's own byte-pair tokenizer, remembering the ids of whole words: the same ids in a fraction of the time.

No token of that tokenizer holds white space, so the ids of a cleaned text are those of its words one after
another. A word is therefore encoded once, by open_clip's code, and looked up from then on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import torch
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, SimpleTokenizer, canonicalize_text
from torch import Tensor

# ftfy and html.unescape leave these characters alone: ASCII without controls and without the & of an entity.
_PLAIN = re.compile(r"[\t\n -%'-~]*")
# What open_clip's cleaning still does to such a text, but for white space.
_CLEAN_PLAIN: dict[str, Callable[[str], str]] = {
    "lower": str.lower,
    "whitespace": str,
    "canonicalize": canonicalize_text,
}
_MAX_WORDS = 1 << 16
_MAX_LENGTH = 32
_ID_BYTES = np.dtype(np.int64).itemsize


def openclip_tokenizer(context_length: int = DEFAULT_CONTEXT_LENGTH, **arguments: Any) -> SimpleTokenizer:
    """``SimpleTokenizer(context_length=..., **arguments)``, the fast one where its ids are sure to be the same.

    Masks that shorten captions (``reduction_mask``) are random or look at the whole text, and further special
    tokens are patterns that may match anything: those stay with open_clip.
    """
    plain = not arguments.get("reduction_mask") and not arguments.get("additional_special_tokens")
    return (FastTokenizer if plain else SimpleTokenizer)(context_length=context_length, **arguments)


class _WordIds(dict[str, bytes]):
    """Cleaned word -> its ids as the bytes of int64. Memory is bounded: it starts anew when it is full."""

    def __init__(self, tokenizer: SimpleTokenizer) -> None:
        super().__init__()
        self._tokenizer = copy(tokenizer)
        self._tokenizer.clean_fn = str  # words come here cleaned, and cleaning again may change them
        self._special = tokenizer.cache
        self._tokenizer.cache = dict(self._special)

    def __missing__(self, word: str) -> bytes:
        ids = np.array(self._tokenizer.encode(word), np.int64).tobytes()
        if len(self._tokenizer.cache) > _MAX_WORDS // 4:
            self._tokenizer.cache = dict(self._special)
        if len(word) <= _MAX_LENGTH:
            if len(self) >= _MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids


class FastTokenizer(SimpleTokenizer):
    """open_clip's ``SimpleTokenizer`` (3.3.0) with the same ids for every text; arguments as there.

    ``reduction_mask`` and ``additional_special_tokens`` are not taken: see `openclip_tokenizer`.
    """

    def __init__(
        self, *, context_length: int | None = DEFAULT_CONTEXT_LENGTH, clean: str = "lower", **arguments: Any
    ) -> None:
        super().__init__(context_length=context_length, clean=clean, **arguments)
        assert self.reduction_fn is None
        assert len(self.all_special_ids) == 2, self.all_special_ids
        self._clean_plain = _CLEAN_PLAIN[clean]
        self._word_ids = _WordIds(self)
        self._start = np.int64(self.sot_token_id).tobytes()
        self._end = np.int64(self.eot_token_id).tobytes()

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        """Ids (N, L) int64: start, the text, end, zeros; a text that is too long is cut before its end token."""
        if isinstance(texts, str):
            texts = [texts]
        length = context_length or self.context_length
        assert length, "neither the tokenizer nor the call has a context_length"
        if not texts:
            return torch.zeros(0, length, dtype=torch.long)
        before_end, row = (length - 1) * _ID_BYTES, length * _ID_BYTES
        ids = self._word_ids.__getitem__
        rows = bytearray()
        for text in texts:
            clean = self._clean_plain if _PLAIN.fullmatch(text) else self.clean_fn
            start_and_text = self._start + b"".join(map(ids, clean(text).split()))
            rows += (start_and_text[:before_end] + self._end).ljust(row, b"\0")
        return torch.frombuffer(rows, dtype=torch.long).view(len(texts), length)
