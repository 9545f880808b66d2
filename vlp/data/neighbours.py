"""Similar pictures of a sample, as ``vlp data neighbours`` found them, each read from its own shard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlp.data.captions import CaptionLayers, CaptionSource
from vlp.data.probes import caption_layers, probes
from vlp.data.shards import Shard, stem
from vlp.data.sources import Sources
from vlp.types import UserError

KEY = "data.neighbours"


class Neighbours:
    """Where the neighbours of samples lie.

    Args:
        layer: ``layer.NAME`` with ``.COLUMN`` where it has several: texts "STEM/KEY", of the neighbour's shard and its
            key in it.

    Raises:
        UserError: no such layer, shards of equal names, or no sample looked at has a neighbour among the samples used.
    """

    def __init__(self, layer: str, sources: Sources) -> None:
        self._source = CaptionSource(source=layer)
        self._sources = sources
        stems = [stem(entry.path) for entry in sources.entries]
        if len(set(stems)) < len(stems):
            twice = next(name for name in stems if stems.count(name) > 1)
            raise UserError(f"{KEY}: two shards are named {twice}, so a neighbour in it could be in either: rename one")
        self._numbers = {name: number for number, name in enumerate(stems)}
        self._layers: dict[str | None, CaptionLayers] = caption_layers([self._source], sources, KEY)
        if not any(self.of(probe.shard, probe.row, probe.layers) for probe in probes(sources)):
            raise UserError(
                f"{KEY}: no sample looked at has a neighbour in {layer} that is among those of data.train, so it would "
                "have no effect: run vlp data neighbours on the same shards, or remove it"
            )

    def of(self, shard: Shard, row: int, layers: str | None) -> list[tuple[int, int]]:
        """(shard, row of those used in it) of each neighbour that the run uses, nearest first.

        Args:
            layers: the folder of layers of the sample's source.
        """
        names: Sequence[str] = self._layers[layers].of(shard, row).get(self._source.source, ())
        places = (self._place(*name.partition("/")[::2]) for name in names)
        return [place for place in places if place is not None]

    def _place(self, name: str, key: str) -> tuple[int, int] | None:
        number = self._numbers.get(name)
        if number is None:
            return None
        row = self._sources.shard(number).row_of(key)
        used = self._sources.entries[number].rows
        if row is None or used is None:
            return None if row is None else (number, row)
        place = int(np.searchsorted(used, row))
        return (number, place) if place < len(used) and used[place] == row else None
