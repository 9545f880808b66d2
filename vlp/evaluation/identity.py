"""What decides the figures of a model on a set: digests of the model's files, of the set's, and the options."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vlp import __version__
from vlp.encoders import source
from vlp.evaluation.results import title
from vlp.evaluation.tasks import classification
from vlp.evaluation.tasks.base import Task

MODEL_FILES = (".safetensors", ".bin", ".pt", ".pth", ".json", ".txt", ".model", ".npz")
LISTS = (".json", ".jsonl", ".txt", ".csv", ".tsv", ".npy", ".parquet", ".arrow", ".tar")  # what a set is made of


@dataclass(frozen=True)
class NamedModel:
    """A MODEL as results name it: CLIP_benchmark's ``model`` and ``pretrained``, and the digest of its files."""

    reference: str
    model: str
    pretrained: str
    digest: str

    @property
    def title(self) -> str:
        return title(self.model, self.pretrained)


def named(reference: str) -> NamedModel:
    """Find a MODEL without loading it.

    Raises:
        UserError: nothing is there; the sentence says what was looked for.
    """
    found = source.of_reference(reference)
    files = {path for path in vars(found).values() if isinstance(path, Path) and path.is_file()}
    if found.directory is not None:
        files |= {path for path in found.directory.iterdir() if path.suffix in MODEL_FILES}
    values = {name: value for name, value in vars(found).items() if isinstance(value, dict | bool)}
    digest = _digest([*_states((path.name, path) for path in files), values])
    name, _, tag = reference.partition(":")
    if found.is_tag:
        return NamedModel(reference, name, tag, digest)
    whole = reference.rstrip("/") or reference
    return NamedModel(reference, whole, "model" if found.ema is None else "ema", digest)


def made_from(model: NamedModel, set_digest: str, kind: str, section: str, options: BaseModel | None) -> dict[str, Any]:
    """Figures that were made from the same need not be computed again.

    Args:
        kind: that of the task.
        section: that of the task, "" where it has none.
        options: those of the section.
    """
    asked = {} if options is None else options.model_dump(mode="json", exclude_defaults=True, exclude={"cache"})
    scorer = getattr(options, "scorer", None)  # another model, of captions
    digest = model.digest if scorer is None else _digest([model.digest, named(scorer).digest])
    return {
        "model": digest,
        "set": set_digest,
        "task": kind,
        "options": {section: asked} if asked else {},
        "vlp": __version__,
    }


def of_set(task: Task) -> str:
    """Its texts and pictures by place, and size and time of all files that it was read from."""
    folder = task.directory if task.directory.is_dir() else task.directory.parent
    near = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix in LISTS]
    images, texts = list(task.images), list(task.texts)
    if isinstance(task, classification.Task):
        texts = [text for prompts in task.prompts.of_class for text in prompts]
        images += task.train.images if task.train is not None else []
    files = {path.resolve() for path in near} | {image.path.resolve() for image in images}
    states = _states((os.path.relpath(path, folder.resolve()), path) for path in files)
    places = [(image.name.rpartition("/")[2], image.offset, image.num_bytes) for image in images]
    return _digest([states, places, texts])


def _states(files: Iterable[tuple[str, Path]]) -> list[tuple[str, int, int]]:
    return sorted((name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
