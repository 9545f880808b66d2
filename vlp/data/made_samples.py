"""Stream position -> sample: its pictures, its captions and what stands beside them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import NamedTuple

import torch

from vlp.data.captions import CaptionLayers, draw, draw_more
from vlp.data.digest import hash64
from vlp.data.hard_captions import draw_hard
from vlp.data.neighbours import Neighbours
from vlp.data.options import DataOptions
from vlp.data.read_ahead import ReadAhead, Request
from vlp.data.samples import IMAGE_EXTENSIONS, BadSample
from vlp.data.shards import Shard
from vlp.data.sources import Sources
from vlp.data.store import is_remote
from vlp.data.stream import SampleOrder, sample_generator
from vlp.data.transforms import PictureFormat, train_transform
from vlp.types import Skipped, UserError

_MAX_ATTEMPTS = 100
_OF_NEIGHBOURS = 1 << 20  # attempts from here on draw neighbours, so that they change nothing for the samples
_CURES = {"unreadable shard": "check the server or the disk", "missing shard": "bring the shards back"}


class Views(NamedTuple):
    """What a batch has of each sample."""

    images: int
    texts: int
    picture_ids: bool
    hard_texts: int


class _Used(NamedTuple):
    captions: list[str]
    hard: list[str]
    picture: int  # a hash of its bytes, 0 where nobody asks


class _Sample(NamedTuple):
    used: _Used
    shard: Shard
    row: int
    layers: str | None  # folder of layers of its source
    skipped: list[Skipped]

    @property
    def key(self) -> str:
        return self.shard.key(self.row)


class Samples:
    """Stream position -> sample; a pure function, whichever process computes it."""

    def __init__(
        self,
        sources: Sources,
        order: SampleOrder,
        layers: dict[str | None, CaptionLayers],
        hard_layers: dict[str | None, CaptionLayers],
        neighbours: Neighbours | None,
        options: DataOptions,
        picture_format: PictureFormat,
        seed: int,
        views: Views,
    ) -> None:
        self._sources = sources
        self._order = order
        self._layers = layers
        self._hard_layers = hard_layers
        self._neighbours = neighbours
        self._captions = options.captions
        self._hard_captions = options.hard_captions
        self._transform = train_transform(picture_format, options.augment, options.decode)
        self._seed = seed
        self.views = views
        self._size = picture_format.size
        texts = {source.member for source in (*options.captions, *options.hard_captions)}
        self._wanted = {*IMAGE_EXTENSIONS, "txt", *texts}
        self._read_ahead_bytes = options.read_ahead_mb << 20
        self._ahead: ReadAhead | None = None

    def empty(self, rows: int, shared: bool = False, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Room for the pictures of a batch, uint8 (V, N, C, H, W), channels last in memory as they are resized.

        ``shared`` with other processes: what is written there need not be copied to them. ``size`` (height, width), to
        which `make` resizes its crops, is the model's without it.
        """
        shape = (self.views.images, rows, *(size or self._size), 3)
        if shared:  # from the start: share_memory_() would copy what is not there yet
            storage = torch.UntypedStorage._new_shared(math.prod(shape))
            images = torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
        else:
            images = torch.empty(shape, dtype=torch.uint8)
        return images.permute(0, 1, 4, 2, 3)

    def make(self, position: int, out: torch.Tensor) -> _Sample:
        """The sample, with what had to be replaced by it; the views of its picture go into ``out`` (V, C, H, W)."""
        return self._first_usable(
            ((attempt, *self._order.sample(position, attempt)) for attempt in range(_MAX_ATTEMPTS)), position, out
        )

    def make_neighbour(self, position: int, sample: _Sample, out: torch.Tensor) -> _Sample:
        """One of the neighbours of ``sample``, drawn for its ``position``; of a sample without any, one at random."""
        assert self._neighbours is not None
        names = self._neighbours.names(sample.shard, sample.row, sample.layers)
        drawn = sample_generator(self._seed, position, _OF_NEIGHBOURS).random(len(names)).argsort(kind="stable")
        found = (self._neighbours.place(names[number], sample.shard) for number in drawn)
        attempts = range(_OF_NEIGHBOURS + 1, _OF_NEIGHBOURS + 1 + _MAX_ATTEMPTS)
        at_random = (self._order.sample(position, attempt) for attempt in attempts)
        places = chain((place for place in found if place is not None), at_random)
        return self._first_usable(((n, *place) for n, place in zip(attempts, places, strict=False)), position, out)

    @property
    def rows_of_a_position(self) -> int:
        return 1 if self._neighbours is None else 2

    def _first_usable(self, places: Iterable[tuple[int, int, int]], position: int, out: torch.Tensor) -> _Sample:
        """The first of (attempt, number of the shard, row of those used in it) that can be used."""
        skipped: list[Skipped] = []
        reasons: dict[str, str] = {}  # of the last of each kind
        for attempt, number, row in places:
            try:
                shard, row_there = self._sources.row(number, row)
                members = self._read(shard, row_there, position, attempt)
                root = self._sources.entries[number].source.layers
                layered, hard = (layers[root].of(shard, row_there) for layers in (self._layers, self._hard_layers))
                used = self._use(members, layered, hard, position, attempt, out)
                return _Sample(used, shard, row_there, root, skipped)
            except BadSample as bad:
                skipped.append(Skipped(bad.kind, self._sources.where(number, row)))
                reasons[bad.kind] = "; ".join(filter(None, (skipped[-1].where, " ".join(bad.detail.split()))))
        kind, count = Counter(bad.kind for bad in skipped).most_common(1)[0]
        raise UserError(
            f"data.train: no usable sample in {_MAX_ATTEMPTS} draws, most often '{kind}' ({count} times, "
            f"such as {reasons[kind]}): {_CURES.get(kind, 'mend the shards')}"
        )

    def read_ahead(self, positions: Iterator[int]) -> None:
        """Begin to fetch the samples at ``positions``, in which order they will be made, from remote shards."""
        if any(is_remote(entry.path) for entry in self._sources.entries):
            self._ahead = ReadAhead(self._sources.store, self._requests(positions), self._read_ahead_bytes)

    def stop_reading_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _requests(self, positions: Iterator[int]) -> Iterator[Request]:
        for position in positions:
            with suppress(BadSample):  # is found again when the sample is made
                shard, row = self._sources.row(*self._order.sample(position))
                if is_remote(shard.path):
                    yield Request(position, shard.path, shard.extents(row, self._wanted))

    def _read(self, shard: Shard, row: int, position: int, attempt: int) -> dict[str, bytes]:
        if self._ahead is None or attempt or not is_remote(shard.path):
            return shard.read(row, self._wanted)
        try:
            data = self._ahead.take(position)
        except KeyError:  # it could not be asked for when its turn came
            return shard.read(row, self._wanted)
        starts = [offset for offset, _ in shard.extents(row, self._wanted)]
        return shard.members(row, self._wanted, dict(zip(starts, data, strict=True)))

    def _use(
        self,
        members: dict[str, bytes],
        layered: Mapping[str, Sequence[str]],
        hard_layered: Mapping[str, Sequence[str]],
        position: int,
        attempt: int,
        out: torch.Tensor,
    ) -> _Used:
        generator = sample_generator(self._seed, position, attempt)
        first = draw(members, self._captions, generator, layered)
        picture = next((members[extension] for extension in IMAGE_EXTENSIONS if extension in members), None)
        if picture is None:
            raise BadSample("no picture")
        self._transform(picture, generator, len(out), out)
        # After all other draws: how many captions there are changes nothing else.
        captions = draw_more(first, self.views.texts, members, self._captions, generator, layered)
        hard: list[str] = []
        if self.views.hard_texts:
            hard = draw_hard(self.views.hard_texts, captions, members, self._hard_captions, generator, hard_layered)
        identity = hash64(picture) - (1 << 63) if self.views.picture_ids else 0  # as int64 has it
        return _Used(captions, hard, identity)
