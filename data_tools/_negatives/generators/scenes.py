"""Changes of the captions of ``vlp data scenes``: one thing in them changed so that they are false of the picture.

What stands in the JSON of a sample tells the picture, so a change that happens to be true of it is none, also where
the caption leaves something out or is that of another picture. Captions that are no scenes have no changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from pydantic import Field

from data_tools._negatives import base
from data_tools._negatives.base import Captioned, Negative, Place
from data_tools._scenes_changes import changes
from data_tools._scenes_grammar import GRAMMARS, parse, phrase
from data_tools._scenes_world import Scene, Thing


class Generator(base.Generator, frozen=True, extra="forbid"):
    """Single changes of a scene, phrased as the caption is."""

    kinds: tuple[str, ...] = Field(
        default=(), description="kinds of changes, such as 'swap attribute' 'swap relation'; all without it"
    )
    per_kind: int = Field(default=2, ge=1, description="captions of each kind, drawn by the seed")

    def negatives(self, path: str, items: Sequence[Captioned], place: Place) -> list[list[Negative]]:
        return [self._of(item, place.seed) for item in items]

    def _of(self, item: Captioned, seed: int) -> list[Negative]:
        said, grammar = _scene(item.caption)
        if said is None:
            return []
        by_kind: dict[str, list[str]] = {}
        for kind, changed in changes(said, _picture(item.record)):
            by_kind.setdefault(kind, []).append(phrase(changed, grammar))
        random = Random(f"{seed}/{item.caption}")
        return [
            Negative(text, kind)
            for kind, texts in by_kind.items()
            if not self.kinds or kind in self.kinds
            for text in random.sample(texts, min(self.per_kind, len(texts)))
        ]


def _scene(caption: str) -> tuple[Scene | None, str]:
    for grammar in GRAMMARS:
        try:
            return parse(caption, grammar), grammar
        except ValueError:
            continue
    return None, ""


def _picture(record: Mapping[str, Any]) -> Scene | None:
    """The scene that the JSON of a sample tells; None where it tells none."""
    if "objects" not in record or "relations" not in record:
        return None
    things = (Thing(o["shape"], o["colour"], o["size"], o["texture"]) for o in record["objects"])
    return Scene(tuple(things), tuple(record["relations"]), record.get("mark"))
