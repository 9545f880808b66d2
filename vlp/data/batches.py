"""Training batches: the order, the captions and the pictures put together by worker processes."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch.utils.data import DataLoader, Dataset

from vlp.data.bad_samples import BadSamples
from vlp.data.captions import CaptionSource, check_sources, draw
from vlp.data.samples import IMAGE_EXTENSIONS, BadSample, decode_image
from vlp.data.shards import Shard, find_shards, index_shards
from vlp.data.stream import Order, batch_positions, sample_generator
from vlp.data.transforms import AugmentOptions, PictureFormat, draw_ground, train_transform
from vlp.types import Batch, Skipped, UserError

Tokenizer = Callable[[list[str]], torch.Tensor]
_MAX_ATTEMPTS = 100


class DataOptions(BaseModel, frozen=True, extra="forbid"):
    """What is trained on, and which text and crop of it."""

    train: str | list[str] = Field(description="tar shards: a tar, a directory, a glob, a brace pattern, or several")
    captions: list[CaptionSource] = Field(
        default=[CaptionSource(source="txt")], min_length=1, description="texts of which one is drawn for each sample"
    )
    augment: AugmentOptions = AugmentOptions()
    workers: int = Field(default=2, ge=0, description="processes of each rank that decode pictures; 0: none")
    shuffle_window: int = Field(default=10_000, ge=1, description="samples that are shuffled together")
    max_bad_fraction: float = Field(
        default=0.01, ge=0, le=1, description="share of unusable samples beyond which the run ends"
    )


class _Rows(NamedTuple):
    """The fields of a Batch, in a type that the loader can pin."""

    image_NCHW: torch.Tensor
    text_NL: torch.Tensor
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    skipped: tuple[Skipped, ...]


class TrainingData:
    """The endless stream of training batches of one process.

    Args:
        tokenizer: captions -> ids, (N, L) int64.
        global_batch_size: rows of a batch over all ``world`` processes.
        seed: with the step, all that the batches depend on besides the shards and the options.

    Raises:
        UserError: shards missing or unusable, a caption source without effect, a batch that does not fit.
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
    ) -> None:
        shards, self.defects = index_shards(find_shards(options.train))
        self.num_shards = len(shards)
        self.num_samples = sum(map(len, shards))
        self.columns = sorted({extension for shard in shards for extension in shard.extensions})
        self.workers = options.workers
        _check_batch_size(global_batch_size, self.num_samples, world)
        bad = BadSamples(options.max_bad_fraction, self.num_samples)
        bad.add(self.defects, seen=self.num_samples)
        bad.check()
        check_sources(_probes(shards), options.captions)
        order = Order([len(shard) for shard in shards], seed, options.shuffle_window)
        self._samples = _Samples(shards, order, options, picture_format, seed)
        self._batches = _Steps(self._samples, tokenizer, global_batch_size, rank, world)

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """This process's rows of the global batches ``start_step`` to ``stop_step - 1``."""
        if stop_step <= start_step:
            return
        if self.workers:
            # Fast tokenizers otherwise warn about the fork; batches are parallel already.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=range(start_step, stop_step),
            num_workers=min(self.workers, stop_step - start_step),
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
                yield Batch(*rows)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise UserError(
                f"data.workers: a worker process died, mostly for want of memory ({error}): have fewer "
                "or give the container more shared memory (docker run --shm-size)"
            ) from error
        finally:
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
        made = (self._samples.make(position) for position in range(min(num, self.num_samples)))
        return [(image, caption, key) for image, caption, key, _ in made]


class _Samples:
    """Stream position -> sample; a pure function, whichever process computes it."""

    def __init__(
        self,
        shards: Sequence[Shard],
        order: Order,
        options: DataOptions,
        picture_format: PictureFormat,
        seed: int,
    ) -> None:
        self._shards = shards
        self._order = order
        self._captions = options.captions
        self._augment = options.augment
        self._transform = train_transform(picture_format, options.augment)
        self._seed = seed
        self._wanted = {*IMAGE_EXTENSIONS, "txt", *(source.member for source in options.captions)}

    def make(self, position: int) -> tuple[torch.Tensor, str, str, list[Skipped]]:
        """(uint8 CHW, caption, key, what had to be replaced by it)."""
        skipped: list[Skipped] = []
        place = position
        for attempt in range(_MAX_ATTEMPTS):
            shard, row = self._order.sample(place)
            try:
                image, caption = self._use(self._shards[shard].read(row, self._wanted), position, attempt)
                return image, caption, self._shards[shard].key(row), skipped
            except BadSample as bad:
                skipped.append(Skipped(bad.kind, self._shards[shard].where(row)))
                place = self._order.replacement(position, attempt + 1)
        kind, count = Counter(bad.kind for bad in skipped).most_common(1)[0]
        raise UserError(
            f"data.train: no usable sample in {_MAX_ATTEMPTS} draws, most often '{kind}' ({count} times, "
            f"such as {next(bad.where for bad in skipped if bad.kind == kind)}): mend the shards"
        )

    def _use(self, members: dict[str, bytes], position: int, attempt: int) -> tuple[torch.Tensor, str]:
        generator = sample_generator(self._seed, position, attempt)
        caption = draw(members, self._captions, generator)
        picture = next(members[extension] for extension in IMAGE_EXTENSIONS if extension in members)
        image = decode_image(picture, draw_ground(self._augment, generator))
        return self._transform(image, generator), caption


class _Steps(Dataset):
    """Step -> this process's rows of the global batch."""

    def __init__(self, samples: _Samples, tokenizer: Tokenizer, global_batch_size: int, rank: int, world: int) -> None:
        self._samples = samples
        self._tokenizer = tokenizer
        self._global_batch_size = global_batch_size
        self._rank = rank
        self._world = world

    def __getitem__(self, step: int) -> _Rows | str:
        """A user's mistake comes back as its sentence: raised in a worker, it would come in a traceback."""
        try:
            positions = batch_positions(step, self._global_batch_size, self._rank, self._world)
            images, captions, keys, skipped = zip(*map(self._samples.make, positions), strict=True)
        except UserError as error:
            return str(error)
        return _Rows(
            torch.stack(images),
            self._tokenizer(list(captions)),
            keys,
            captions,
            tuple(bad for several in skipped for bad in several),
        )


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


def _probes(shards: Sequence[Shard]) -> Iterator[dict[str, bytes]]:
    """Some samples of the first shard, then one of each other."""
    of_first = [(shards[0], row) for row in range(min(len(shards[0]), 100))]
    for shard, row in of_first + [(shard, 0) for shard in shards[1:]]:
        try:
            members = shard.read(row, {"txt", "json"})
        except BadSample:  # counted when it is drawn
            continue
        yield members


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
