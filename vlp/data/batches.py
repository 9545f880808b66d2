"""Training batches: the order, the captions and the pictures put together by worker processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vlp.data.bad_samples import BadSamples
from vlp.data.captions import check_sources
from vlp.data.made_samples import Samples, Views
from vlp.data.neighbours import KEY as NEIGHBOURS
from vlp.data.neighbours import Neighbours
from vlp.data.options import DataOptions
from vlp.data.probes import caption_layers, check_hard_captions, check_several_captions, columns_of, probes
from vlp.data.sources import open_sources
from vlp.data.store import Store, is_remote
from vlp.data.stream import batch_positions
from vlp.data.transforms import PictureFormat
from vlp.shapes import Shape
from vlp.types import Batch, Skipped, UserError

Tokenizer = Callable[..., torch.Tensor]
ShapeOf = Callable[[int], Shape]
_HARD_CAPTIONS = "data.hard_captions"
_NEIGHBOUR_TABLES = 512  # neighbours lie in any shard; of more shards than that, tables are opened again


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
        tokenizer: captions -> ids, (N, L) int64; with ``context_length=``, of that length.
        global_batch_size: samples of a batch over all ``world`` processes; `DataOptions.neighbours` brings one more row
            for each.
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
        if options.neighbours:
            sources.keep_more_tables(_NEIGHBOUR_TABLES)
            if any(is_remote(entry.path) for entry in sources.entries):
                self.notes.append(f"{NEIGHBOURS}: those in remote shards are fetched when their turn comes, one by one")
        self.notes += sources.room(options.cache)
        layers = caption_layers(options.captions, sources)
        if text_views > 1:
            check_several_captions(text_views, sources, options.captions, layers)
        hard_layers = caption_layers(options.hard_captions, sources, _HARD_CAPTIONS)
        if hard_texts:
            check_hard_captions(hard_texts, sources, options.hard_captions, hard_layers)
        views = Views(image_views, text_views, with_picture_ids, hard_texts)
        neighbours = Neighbours(options.neighbours, sources) if options.neighbours else None
        self._samples = Samples(sources, order, layers, hard_layers, neighbours, options, picture_format, seed, views)
        self._steps = partial(_Steps, self._samples, tokenizer, global_batch_size, rank, world)

    def batches(self, start_step: int, stop_step: int, shape_of: ShapeOf | None = None) -> Iterator[Batch]:
        """This process's rows of the global batches ``start_step`` to ``stop_step - 1``.

        ``shape_of`` says of each step how large its pictures and how long its texts are; without it they are the
        model's. Samples, crops and captions are the same whatever it says.
        """
        if stop_step <= start_step:
            return
        if self.workers:
            # Fast tokenizers otherwise warn about the fork; batches are parallel already.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        steps = self._steps(range(start_step, stop_step), shape_of)
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


class _Steps(Dataset):
    """Step -> this process's rows of the global batch."""

    def __init__(
        self,
        samples: Samples,
        tokenizer: Tokenizer,
        global_batch_size: int,
        rank: int,
        world: int,
        steps: range,
        shape_of: ShapeOf | None,
    ) -> None:
        self.steps = steps
        self._shape_of = shape_of
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
            per_position = self._samples.rows_of_a_position
            shape = self._shape_of(step) if self._shape_of is not None else None
            in_worker = get_worker_info() is not None
            images = self._samples.empty(len(positions) * per_position, in_worker, shape.size if shape else None)
            made = []
            for row, position in enumerate(positions):
                made.append(self._samples.make(position, images[:, row * per_position]))
                if per_position > 1:
                    made.append(self._samples.make_neighbour(position, made[-1], images[:, len(made)]))
        except UserError as error:
            return str(error)
        views = self._samples.views
        tokenize = partial(self._tokenizer, context_length=shape.text_length) if shape else self._tokenizer
        captions = [sample.used.captions for sample in made]
        hard = [[sample.used.hard[k : k + 1] for sample in made] for k in range(views.hard_texts)]
        return _Rows(
            images,
            torch.stack([tokenize([of_row[view] for of_row in captions]) for view in range(views.texts)]),
            tuple(sample.key for sample in made),
            tuple(of_row[0] for of_row in captions),
            tuple(bad for sample in made for bad in sample.skipped),
            torch.tensor([sample.used.picture for sample in made]) if views.picture_ids else None,
            torch.stack([tokenize(["".join(text) for text in of_rows]) for of_rows in hard]) if hard else None,
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
