"""Pass one: the pictures of a shard -> features, and what tells duplicates and equal captions."""

from __future__ import annotations

import io
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data_tools._filter_fingerprints import UNREADABLE, shard_signature
from data_tools._filter_text import normalise
from data_tools._neighbours.job import Job
from data_tools._neighbours.model import NUM_DECODERS, loaded
from vlp.data.captions import SampleTexts
from vlp.data.digest import hash64
from vlp.data.index import open_shard
from vlp.data.samples import IMAGE_EXTENSIONS, BadSample, decode_image
from vlp.data.shards import LOCAL, Shard
from vlp.encoders.two_tower import TwoTower
from vlp.types import Skipped, UserError

LOOK = 4  # pixels a side of the copy that tells whether two pictures look the same
EMPTY = "empty caption"


@dataclass(frozen=True)
class Facts:
    """What is known of the samples of a shard besides their features, a row each in its order.

    A sample that cannot be used has a ``defect`` (a number in ``defects``, 0 for none) and no captions.
    """

    signature: np.ndarray
    """uint64 []: of the shard, and of where captions are taken from"""
    keys: np.ndarray
    """bytes [N]"""
    picture: np.ndarray
    """uint64 [N]: hash of the picture's bytes"""
    look: np.ndarray
    """uint8 [N, 48]: the picture at 4 x 4 pixels"""
    caption: np.ndarray
    """uint64 [captions]: hashes of the normalised captions, those of row r from first_caption[r] on"""
    first_caption: np.ndarray
    """int64 [N + 1]"""
    defect: np.ndarray
    """uint8 [N]"""
    defects: np.ndarray
    """str [K]; the first is ''"""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def usable(self) -> np.ndarray:
        """bool [N]"""
        return self.defect == 0


@dataclass(frozen=True)
class Embedded:
    """What pass one tells of a shard; ``skipped`` is what cannot be used, the first sample of each kind named."""

    num_samples: int
    num_usable: int
    signature: int
    """Of the shard and of which of its samples can be used: when this changes, neighbours are others."""
    skipped: tuple[Skipped, ...]


def embed_shard(path: str, job: Job) -> Embedded:
    """Leave features and facts of a shard in the folder of the embeddings, unless they lie there.

    Raises:
        UserError: MODEL has changed since the run began, or its features are not finite.
    """
    shard, skipped = open_shard(path)
    signature = shard_signature(shard, " ".join(job.captions))
    facts = load_facts(job.facts(path))
    if facts is None or not _is_done(facts, signature, job, path):
        features_ND, facts = embed_first(shard, len(shard), job, signature)
        _save(job.features(path), features_ND)
        _save(job.facts(path), vars(facts))
    bad = []
    for number, kind in enumerate(facts.defects[1:].tolist(), 1):
        rows = np.flatnonzero(facts.defect == number)
        bad.append(Skipped(kind, shard.where(int(rows[0])), len(rows)))
    whole = hash64(np.packbits(facts.usable).tobytes() + signature.to_bytes(8, "little"))
    return Embedded(len(shard), int(facts.usable.sum()), whole, (*skipped, *bad))


def load_facts(path: Path) -> Facts | None:
    """None where there are none, or no whole ones."""
    try:
        with np.load(path) as arrays:
            return Facts(**{name: arrays[name] for name in Facts.__dataclass_fields__})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _is_done(facts: Facts, signature: int, job: Job, path: str) -> bool:
    """A shard that could not be read is tried again."""
    if int(facts.signature) != signature or UNREADABLE in facts.defects:
        return False
    try:
        return np.load(job.features(path), mmap_mode="r").shape == (len(facts), job.dim)
    except (OSError, ValueError):
        return False


def _save(path: Path, content: Any) -> None:
    buffer = io.BytesIO()
    if isinstance(content, dict):
        np.savez(buffer, **content)
    else:
        np.save(buffer, content)
    LOCAL.write(str(path), buffer.getvalue())


@dataclass(frozen=True)
class _Sample:
    pixels: Tensor
    picture: int
    look: np.ndarray
    captions: list[int]


def embed_first(shard: Shard, number: int, job: Job, signature: int = 0) -> tuple[np.ndarray, Facts]:
    """(float16 features [N, D], facts) of the first ``number`` samples of a shard.

    Raises:
        UserError: MODEL is another one than ``job`` says, or its features are not finite.
    """
    model, weights = loaded(job.model, job.device)
    if weights != job.weights:
        raise UserError(f"{job.model} has changed since this run began: name a checkpoint that stays as it is")
    features_ND = np.zeros((number, job.dim), dtype=np.float16)
    picture, look = np.zeros(number, dtype=np.uint64), np.zeros((number, 3 * LOOK * LOOK), dtype=np.uint8)
    captions: list[list[int]] = [[] for _ in range(number)]
    defects, defect = {"": 0}, np.zeros(number, dtype=np.uint8)
    with _one_thread(model):
        for samples in _batches(shard, number, model, job):
            good = {}
            for row, sample in samples:
                if isinstance(sample, BadSample):
                    defect[row] = defects.setdefault(sample.kind, len(defects))
                    continue
                good[row] = sample.pixels
                picture[row], look[row], captions[row] = sample.picture, sample.look, sample.captions
            if good:
                features_ND[list(good)] = _features(
                    model, torch.stack(list(good.values())), shard.where(next(iter(good)))
                )
    ends = np.cumsum([0, *map(len, captions)], dtype=np.int64)
    flat = np.array([one for own in captions for one in own], dtype=np.uint64)
    made_for = np.array(signature, dtype=np.uint64)
    return features_ND, Facts(made_for, shard.keys[:number], picture, look, flat, ends, defect, np.array(list(defects)))


@contextmanager
def _one_thread(model: TwoTower) -> Iterator[None]:
    """On the CPU one a process, so that features do not depend on how many processes share the machine."""
    before = torch.get_num_threads()
    try:
        if model.device.type == "cpu":
            torch.set_num_threads(1)
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def _batches(shard: Shard, number: int, model: TwoTower, job: Job) -> Iterator[list[tuple[int, _Sample | BadSample]]]:
    """The samples in order, one batch read and decoded ahead in threads while the model is busy with another."""
    transform, wanted = model.eval_transform, {*IMAGE_EXTENSIONS, *(one.partition(".")[0] for one in job.captions)}

    def read(row: int) -> tuple[int, _Sample | BadSample]:
        try:
            members = shard.read(row, wanted)
            data = next(members[extension] for extension in IMAGE_EXTENSIONS if extension in members)
            image, texts = decode_image(data), SampleTexts(members)
            captions = {normalise(text) for source in job.captions for text in texts.of(source)} - {""}
            if not captions:
                raise BadSample(EMPTY)
            hashes = sorted(hash64(text.encode("utf-8")) for text in captions)
            return row, _Sample(transform(image), hash64(data), look_of(image), hashes)
        except BadSample as bad:
            return row, bad

    with ThreadPoolExecutor(1 if model.device.type == "cpu" else NUM_DECODERS) as pool:
        ahead: deque[list[Future[tuple[int, _Sample | BadSample]]]] = deque()
        for start in range(0, number, job.batch_size):
            ahead.append([pool.submit(read, row) for row in range(start, min(start + job.batch_size, number))])
            if len(ahead) == 2:
                yield [one.result() for one in ahead.popleft()]
        while ahead:
            yield [one.result() for one in ahead.popleft()]


def look_of(image: Image.Image) -> np.ndarray:
    """uint8 [48]: what is left of an RGB picture at 4 x 4 pixels."""
    return np.asarray(image.resize((LOOK, LOOK), Image.Resampling.BOX), dtype=np.uint8).reshape(-1)


def _features(model: TwoTower, image_NCHW: Tensor, where: str) -> np.ndarray:
    features_ND = model.encode_image(image_NCHW.to(model.device)).float()
    if not features_ND.isfinite().all():
        raise UserError(f"the model's features are not finite near {where}: its weights have diverged, take others")
    return F.normalize(features_ND, dim=1).cpu().numpy().astype(np.float16)
