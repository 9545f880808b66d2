"""Embeddings with their model: texts, pictures and rows become queries, queries find rows."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from vlp import distributed
from vlp.data.samples import BadSample, decode_image
from vlp.encoders.evaluating import evaluating
from vlp.evaluation.embed import embed_texts
from vlp.search.collection import Collection, Row
from vlp.search.features import picture_features
from vlp.search.index import Index, open_index
from vlp.search.model import loaded
from vlp.types import UserError

_BATCH = 256
_KEPT_TEXTS = 1024
_MORE = " and a further word"


@dataclass(frozen=True)
class Hit:
    """A row that was found, and its cosine with the query."""

    row: Row
    score: float


class Searcher:
    """Threads may share it: the model answers one at a time.

    Args:
        directory: of the embeddings.
        model: the MODEL that made them; None for the one that they name.

    Raises:
        UserError: there are no embeddings, or the model is not there, or another one.
    """

    def __init__(self, directory: Path, model: str | None = None) -> None:
        self.collection = Collection(directory)
        name = self.collection.meta["model"]
        try:
            self.model, digest = loaded(model or name, str(distributed.device()))
        except UserError as error:
            if model is not None:
                raise
            raise UserError(f"the model of {directory} is not there ({error}): say where it is with --model") from error
        if digest != self.collection.meta["digest"]:
            other = f"{model} is not the model" if model else f"{name} is no longer the model"
            raise UserError(
                f"{other} that made {directory} (digest {digest}, not {self.collection.meta['digest']}): "
                "name that one with --model, or embed again"
            )
        self._lock, self._indices = threading.Lock(), dict[str, Index]()
        self._text = lru_cache(maxsize=_KEPT_TEXTS)(self._embed_text)

    def index(self, kind: str) -> Index:
        """The index of pictures or texts, opened when first asked for."""
        rows = self.collection.of(kind)
        with self._lock:
            if kind not in self._indices:
                self._indices[kind] = open_index(self.collection.directory, rows, self._embed)
            return self._indices[kind]

    def texts(self, texts: list[str]) -> np.ndarray:
        """fp32 features ND of length 1; those asked for last are kept."""
        return np.stack([self._text(text) for text in texts])

    def is_cut(self, text: str) -> bool:
        """Whether the model reads no more than the beginning of a text, or just all of it."""
        ids, longer = self.model.tokenizer([text, text + _MORE])
        return bool((ids == longer).all())

    @property
    def context(self) -> int:
        """How many tokens of a text the model reads."""
        return int(self.model.tokenizer(["a"]).shape[1])

    def picture(self, data: bytes, name: str) -> np.ndarray:
        """The fp32 feature D of length 1 of an encoded picture.

        Raises:
            UserError: it cannot be decoded; the message says ``name``.
        """
        return self.pictures([data], [name])[0]

    def pictures(self, encoded: list[bytes], names: list[str]) -> np.ndarray:
        """The same of several, ND."""
        pixels = []
        for data, name in zip(encoded, names, strict=True):
            try:
                pixels.append(self.model.eval_transform(decode_image(data)))
            except BadSample as bad:
                raise UserError(f"{name} cannot be used ({bad}): take another picture") from bad
        with self._lock, evaluating(self.model):
            batches = [pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)]
            return np.concatenate([picture_features(self.model, torch.stack(batch)) for batch in batches])

    def find(self, query_D: np.ndarray, kind: str, top: int, leave_out: int | None = None) -> list[Hit]:
        """The ``top`` rows of a kind nearest to a query, without the row ``leave_out``."""
        rows = self.collection.of(kind)
        found = self.index(kind).nearest(query_D, top + (leave_out is not None))
        return [Hit(rows[number], score) for number, score in found if number != leave_out][:top]

    def _embed_text(self, text: str) -> np.ndarray:
        with self._lock:
            return np.asarray(self._embed([text])[0])

    def _embed(self, texts: list[str]) -> np.ndarray:
        return np.asarray(embed_texts(self.model, texts, _BATCH).cpu().numpy())
