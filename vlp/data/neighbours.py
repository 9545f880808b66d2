"""Similar pictures of a sample, as ``vlp data neighbours`` found them, each read from its own shard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlp.data.captions import CaptionLayers, CaptionSource
from vlp.data.probes import caption_layers, probes
from vlp.data.shards import Shard, folder, stem
from vlp.data.sources import Sources
from vlp.types import UserError

KEY = "data.neighbours"


class Neighbours:
    """Where the neighbours of samples lie.

    Args:
        layer: ``layer.NAME`` with ``.COLUMN`` where it has several: texts "STEM/KEY", of the neighbour's shard and its
            key in it.

    Raises:
        UserError: no such layer, or no sample looked at has a neighbour among the samples used.
    """

    def __init__(self, layer: str, sources: Sources) -> None:
        self._source = CaptionSource(source=layer)
        self._sources = sources
        self._numbers: dict[str, list[int]] = {}
        for number, entry in enumerate(sources.entries):
            self._numbers.setdefault(stem(entry.path), []).append(number)
        self._layers: dict[str | None, CaptionLayers] = caption_layers([self._source], sources, KEY)
        if not any(self.place(name, p.shard) for p in probes(sources) for name in self.names(p.shard, p.row, p.layers)):
            raise UserError(
                f"{KEY}: no sample looked at has a neighbour in {layer} that is among those of data.train, so it would "
                "have no effect: run vlp data neighbours on the same shards, or remove it"
            )

    def names(self, shard: Shard, row: int, layers: str | None) -> Sequence[str]:
        """Those of the neighbours of a sample, nearest first; ``layers`` is the folder of layers of its source."""
        return self._layers[layers].of(shard, row).get(self._source.source, ())

    def place(self, name: str, shard: Shard) -> tuple[int, int] | None:
        """(number of the shard, row of those used in it) of the neighbour ``name`` of a sample of ``shard``.

        Of several shards of one name it is in the one beside ``shard``. None if the run does not use it.
        """
        named, _, key = name.partition("/")
        numbers = self._numbers.get(named, [])
        if len(numbers) > 1:
            beside = folder(shard.path)
            numbers = [number for number in numbers if folder(self._sources.entries[number].path) == beside]
        if not numbers:
            return None
        row = self._sources.shard(numbers[0]).row_of(key)
        used = self._sources.entries[numbers[0]].rows
        if row is None or used is None:
            return None if row is None else (numbers[0], row)
        place = int(np.searchsorted(used, row))
        return (numbers[0], place) if place < len(used) and used[place] == row else None
