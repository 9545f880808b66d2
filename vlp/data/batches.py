"""Training batches: the order, the captions and the pictures put together by worker processes."""

from __future__ import annotations

import math
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vlp.data.bad_samples import BadSamples
from vlp.data.cache import CacheOptions
from vlp.data.captions import CaptionLayers, CaptionSource, CaptionSources, check_sources, draw, draw_more
from vlp.data.digest import hash64
from vlp.data.hard_captions import draw_hard
from vlp.data.probes import caption_layers, check_several_captions, columns_of, probes
from vlp.data.read_ahead import ReadAhead, Request
from vlp.data.samples import IMAGE_EXTENSIONS, BadSample
from vlp.data.shards import Shard
from vlp.data.sources import Source, Sources, open_sources
from vlp.data.store import Store, is_remote
from vlp.data.stream import SampleOrder, batch_positions, sample_generator
from vlp.data.transforms import AugmentOptions, PictureFormat, train_transform
from vlp.types import Batch, Skipped, UserError

Tokenizer = Callable[[list[str]], torch.Tensor]
_MAX_ATTEMPTS = 100
_HARD_CAPTIONS = "data.hard_captions"
_CURES = {"unreadable shard": "check the server or the disk", "missing shard": "bring the shards back"}


class DataOptions(BaseModel, frozen=True, extra="forbid"):
    """What is trained on, and which text and crop of it."""

    train: str | list[str | Source] = Field(
        description="tar shards: a tar, a directory, a glob, a brace pattern, a URL, `pipe:COMMAND`, or several; "
        "or sources `{shards, weight, replacement, index, layers}`"
    )
    captions: CaptionSources = Field(
        default=[CaptionSource(source="txt")], min_length=1, description="texts of which one is drawn for each sample"
    )
    hard_captions: list[CaptionSource] = Field(
        default=[],
        description="captions that are nearly right but false of the picture, for the objective hard_negatives: "
        "`[{source: layer.negatives.negatives}]` of `vlp data negatives`; of several sources drawn by their weights",
    )
    filter: str | None = Field(
        default=None, description="samples to keep, by layers: `aesthetic > 5 and clip_score > 0.28`"
    )
    decode: Literal["exact", "fast"] = Field(
        default="exact", description="exact: as Pillow's bicubic; fast: JPEGs are decoded near the size of the crop"
    )
    augment: AugmentOptions = AugmentOptions()
    workers: int = Field(default=2, ge=0, description="processes of each rank that decode pictures; 0: none")
    shuffle_window: int = Field(default=10_000, ge=1, description="samples that are shuffled together, of all streams")
    shuffle_streams: int = Field(
        default=16, ge=1, description="places of the data set that a batch mixes, each with its share of the window"
    )
    max_bad_fraction: float = Field(
        default=0.01, ge=0, le=1, description="share of unusable samples beyond which the run ends"
    )
    cache: CacheOptions = CacheOptions()
    read_ahead_mb: int = Field(default=256, ge=1, description="megabytes that a worker reads ahead of remote shards")

    @property
    def sources(self) -> list[Source]:
        """`train` as sources; plain names make one."""
        entries = [self.train] if isinstance(self.train, str) else self.train
        plain = [entry for entry in entries if isinstance(entry, str)]
        given = [entry for entry in entries if isinstance(entry, Source)]
        return [*([Source(shards=plain)] if plain or not given else []), *given]


class _Rows(NamedTuple):
    """The fields of a Batch, in a type that the loader can pin."""

    image_VNCHW: torch.Tensor
    text_VNL: torch.Tensor
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    picture_N: torch.Tensor | None
    hard_text_KNL: torch.Tensor | None
    hard_mask_KN: torch.Tensor | None


class TrainingData:
    """The endless stream of training batches of one process.

    Args:
        tokenizer: captions -> ids, (N, L) int64.
        global_batch_size: rows of a batch over all ``world`` processes.
        seed: with the step, all that the batches depend on besides the shards and the options.
        image_views: crops of each picture, for objectives that compare several.
        text_views: captions of each picture, different ones where it has as many.
        with_picture_ids: whether batches tell which of their pictures are equal.
        hard_texts: hard captions of each picture, of `DataOptions.hard_captions`.

    Raises:
        UserError: shards missing or unusable, a caption source without effect, several captions wanted where there is
            one, a batch that does not fit.
    """

    def __init__(
        self,
        options: DataOptions,
        picture_format: PictureFormat,
        tokenizer: Tokenizer,
        global_batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        image_views: int = 1,
        text_views: int = 1,
        with_picture_ids: bool = False,
        hard_texts: int = 0,
    ) -> None:
        sources = open_sources(options.sources, options.filter, Store(options.cache))
        self.defects, self.notes = sources.defects, sources.notes
        self.num_shards = len(sources.entries)
        self.num_samples = sources.num_samples
        self.digest = sources.digest()
        self.workers = options.workers
        _check_batch_size(global_batch_size, self.num_samples, world)
        bad = BadSamples(options.max_bad_fraction, self.num_samples)
        bad.add(self.defects, seen=self.num_samples)
        bad.check()
        self.columns = columns_of(sources)
        check_sources((members for *_, members in probes(sources)), options.captions)
        check_sources((members for *_, members in probes(sources)), options.hard_captions, _HARD_CAPTIONS)
        order = sources.order(seed, options.shuffle_window, options.shuffle_streams)
        self.notes += sources.room(options.cache)
        layers = caption_layers(options.captions, sources)
        if text_views > 1:
            check_several_captions(text_views, sources, options.captions, layers)
        hard_layers = caption_layers(options.hard_captions, sources, _HARD_CAPTIONS)
        views = _Views(image_views, text_views, with_picture_ids, hard_texts)
        self._samples = _Samples(sources, order, layers, hard_layers, options, picture_format, seed, views)
        self._steps = partial(_Steps, self._samples, tokenizer, global_batch_size, rank, world)

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """This process's rows of the global batches ``start_step`` to ``stop_step - 1``."""
        if stop_step <= start_step:
            return
        if self.workers:
            # Fast tokenizers otherwise warn about the fork; batches are parallel already.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        steps = self._steps(range(start_step, stop_step))
        loader = DataLoader(
            steps,
            batch_size=None,
            sampler=steps.steps,
            num_workers=min(self.workers, len(steps.steps)),
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or it would draw a seed from the generator of the training
            worker_init_fn=_leave_signals_to_the_trainer,
        )
        iterator = iter(loader)
        workers = getattr(iterator, "_workers", [])
        kill_workers = Finalize(None, _kill, args=(workers,), exitpriority=100)
        try:
            for rows in iterator:
                if isinstance(rows, str):
                    raise UserError(rows)
                # Pinning makes lists of tuples.
                yield Batch(
                    rows.image_VNCHW,
                    rows.text_VNL,
                    tuple(rows.keys),
                    tuple(rows.captions),
                    tuple(rows.skipped),
                    *rows[5:],
                )
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise UserError(
                f"data.workers: a worker process died, mostly for want of memory ({error}): have fewer "
                "or give the container more shared memory (docker run --shm-size)"
            ) from error
        finally:
            self._samples.stop_reading_ahead()
            if workers:  # a traceback may keep the iterator alive, and its workers with it
                iterator._shutdown_workers()  # type: ignore[attr-defined]
            kill_workers()

    def defects_by_kind(self) -> list[str]:
        """A line a kind of what the index had to leave out, with an example."""
        counts = BadSamples(1, self.num_samples)
        counts.add(self.defects, seen=self.num_samples)
        return counts.summary()

    def sheet(self, num: int) -> list[tuple[torch.Tensor, str, str]]:
        """(uint8 CHW, caption, key) of the first ``num`` samples drawn, as the model sees them."""
        num = min(num, self.num_samples)
        images = self._samples.empty(num)
        made = [self._samples.make(position, images[:, position]) for position in range(num)]
        return [(images[0, row], sample.used.captions[0], sample.key) for row, sample in enumerate(made)]


class _Views(NamedTuple):
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
    key: str
    skipped: list[Skipped]


class _Samples:
    """Stream position -> sample; a pure function, whichever process computes it."""

    def __init__(
        self,
        sources: Sources,
        order: SampleOrder,
        layers: dict[str | None, CaptionLayers],
        hard_layers: dict[str | None, CaptionLayers],
        options: DataOptions,
        picture_format: PictureFormat,
        seed: int,
        views: _Views,
    ) -> None:
        self._sources = sources
        self._order = order
        self._layers = layers
        self._hard_layers = hard_layers
        self._captions = options.captions
        self._hard_captions = options.hard_captions
        self._transform = train_transform(picture_format, options.augment, options.decode)
        self._seed = seed
        self.views = views
        self._shape = (views.images, 3, *picture_format.size)
        texts = {source.member for source in (*options.captions, *options.hard_captions)}
        self._wanted = {*IMAGE_EXTENSIONS, "txt", *texts}
        self._read_ahead_bytes = options.read_ahead_mb << 20
        self._ahead: ReadAhead | None = None

    def empty(self, rows: int, shared: bool = False) -> torch.Tensor:
        """Room for the pictures of a batch, uint8 (V, N, C, H, W), channels last in memory as they are resized.

        ``shared`` with other processes: what is written there need not be copied to them.
        """
        views, channels, height, width = self._shape
        shape = (views, rows, height, width, channels)
        if shared:  # from the start: share_memory_() would copy what is not there yet
            storage = torch.UntypedStorage._new_shared(math.prod(shape))
            images = torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
        else:
            images = torch.empty(shape, dtype=torch.uint8)
        return images.permute(0, 1, 4, 2, 3)

    def make(self, position: int, out: torch.Tensor) -> _Sample:
        """The sample, with what had to be replaced by it; the views of its picture go into ``out`` (V, C, H, W)."""
        skipped: list[Skipped] = []
        reasons: dict[str, str] = {}  # of the last of each kind
        for attempt in range(_MAX_ATTEMPTS):
            number, row = self._order.sample(position, attempt)
            try:
                shard, row_there = self._sources.row(number, row)
                members = self._read(shard, row_there, position, attempt)
                root = self._sources.entries[number].source.layers
                layered, hard = (layers[root].of(shard, row_there) for layers in (self._layers, self._hard_layers))
                used = self._use(members, layered, hard, position, attempt, out)
                return _Sample(used, shard.key(row_there), skipped)
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


class _Steps(Dataset):
    """Step -> this process's rows of the global batch."""

    def __init__(
        self, samples: _Samples, tokenizer: Tokenizer, global_batch_size: int, rank: int, world: int, steps: range
    ) -> None:
        self.steps = steps
        self._samples = samples
        self._tokenizer = tokenizer
        self._global_batch_size = global_batch_size
        self._rank = rank
        self._world = world
        self._reads_ahead = False

    def __getitem__(self, step: int) -> _Rows | str:
        """A user's mistake comes back as its sentence: raised in a worker, it would come in a traceback."""
        try:
            if not self._reads_ahead:
                self._reads_ahead = True
                self._samples.read_ahead(self._to_come(step))
            positions = self._positions(step)
            images = self._samples.empty(len(positions), shared=get_worker_info() is not None)
            made = [self._samples.make(position, images[:, row]) for row, position in enumerate(positions)]
        except UserError as error:
            return str(error)
        views = self._samples.views
        captions = [sample.used.captions for sample in made]
        hard = [[sample.used.hard[k : k + 1] for sample in made] for k in range(views.hard_texts)]
        return _Rows(
            images,
            torch.stack([self._tokenizer([of_row[view] for of_row in captions]) for view in range(views.texts)]),
            tuple(sample.key for sample in made),
            tuple(of_row[0] for of_row in captions),
            tuple(bad for sample in made for bad in sample.skipped),
            torch.tensor([sample.used.picture for sample in made]) if views.picture_ids else None,
            torch.stack([self._tokenizer(["".join(text) for text in of_rows]) for of_rows in hard]) if hard else None,
            torch.tensor([[bool(text) for text in of_rows] for of_rows in hard]) if hard else None,
        )

    def _positions(self, step: int) -> range:
        return batch_positions(step, self._global_batch_size, self._rank, self._world)

    def _to_come(self, step: int) -> Iterator[int]:
        """The positions of ``step`` and of the later ones that the same worker makes."""
        worker = get_worker_info()
        for later in range(step, self.steps.stop, worker.num_workers if worker else 1):
            yield from self._positions(later)


def _check_batch_size(global_batch_size: int, num_samples: int, world: int) -> None:
    if global_batch_size < 1 or global_batch_size % world:
        raise UserError(
            f"train.global_batch_size {global_batch_size} cannot be shared by {world} processes: "
            f"choose a multiple of {world}"
        )
    if global_batch_size > num_samples:
        raise UserError(
            f"train.global_batch_size {global_batch_size} exceeds the data set of {num_samples} samples: "
            "lower it, or add shards to data.train"
        )


def _unchanged(rows: Any) -> Any:
    return rows


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group; workers live on until the trainer has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _kill(workers: Sequence[BaseProcess]) -> None:
    """Workers ignore SIGTERM, with which multiprocessing would end them at the exit of the main process."""
    for worker in workers:
        worker.kill()
