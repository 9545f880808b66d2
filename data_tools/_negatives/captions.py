"""The captions of a shard that are to be changed, each with what else is true of its picture."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from data_tools._language_models.shards import NO_CAPTION
from data_tools._language_models.survey import LeftOut
from data_tools._negatives.base import Captioned
from vlp.data.captions import SampleTexts
from vlp.data.index import open_shard
from vlp.data.samples import BadSample
from vlp.data.shards import Shard
from vlp.types import Skipped


@dataclass(frozen=True)
class ShardCaptions:
    """``samples`` has the different captions of each row of the shard; none where there is none to be read."""

    shard: Shard
    samples: list[list[Captioned]]
    left_out: list[Skipped]

    @property
    def items(self) -> list[Captioned]:
        return [item for sample in self.samples for item in sample]


def read_captions(path: str, source: str) -> ShardCaptions:
    """Every caption that ``source`` (``txt``, ``json.FIELD``) has; of a sample the others and its ``.txt`` are true."""
    shard, defects = open_shard(path)
    found = ShardCaptions(shard, [], list(defects))
    for row in range(len(shard)):
        texts, kind = SampleTexts(shard.read(row, {"txt", "json"})), NO_CAPTION
        captions: list[str] = []
        try:
            captions = [text for text in dict.fromkeys(texts.of(source)) if text]
        except BadSample as bad:
            kind = bad.kind
        if not captions:
            found.left_out.append(Skipped(kind, shard.where(row)))
        found.samples.append(_items(captions, texts) if captions else [])
    return found


def look(path: str, source: str) -> tuple[int, LeftOut]:
    """How many captions a shard has, and which of its samples have none."""
    found = read_captions(path, source)
    return len(found.items), LeftOut.of(found.left_out)


def _items(captions: list[str], texts: SampleTexts) -> list[Captioned]:
    true, record = list(captions), {}
    with suppress(BadSample):  # it is the source itself, or not what the captions come from
        true += texts.of("txt")
    with suppress(BadSample):
        record = texts.record()
    return [
        Captioned(caption, tuple(text for text in dict.fromkeys(true) if text and text != caption), record)
        for caption in captions
    ]
