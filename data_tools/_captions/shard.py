"""The captions of one shard: written by the model where they are missing, kept as its layer, counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from data_tools._captions.job import COLUMNS, Job, loaded
from data_tools._models import few_threads, num_decoders
from data_tools._stats_figures import Digests, Spread
from vlp.captioning import captions_where_possible
from vlp.data.digest import hash64
from vlp.data.index import open_shard
from vlp.data.layers import LayerReader, LayerWriter
from vlp.data.samples import IMAGE_EXTENSIONS, BadSample
from vlp.data.shards import Shard
from vlp.types import Skipped, UserError

SAVED_EVERY = 500  # captions: what a kill may cost
_ALL: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Captioned:
    """What is in the layer of a shard, ``written`` of it now; ``skipped``: what has no caption, a kind each."""

    samples: int
    written: int
    captions: Digests
    words: Spread
    skipped: tuple[Skipped, ...]


def caption_shard(path: str, job: Job, first: Mapping[str, int] = _ALL, threads: int = 1) -> Captioned:
    """Write the captions that the layer of a shard lacks; samples that could not be used before are tried again.

    Args:
        first: by path, how many samples are captioned at the most, from the start of the shard on.
        threads: of the model, on the CPU.

    Raises:
        UserError: MODEL has changed since the run began, or its logits are not finite.
    """
    shard, defects = open_shard(path)
    layer = LayerReader(job.root, job.name, COLUMNS)
    captions = list(layer.columns_of(shard)["caption"])
    wanted = [row for row in range(min(first.get(path, len(shard)), len(shard))) if captions[row] is None]
    kinds: dict[str, list[int]] = {}
    written = unsaved = 0
    for row, caption in _told(shard, wanted, job, threads):
        if isinstance(caption, BadSample):
            kinds.setdefault(caption.kind, []).append(row)
        else:
            captions[row], written, unsaved = caption, written + 1, unsaved + 1
        if unsaved >= SAVED_EVERY:
            _save(shard, captions, job)
            unsaved = 0
    if unsaved or layer.defect_of(shard):
        _save(shard, captions, job)
    rows = [row for row, caption in enumerate(captions) if caption is not None]
    words = Spread()
    for row in rows:
        words.add(len(captions[row].split()))
    digests = Digests.of((row, hash64(captions[row].encode("utf-8"))) for row in rows)
    bad = [Skipped(kind, shard.where(own[0]), len(own)) for kind, own in kinds.items()]
    return Captioned(len(shard), written, digests, words, (*defects, *bad))


def _save(shard: Shard, captions: Sequence[str | None], job: Job) -> None:
    """Write the layer of the shard, as far as there are captions."""
    rows = [row for row, caption in enumerate(captions) if caption is not None]
    keys, texts = [shard.key(row) for row in rows], [captions[row] for row in rows]
    LayerWriter(job.root, job.name, job.provenance(), COLUMNS).write(shard, keys, {"caption": texts})


def _told(shard: Shard, rows: list[int], job: Job, threads: int) -> Iterator[tuple[int, str | BadSample]]:
    """(row, its caption, or why it has none) of each of ``rows``, as they come."""
    if not rows:
        return
    model, weights = loaded(job.model)
    if weights != job.weights:
        raise UserError(f"{job.model} has changed since this run began: name a checkpoint that stays as it is")

    def read(row: int) -> bytes:
        members = shard.read(row, IMAGE_EXTENSIONS)
        return next(members[extension] for extension in IMAGE_EXTENSIONS if extension in members)

    decoders = num_decoders(model, shard.path)
    with few_threads(model, threads):
        for batch in captions_where_possible(model, rows, read, job.batch_size, job.options, decoders):
            yield from batch
