"""Changes of the captions of ``vlp data scenes``: one thing in them changed so that they are false of the picture.

What stands in the JSON of a sample tells the picture, so a change that happens to be true of it is none, also where
the caption leaves something out or is that of another picture. Captions that are no scenes have no changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any

from pydantic import Field

from data_tools._negatives import base
from data_tools._negatives.base import Captioned, Negative, Place
from data_tools._scenes_changes import changes
from data_tools._scenes_grammar import GRAMMARS, Style, phrase, read
from data_tools._scenes_record import scene_of
from data_tools._scenes_world import Scene


class Generator(base.Generator, frozen=True, extra="forbid"):
    """Single changes of a scene, in the style of the caption, so that its form gives nothing away."""

    kinds: tuple[str, ...] = Field(
        default=(), description="kinds of changes, such as 'swap attribute' 'swap relation'; all without it"
    )
    per_kind: int = Field(default=2, ge=1, description="captions of each kind, drawn by the seed")

    def negatives(self, path: str, items: Sequence[Captioned], place: Place) -> list[list[Negative]]:
        return [self._of(item, place.seed) for item in items]

    def _of(self, item: Captioned, seed: int) -> list[Negative]:
        read_as = _read(item.caption)
        if read_as is None:
            return []
        said, style, grammar = read_as
        by_kind: dict[str, list[str]] = {}
        for kind, changed in changes(said, _picture(item.record)):
            by_kind.setdefault(kind, []).append(phrase(changed, grammar, style=style))
        random = Random(f"{seed}/{item.caption}")
        return [
            Negative(text, kind)
            for kind, texts in by_kind.items()
            if not self.kinds or kind in self.kinds
            for text in random.sample(texts, min(self.per_kind, len(texts)))
        ]


def _read(caption: str) -> tuple[Scene, Style, str] | None:
    """What the caption says, which variants it takes, and in which grammar; None where it is no scene."""
    for grammar in GRAMMARS:
        with suppress(ValueError):
            return *read(caption, grammar), grammar
    return None


def _picture(record: Mapping[str, Any]) -> Scene | None:
    """The scene that the JSON of a sample tells; None where it tells none."""
    with suppress(KeyError):
        return scene_of(record)
    return None
