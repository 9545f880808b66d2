"""What every generator of hard captions takes and gives: captions in, captions that are false of the picture out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Negative:
    """A caption that is nearly right; ``kind`` says what was changed, such as "swap nouns" or "replace colour"."""

    text: str
    kind: str


@dataclass(frozen=True)
class Captioned:
    """A caption to change, and what else is known of its picture.

    Attributes:
        caption: never empty.
        others: further true captions of the same picture.
        record: the JSON of the sample.
    """

    caption: str
    others: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where hard captions are written: the layer ``name`` under ``root`` (None: beside the shards), and the seed."""

    name: str
    root: str | None = None
    seed: int = 0


class Generator(BaseModel, ABC, frozen=True, extra="forbid"):
    """Changes captions; its fields are its options, each a flag of ``vlp data negatives``."""

    def identity(self) -> dict[str, Any]:
        """What its texts depend on, for the record that the layer keeps."""
        return self.model_dump(mode="json")

    def prepare(self, paths: Sequence[str], caption: str, place: Place) -> None:
        """What has to be done once for all shards ``paths``, before `negatives` is asked in other processes.

        Args:
            caption: the source of the captions, ``txt`` or ``json.FIELD``.

        Raises:
            UserError: a package or a model is missing.
        """

    @abstractmethod
    def negatives(self, path: str, items: Sequence[Captioned], place: Place) -> list[list[Negative]]:
        """Hard captions for each of the ``items`` of the shard ``path``, in their order; empty where none is possible.

        What is random is a function of the seed and the caption, so a caption gets the same ones in any shard. They
        need not be checked: identical, true, paraphrased and broken ones are rejected, and counted, afterwards.
        """
