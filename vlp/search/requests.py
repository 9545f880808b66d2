"""What the page asks for, checked; and the pictures that people gave it."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from vlp.options import explain
from vlp.search import directions
from vlp.search.searcher import Searcher
from vlp.types import UserError

LONGEST_TEXT = 1000
MOST_TERMS = 16
MOST_RESULTS = 384
UPLOAD_BYTES = 16 << 20
_KEPT_UPLOADS = 256

Kind = Literal["pictures", "texts"]


class RowName(BaseModel, frozen=True, extra="forbid"):
    """A row by its number; paths never come from a page."""

    kind: Kind
    number: int = Field(ge=0)


class Request(BaseModel, frozen=True, extra="forbid"):
    """A query: a text, a row or an upload, or none of them, with signed terms; without anything, some rows to see."""

    text: str | None = None
    row: RowName | None = None
    upload: str | None = None
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    weight: float = Field(default=directions.WEIGHT, ge=0, le=10, allow_inf_nan=False)
    find: Kind = "pictures"
    top: int = Field(default=24, ge=1, le=MOST_RESULTS)

    @property
    def texts(self) -> list[str]:
        return [text for text in (self.text, *self.plus, *self.minus) if text is not None]


def parsed(content: Any) -> Request:
    """
    Raises:
        UserError: it is none, or longer than it may be.
    """
    try:
        request = Request.model_validate(content)
    except ValidationError as error:
        raise explain(error, Request, "the query") from error
    for text in request.texts:
        if len(text) > LONGEST_TEXT:
            raise UserError(f"A text has {len(text):,} characters, and {LONGEST_TEXT:,} are the most: shorten it.")
        if not text.strip():
            raise UserError("A text is empty: write what to look for.")
    if len(request.plus) + len(request.minus) > MOST_TERMS:
        raise UserError(f"There are more than {MOST_TERMS} terms: remove some.")
    return request


class Uploads:
    """The features of the pictures that were given last, by a name that depends on their bytes."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher, self._lock = searcher, threading.Lock()
        self._features: OrderedDict[str, np.ndarray] = OrderedDict()

    def add(self, data: bytes) -> str:
        """
        Raises:
            UserError: it is no picture.
        """
        token = hashlib.blake2b(data, digest_size=12).hexdigest()
        feature_D = self._searcher.picture(data, "The picture")
        with self._lock:
            self._features[token] = feature_D
            while len(self._features) > _KEPT_UPLOADS:
                self._features.popitem(last=False)
        return token

    def feature(self, token: str) -> np.ndarray:
        with self._lock:
            if token not in self._features:
                raise UserError("The picture is no longer in memory: choose it again.")
            return self._features[token]


def vector(request: Request, searcher: Searcher, uploads: Uploads) -> np.ndarray | None:
    """The query of length 1; None where nothing is asked for.

    Raises:
        UserError: two things at once, a row that is not there, or terms that cancel out.
    """
    bases = [value for value in (request.text, request.row, request.upload) if value is not None]
    if len(bases) > 1:
        raise UserError("Only one of a text and a picture can be asked for: remove one, or add it as a term.")
    base_D = None
    if request.text is not None:
        base_D = searcher.texts([request.text])[0]
    elif request.row is not None:
        rows = searcher.collection.of(request.row.kind)
        if request.row.number >= len(rows):
            raise UserError(f"There are only {len(rows):,} {request.row.kind}: reload the page.")
        base_D = rows.feature(request.row.number)
    elif request.upload is not None:
        base_D = uploads.feature(request.upload)
    if not request.plus and not request.minus:
        return base_D
    sides = [searcher.texts(list(terms)) if terms else None for terms in (request.plus, request.minus)]
    return directions.moved(base_D, directions.residual(*sides), request.weight)
