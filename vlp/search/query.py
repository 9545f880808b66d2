"""A query as people give it on the command line -> its vector, and the words that tell it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlp.data.picture_files import find_pictures
from vlp.data.samples import BadSample
from vlp.search import directions
from vlp.search.parts import is_texts, texts_in
from vlp.search.searcher import Searcher
from vlp.types import UserError


@dataclass(frozen=True)
class Query:
    """A text or a picture (or neither), moved from some terms and sets towards others.

    ``towards`` and ``away`` name files of texts, a line or a value each, or folders of pictures.
    """

    text: str | None = None
    image: str | None = None
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    towards: str | None = None
    away: str | None = None
    weight: float = directions.WEIGHT

    def check(self, weight_given: bool = False) -> None:
        """
        Raises:
            UserError: nothing is asked for, too much at once, or an option has no effect.
        """
        if self.text is not None and self.image is not None:
            raise UserError("both a text and --image are given: ask for one, and add the text with --plus")
        if any(not text.strip() for text in self.texts):
            raise UserError("a text of the query is empty: write what to look for")
        if self.image is not None and Path(self.image).expanduser().is_dir():
            raise UserError(f"--image {self.image} is a folder: name a picture, or give the folder to --towards")
        if not (self.text or self.image or self.moves):
            raise UserError("nothing is asked for: give a text, --image, --plus or --serve")
        if weight_given and not (self.moves and (self.text or self.image)):
            raise UserError(
                "--weight has no effect without both: a text or --image, and --plus, --minus, --towards or --away-from"
            )

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(text for text in (self.text, *self.plus, *self.minus) if text is not None)

    @property
    def moves(self) -> bool:
        return bool(self.plus or self.minus or self.towards or self.away)

    def vector(self, searcher: Searcher) -> np.ndarray:
        """
        Raises:
            UserError: a file of the query cannot be used, or its terms cancel out.
        """
        base_D = None
        if self.text is not None:
            base_D = searcher.texts([self.text])[0]
        elif self.image is not None:
            base_D = _pictures(searcher, self.image)[0]
        if not self.moves:
            return directions.moved(base_D, None)
        towards_ND = _side(searcher, self.plus, self.towards)
        away_ND = _side(searcher, self.minus, self.away)
        return directions.moved(base_D, directions.residual(towards_ND, away_ND), self.weight)

    def told(self) -> str:
        """The query as a line."""
        sets = [(sign, Path(name).name) for sign, name in (("+", self.towards), ("−", self.away)) if name]
        terms = [*(("+", t) for t in self.plus), *(("−", t) for t in self.minus), *sets]
        base = [text for text in (self.text, self.image) if text]
        return " ".join([*base, *(f"{sign} {text}" for sign, text in terms)])


def _side(searcher: Searcher, terms: tuple[str, ...], file: str | None) -> np.ndarray | None:
    found = [searcher.texts(list(terms))] if terms else []
    if file is not None:
        is_set = is_texts(file)
        found.append(searcher.texts([t for t in texts_in(file) if t]) if is_set else _pictures(searcher, file))
    return np.concatenate(found) if found else None


def _pictures(searcher: Searcher, name: str) -> np.ndarray:
    if not Path(name).expanduser().exists():
        raise UserError(f"{name} does not exist: check the path")
    pictures = find_pictures([name])
    try:
        return searcher.pictures([one.read() for one in pictures], [one.name for one in pictures])
    except BadSample as bad:
        raise UserError(f"{name} cannot be used ({bad}): check the file") from bad
