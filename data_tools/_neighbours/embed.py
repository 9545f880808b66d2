"""Pass one: the pictures of a shard -> features, and what tells duplicates and equal captions."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data_tools._filter_fingerprints import UNREADABLE, shard_signature
from data_tools._filter_text import normalise
from data_tools._models import few_threads, num_decoders
from data_tools._neighbours import facts
from data_tools._neighbours.facts import LOOK, Captions, Embedded, Pictures
from data_tools._neighbours.job import Job
from data_tools._neighbours.model import loaded
from vlp.data.ahead import batches_ahead
from vlp.data.captions import SampleTexts
from vlp.data.digest import hash64
from vlp.data.index import open_shard
from vlp.data.samples import IMAGE_EXTENSIONS, BadSample, decode_image
from vlp.data.shards import LOCAL, Shard
from vlp.encoders.two_tower import TwoTower
from vlp.types import Skipped, UserError

EMPTY = "empty caption"


def embed_shard(path: str, job: Job) -> Embedded:
    """Leave features and facts of a shard in the folder of the embeddings, unless they lie there.

    Raises:
        UserError: MODEL has changed since the run began, its features are not finite, or a key is no text.
    """
    shard, skipped = open_shard(path)
    _check_keys(shard)
    pictures, captions = _done(shard, job)
    if pictures is None:
        features_ND, pictures, captions = embed_first(shard, len(shard), job)
        buffer = io.BytesIO()
        np.save(buffer, features_ND)
        LOCAL.write(str(job.features(path)), buffer.getvalue())
        facts.save(job.captions_of(path), captions)
        facts.save(job.pictures(path), pictures)
    elif captions is None:
        captions = _captions(shard, job)
        facts.save(job.captions_of(path), captions)
    usable = facts.usable(pictures, captions)
    signature = np.packbits(usable).tobytes() + pictures.signature.tobytes() + captions.signature.tobytes()
    return Embedded(len(shard), int(usable.sum()), hash64(signature), (*skipped, *_defects(shard, pictures, captions)))


def _check_keys(shard: Shard) -> None:
    """Neighbours are named by text."""
    try:
        b"".join(shard.keys.tolist()).decode("utf-8")
    except UnicodeDecodeError as error:
        bad = next(key for key in shard.keys.tolist() if key.decode("utf-8", "ignore").encode() != key)
        raise UserError(f"{shard.path}: the key {bad!r} is not UTF-8, so no layer can name it: rename it") from error


def _done(shard: Shard, job: Job) -> tuple[Pictures | None, Captions | None]:
    """What a run before this one left; a shard that could not be read is tried again."""
    pictures = facts.load(job.pictures(shard.path), Pictures)
    captions = facts.load(job.captions_of(shard.path), Captions)
    if pictures and (int(pictures.signature) != shard_signature(shard, "") or UNREADABLE in pictures.defects):
        pictures = None
    if captions and (int(captions.signature) != _signature(shard, job) or UNREADABLE in captions.defects):
        captions = None
    try:
        whole = np.load(job.features(shard.path), mmap_mode="r").shape == (len(shard), job.dim)
    except (OSError, ValueError):
        whole = False
    return pictures if whole else None, captions


def _signature(shard: Shard, job: Job) -> int:
    return shard_signature(shard, " ".join(job.captions))


def _defects(shard: Shard, pictures: Pictures, captions: Captions) -> Iterator[Skipped]:
    """A sample counts once, for its picture first."""
    for found, among in ((pictures, pictures.defect >= 0), (captions, pictures.defect == 0)):
        for number, kind in enumerate(found.defects[1:].tolist(), 1):
            rows = np.flatnonzero((found.defect == number) & among)
            if len(rows):
                yield Skipped(kind, shard.where(int(rows[0])), len(rows))


@dataclass(frozen=True)
class _Picture:
    pixels: Tensor
    digest: int
    look: np.ndarray


_Read = tuple[int, "_Picture | BadSample", "list[int] | BadSample"]
"""The row of a sample, its picture, and the hashes of its captions."""


def embed_first(shard: Shard, number: int, job: Job) -> tuple[np.ndarray, Pictures, Captions]:
    """(float16 features [N, D], facts) of the first ``number`` samples of a shard.

    Raises:
        UserError: MODEL is another one than ``job`` says, or its features are not finite.
    """
    model, weights = loaded(job.model, job.device)
    if weights != job.weights:
        raise UserError(f"{job.model} has changed since this run began: name a checkpoint that stays as it is")
    features_ND = np.zeros((number, job.dim), dtype=np.float16)
    digests, looks = np.zeros(number, dtype=np.uint64), np.zeros((number, 3 * LOOK * LOOK), dtype=np.uint8)
    kinds, captions = [""] * number, list[list[int] | BadSample]()
    with few_threads(model):
        for batch in _batches(shard, number, model, job):
            rows, pixels = [], []
            for row, picture, own in batch:
                captions.append(own)
                if isinstance(picture, BadSample):
                    kinds[row] = picture.kind
                    continue
                digests[row], looks[row] = picture.digest, picture.look
                rows.append(row)
                pixels.append(picture.pixels)
            if rows:
                features_ND[rows] = _features(model, torch.stack(pixels), shard.where(rows[0]))
    signature = np.array(shard_signature(shard, ""), dtype=np.uint64)
    pictures = Pictures(signature, shard.keys[:number], digests, looks, *facts.numbered(kinds))
    return features_ND, pictures, Captions.of(_signature(shard, job), captions)


def _batches(shard: Shard, number: int, model: TwoTower, job: Job) -> Iterator[list[_Read]]:
    """The samples in order, one batch read and decoded ahead in threads while the model is busy with another."""
    transform = model.eval_transform
    wanted = {*IMAGE_EXTENSIONS, *_caption_members(job)}

    def read(row: int) -> _Read:
        try:
            members = shard.read(row, wanted)
        except BadSample as bad:
            return row, bad, bad
        captions = _hashes(members, job)
        try:
            data = next(members[extension] for extension in IMAGE_EXTENSIONS if extension in members)
            image = decode_image(data)
            return row, _Picture(transform(image), hash64(data), look_of(image)), captions
        except BadSample as bad:
            return row, bad, captions

    return batches_ahead(read, range(number), job.batch_size, num_decoders(model, shard.path))


def look_of(image: Image.Image) -> np.ndarray:
    """uint8 [48]: what is left of an RGB picture at 4 x 4 pixels."""
    return np.asarray(image.resize((LOOK, LOOK), Image.Resampling.BOX), dtype=np.uint8).reshape(-1)


def _features(model: TwoTower, image_NCHW: Tensor, where: str) -> np.ndarray:
    features_ND = model.encode_image(image_NCHW.to(model.device)).float()
    if not features_ND.isfinite().all():
        raise UserError(f"the model's features are not finite near {where}: its weights have diverged, take others")
    return F.normalize(features_ND, dim=1).cpu().numpy().astype(np.float16)


def _captions(shard: Shard, job: Job) -> Captions:
    """Read anew, without the pictures: they are taken from elsewhere than in the run before."""

    def read(row: int) -> list[int] | BadSample:
        try:
            return _hashes(shard.read(row, _caption_members(job)), job)
        except BadSample as bad:
            return bad

    return Captions.of(_signature(shard, job), map(read, range(len(shard))))


def _caption_members(job: Job) -> set[str]:
    return {source.partition(".")[0] for source in job.captions}


def _hashes(members: Mapping[str, bytes], job: Job) -> list[int] | BadSample:
    texts = SampleTexts(members)
    try:
        captions = {normalise(text) for source in job.captions for text in texts.of(source)} - {""}
    except BadSample as bad:
        return bad
    return sorted(hash64(text.encode("utf-8")) for text in captions) or BadSample(EMPTY)
