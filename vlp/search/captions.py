"""The captions of one shard, beside the pictures that are read of it."""

from __future__ import annotations

from collections.abc import Mapping

from vlp.data.captions import SampleTexts
from vlp.data.samples import BadSample
from vlp.data.shards import Shard

SkippedRows = tuple[tuple[str, str, int], ...]
"""What a file of embeddings lacks: (kind, name, samples)."""


def spelled(key: str) -> str:
    """A key with the bytes that are no text written out."""
    return key.encode("utf-8", "backslashreplace").decode()


class Captions:
    """The texts of a shard's samples: kept from where the pictures are read, else read when asked for."""

    def __init__(self, shard: Shard, source: str) -> None:
        self._shard, self._source = shard, source
        self._member = source.partition(".")[0]
        self._texts: dict[int, list[str]] = {}
        self._broken: dict[int, BadSample] = {}

    def keep(self, row: int, members: Mapping[str, bytes]) -> None:
        try:
            self._texts[row] = [text for text in SampleTexts(members).of(self._source) if text]
        except BadSample as bad:
            self._texts[row], self._broken[row] = [], bad

    def of(self, row: int) -> list[str]:
        if row not in self._texts:
            try:
                self.keep(row, self._shard.read(row, [self._member]))
            except BadSample as bad:
                self._texts[row], self._broken[row] = [], bad
        return self._texts[row]

    def broken(self) -> SkippedRows:
        found = sorted(self._broken.items())
        return tuple((f"no caption: {bad.kind}", spelled(self._shard.key(row)), 1) for row, bad in found)
