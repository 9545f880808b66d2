"""What some samples of the shards tell before training begins: columns, captions, layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from vlp.data.captions import CaptionLayers, CaptionSource, captions_of
from vlp.data.hard_captions import hard_captions_of
from vlp.data.layer_files import check_file_names, layer_columns
from vlp.data.samples import BadSample
from vlp.data.shards import Shard
from vlp.data.sources import Sources
from vlp.types import UserError

_PROBED_SHARDS = 100
_PROBED_TABLES = 2  # without an index each is a scan


def columns_of(sources: Sources) -> list[str]:
    """The extensions in some of the shards: opening the tables of all would hold up the start."""
    columns: set[str] = set()
    for number in range(min(len(sources.entries), _PROBED_TABLES)):
        with suppress(BadSample):  # counted when its samples are drawn
            columns.update(sources.shard(number).extensions)
    return sorted(columns)


class Probe(NamedTuple):
    """A sample to look at before the run, without its picture."""

    layers: str | None
    shard: Shard
    row: int
    members: dict[str, bytes]


def probes(sources: Sources) -> Iterator[Probe]:
    """Some samples of the first shard, then one of each of some others; read when asked for."""
    used = [number for number, entry in enumerate(sources.entries) if entry.used]
    places = [(used[0], row) for row in range(min(sources.entries[used[0]].used, 100))]
    for number, row in places + [(number, 0) for number in used[1:_PROBED_SHARDS]]:
        with suppress(BadSample):
            shard, row_there = sources.row(number, row)
            yield Probe(sources.entries[number].source.layers, shard, row_there, shard.read(row_there, {"txt", "json"}))


def check_several_captions(
    wanted: int, sources: Sources, captions: Sequence[CaptionSource], layers: dict[str | None, CaptionLayers]
) -> None:
    """Refuse to draw several captions where every sample looked at has one."""
    for probe in probes(sources):
        with suppress(BadSample):  # counted when it is drawn
            if len(captions_of(probe.members, captions, layers[probe.layers].of(probe.shard, probe.row))) > 1:
                return
    raise UserError(
        f"data.captions: {wanted} captions of each picture are to be compared, but no sample looked at has two that "
        "differ: add sources, or set captions: 1 in objectives"
    )


def check_hard_captions(
    wanted: int, sources: Sources, captions: Sequence[CaptionSource], layers: dict[str | None, CaptionLayers]
) -> None:
    """Refuse to draw more hard captions than any sample looked at has."""
    most = 0
    for probe in probes(sources):
        with suppress(BadSample):
            layered = layers[probe.layers].of(probe.shard, probe.row)
            most = max(most, len(hard_captions_of((), probe.members, captions, layered)))
        if most >= wanted:
            return
    raise UserError(
        f"data.hard_captions: {wanted} hard captions of each picture are to be compared, but no sample looked at has "
        f"more than {most}: set number in objectives to at most that, or write more of them"
    )


def caption_layers(
    captions: Sequence[CaptionSource], sources: Sources, key: str = "data.captions"
) -> dict[str | None, CaptionLayers]:
    """For each folder of layers what the caption sources draw from it; one of them may lack a layer, not all.

    ``key`` of the recipe is what complaints name.
    """
    paths: dict[str | None, list[str]] = {}
    for entry in sources.entries:
        paths.setdefault(entry.source.layers, []).append(entry.path)
    there = {
        root: [s for s in captions if s.layer and layer_columns(s.layer[0], of_root, root, sources.store) is not None]
        for root, of_root in paths.items()
    }
    root, of_root = next(iter(paths.items()))
    nowhere = [s for s in captions if s.layer and not any(s in found for found in there.values())]
    CaptionLayers(nowhere, of_root, root, sources.store, key=key)  # says which layers there are
    layers = {
        root: CaptionLayers(there[root], of_root, root, sources.store, sources.kept_shards, key)
        for root, of_root in paths.items()
    }
    if len(sources.entries) <= _PROBED_SHARDS:
        for root, found in layers.items():
            if root is not None:
                check_file_names(paths[root], root)
            found.check(sources.shard(i) for i, entry in enumerate(sources.entries) if entry.source.layers == root)
    return layers
