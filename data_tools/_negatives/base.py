"""What every generator of hard captions takes and gives: captions in, captions that are false of the picture out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from data_tools._map_shards import Means
from vlp.types import UserError

if TYPE_CHECKING:
    from data_tools._negatives.judge import Verdict


@dataclass(frozen=True)
class Negative:
    """A caption that is nearly right; ``kind`` says what was changed, such as "swap nouns" or "replace colour"."""

    text: str
    kind: str
    problem: str = ""
    """Why its generator has no text here, such as a server's refusal."""


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
    """Where hard captions are written: the layer ``name`` under ``root`` (None: beside the shards), the seed, and what
    does the work."""

    name: str
    root: str | None = None
    seed: int = 0
    means: Means = field(default_factory=Means)


class Unanswered(Exception):
    """Some ``texts`` of a shard are still to be written, so it has no layer yet."""

    def __init__(self, texts: int) -> None:
        super().__init__(texts)
        self.texts = texts


class Generator(BaseModel, ABC, frozen=True, extra="forbid"):
    """Changes captions; its fields are its options, each a flag of ``vlp data negatives``."""

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def reasons(self) -> Mapping[str, str]:
        """Rules of its own: name -> what it rejects."""
        return {}

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

    def asked(self, caption: str | None, seed: int) -> dict[str, Any] | None:
        """What a model is asked, also for ``caption``, as the sheet shows it; None where no model is asked."""
        return None

    def estimate(self, paths: Sequence[str], caption: str, place: Place) -> list[str]:
        """What `prepare` will cost, for a terminal.

        Raises:
            UserError: nothing that takes an estimate.
        """
        raise UserError(f"--dry-run has no effect on --generator {self.name}: no model writes for it")

    @abstractmethod
    def negatives(self, path: str, items: Sequence[Captioned], place: Place) -> list[list[Negative]]:
        """Hard captions for each of the ``items`` of the shard ``path``, in their order; empty where none is possible.

        What is random is a function of the seed and the caption, so a caption gets the same ones in any shard. They
        need not be checked: identical, true, paraphrased and broken ones are rejected, and counted, afterwards.

        Raises:
            Unanswered: what `prepare` had to bring is not all there.
        """

    def state(self, path: str, place: Place) -> str:
        """What the texts for a shard depend on besides its captions, the options and the seed."""
        return ""

    def judge(self, items: Sequence[Captioned], negatives: Sequence[Sequence[Negative]]) -> list[list[Verdict]]:
        """A verdict for each text, by the rules for all generators and those of its own."""
        from data_tools._negatives.judge import judge

        return [judge(item, own) for item, own in zip(items, negatives, strict=True)]
