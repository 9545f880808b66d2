"""Captions of other pictures: no hard captions, but the control that brings as many further columns as they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from pydantic import Field

from data_tools._negatives import base
from data_tools._negatives.base import Captioned, Negative, Place

if TYPE_CHECKING:
    from data_tools._negatives.judge import Verdict

_TRUE = frozenset({"empty", "identical", "other_caption"})


class Generator(base.Generator, frozen=True, extra="forbid"):
    """Captions of other samples of the same shard, drawn by the seed and the caption."""

    number: int = Field(default=2, ge=1, description="captions for each")

    def negatives(self, path: str, items: Sequence[Captioned], place: Place) -> list[list[Negative]]:
        captions = list(dict.fromkeys(item.caption for item in items))
        return [
            [
                Negative(captions[row], "random caption")
                for row in Random(f"{place.seed}/{item.caption}").sample(
                    range(len(captions)), min(self.number + 1, len(captions))
                )
                if captions[row] != item.caption
            ][: self.number]
            for item in items
        ]

    def judge(self, items: Sequence[Captioned], negatives: Sequence[Sequence[Negative]]) -> list[list[Verdict]]:
        """As they are no changes, only what is a true caption of the picture is rejected."""
        judged = super().judge(items, negatives)
        return [[one if one.reason in _TRUE else replace(one, reason="", detail="") for one in own] for own in judged]
