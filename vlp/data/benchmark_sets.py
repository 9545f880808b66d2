"""Reading evaluation sets: stored pictures, and CLIP_benchmark's webdataset layouts.

A set with classes is `ClassificationSet`, whatever its layout; other layouts have files of their own beside this one.

An evaluation set must be whole, or its figures cannot be compared: anything missing or damaged raises a
UserError that names it. Memory holds the places of the pictures; each is read and decoded when asked for.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlp.data.ahead import batches_ahead
from vlp.data.samples import BadSample, decode_image
from vlp.types import UserError

PICTURE_EXTENSIONS = (
    "webp",
    "png",
    "jpg",
    "jpeg",
)  # the order in which CLIP_benchmark looks for a sample's picture
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
TAR_BLOCK = 512
DECODERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class StoredFile:
    """``num_bytes`` bytes at ``offset`` of ``path``: in a tar, or a whole file (``num_bytes`` -1)."""

    path: Path
    name: str
    offset: int = 0
    num_bytes: int = -1

    def read(self) -> bytes:
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self.offset)
                return stream.read(self.num_bytes)
        except OSError as error:
            raise UserError(
                f"{self.name} cannot be read ({error.strerror}): an evaluation set must be whole, mend or remove it"
            ) from error

    def load(self) -> Image.Image:
        """The RGB picture, transparency laid on white. Raises UserError when it cannot be decoded."""
        try:
            return decode_image(self.read())
        except BadSample as error:
            raise UserError(
                f"{self.name} cannot be used ({error}): an evaluation set must be whole, replace the picture"
            ) from error


def decoded(
    images: Sequence[StoredFile], transform: Callable[[Image.Image], Tensor], batch_size: int
) -> Iterator[Tensor]:
    """Batches NCHW, one of them decoded ahead in threads while the model is busy with the other."""
    for batch in batches_ahead(lambda image: transform(image.load()), images, batch_size, DECODERS):
        yield torch.stack(batch)


@dataclass(frozen=True)
class RetrievalSet:
    """Pictures with one or more captions each; ``image_of_text[t]`` is the index of caption t's picture."""

    images: list[StoredFile]
    texts: list[str]
    image_of_text: list[int]


@dataclass(frozen=True)
class ClassificationSet:
    """Pictures with classes.

    Attributes:
        labels: the number of each picture's class (N), or which of the classes it shows (boolean NC).
        classnames: what the set calls its classes, one after the other; words, or the ids of WordNet.
        templates: prompts that hold ``{c}`` where the class name goes; none where the set brings none.
        named_by: where the class names stand, for people.
    """

    images: list[StoredFile]
    labels: Tensor
    classnames: list[str]
    templates: list[str]
    named_by: str = "classnames.txt"

    @property
    def is_multilabel(self) -> bool:
        return self.labels.ndim == 2


def is_benchmark_directory(directory: Path) -> bool:
    """Whether ``directory`` has CLIP_benchmark's webdataset layout, be it complete or not."""
    return any((directory / name).exists() for name in ("dataset_type.txt", "classnames.txt", "test/nshards.txt"))


def dataset_type(directory: Path) -> str:
    """What ``dataset_type.txt`` says; CLIP_benchmark takes a set without that file for classification."""
    path = directory / "dataset_type.txt"
    return _text(StoredFile(path, str(path))).strip().lower() if path.exists() else "classification"


def read_retrieval_set(directory: Path) -> RetrievalSet:
    """The set of ``directory/test/*.tar``, whose samples are a picture and a ``txt`` with one caption a line.

    Empty lines are no captions.
    """
    images: list[StoredFile] = []
    texts: list[str] = []
    image_of_text: list[int] = []
    for key, members in _samples(directory):
        captions = [line for line in _text(_member(key, members, "txt")).splitlines() if line.strip()]
        if not captions:
            raise UserError(f"{key}.txt holds no caption: write one a line, or leave the sample out")
        image_of_text += [len(images)] * len(captions)
        images.append(_picture(key, members))
        texts += captions
    return RetrievalSet(images, texts, image_of_text)


def read_classification_set(directory: Path, split: str = "test") -> ClassificationSet:
    """The set of ``directory/SPLIT/*.tar``, whose samples are a picture and a ``cls`` with the class index.

    Where ``dataset_type.txt`` says ``multilabel``, there is a ``npy`` with a 0 or 1 for each class instead.
    """
    kind = dataset_type(directory)
    if kind not in ("classification", "multilabel"):
        raise UserError(
            f"{directory}/dataset_type.txt says '{kind}': only 'retrieval', 'classification' and 'multilabel' are "
            "supported"
        )
    classnames = read_lines(directory / "classnames.txt", "the class names, one a line")
    templates = read_templates(directory)
    read, extension = (_classes_shown, "npy") if kind == "multilabel" else (_class_index, "cls")
    images: list[StoredFile] = []
    labels: list[Tensor] = []
    for key, members in _samples(directory, split):
        labels.append(read(_member(key, members, extension), directory, len(classnames)))
        images.append(_picture(key, members))
    return ClassificationSet(images, torch.stack(labels), classnames, templates)


def read_metadata(directory: Path) -> Tensor:
    """The numbers in the ``npy`` beside each picture of ``directory/test/*.tar`` (N x fields), in their order.

    They say where and when a picture was taken, as DataComp keeps the sets of WILDS.
    """
    rows = []
    for key, members in _samples(directory):
        if "npy" not in members:
            raise UserError(f"{key} has no .npy that tells its group: copy the set from DataComp's hub again")
        rows.append(torch.from_numpy(np.atleast_1d(_array(members["npy"])).astype(np.int64)))
    if len({row.shape for row in rows}) > 1:
        raise UserError(f"the .npy in {directory}/test have different numbers of fields: write the set again")
    return torch.stack(rows)


def read_templates(directory: Path) -> list[str]:
    """Those of ``zeroshot_classification_templates.txt``; none where there is no such file."""
    path = directory / TEMPLATES_FILE
    if not path.exists():
        return []
    templates = read_lines(path, "the prompts, one a line, such as 'a photo of a {c}.'")
    for template in templates:
        if "{c}" not in template:
            raise UserError(f"template '{template}' in {path} lacks {{c}}: put {{c}} where the class name goes")
    return templates


def _class_index(file: StoredFile, directory: Path, num_classes: int) -> Tensor:
    label = _text(file).strip()
    if not label.isdecimal() or int(label) >= num_classes:
        raise UserError(
            f"{file.name} says '{label}', but {directory}/classnames.txt has {num_classes} names: "
            f"write a number from 0 to {num_classes - 1}, or add the missing names"
        )
    return torch.tensor(int(label))


def _classes_shown(file: StoredFile, directory: Path, num_classes: int) -> Tensor:
    shown = _array(file)
    if shown.shape != (num_classes,) or not np.isin(shown, (0, 1)).all():
        raise UserError(
            f"{file.name} must hold a 0 or 1 for each of the {num_classes} names of {directory}/classnames.txt, "
            f"but its shape is {shown.shape}{'' if shown.shape != (num_classes,) else ' with other numbers'}"
        )
    return torch.from_numpy(shown.astype(bool))


def _array(file: StoredFile) -> np.ndarray:
    try:
        return np.load(io.BytesIO(file.read()), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{file.name} is no array of numpy ({error}): write the set again") from error


def _samples(directory: Path, split: str = "test") -> Iterator[tuple[str, dict[str, StoredFile]]]:
    """``TAR: KEY`` and the members by extension, in the order of CLIP_benchmark's reader."""
    count = directory / split / "nshards.txt"
    text = read_lines(count, "the number of tars")[0]
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"{count} says '{text}': write the number of tars in {count.parent}, at least 1")
    for shard in range(int(text)):
        yield from _tar_samples(count.parent / f"{shard}.tar")


def _tar_samples(path: Path) -> Iterator[tuple[str, dict[str, StoredFile]]]:
    samples: dict[str, dict[str, StoredFile]] = {}
    for member in _tar_members(path):
        match = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]*)", member.name)
        if not match:
            continue  # webdataset, too, passes over names that are not KEY.EXTENSION
        key, extension = match[1], match[2].lower()
        members = samples.setdefault(f"{path}: {key}", {})
        if extension in members:
            raise UserError(f"{path} holds {member.name} twice: keys must be unique, write the set again")
        members[extension] = StoredFile(path, f"{path}: {member.name}", member.offset_data, member.size)
    if not samples:
        raise UserError(f"{path} holds no samples: write the set again")
    yield from samples.items()


def _tar_members(path: Path) -> list[tarfile.TarInfo]:
    if not path.is_file():
        raise UserError(
            f"{path} is missing, though nshards.txt counts it: copy it or correct {path.parent}/nshards.txt"
        )
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a whole tar ({error}): copy it again") from error
    # tarfile takes a tar that was cut inside a header for complete; the block of zeros at the end tells.
    if members:
        last = members[-1]
        end = last.offset_data + -(-last.size // TAR_BLOCK) * TAR_BLOCK
        if StoredFile(path, "", end, TAR_BLOCK).read() != bytes(TAR_BLOCK):
            raise UserError(f"{path} was cut short after {last.name}: copy it again")
    return [member for member in members if member.isfile()]


def _member(key: str, members: dict[str, StoredFile], extension: str) -> StoredFile:
    if extension not in members:
        needed = {"txt": "captions (.txt)", "cls": "a class index (.cls)", "npy": "row of classes (.npy)"}[extension]
        found = ", ".join(sorted(members))
        raise UserError(f"{key} has no {needed}, only {found}: every sample needs them, write the set again")
    return members[extension]


def _picture(key: str, members: dict[str, StoredFile]) -> StoredFile:
    for extension in PICTURE_EXTENSIONS:
        if extension in members:
            return members[extension]
    raise UserError(f"{key} has no picture: add a .png, .jpg, .jpeg or .webp, or leave the sample out")


def _text(file: StoredFile) -> str:
    try:
        return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file.name} is not UTF-8 text: write it again in UTF-8") from error


def read_lines(path: Path, content: str) -> list[str]:
    """The lines of ``path``, which holds ``content`` and must have no empty one."""
    if not path.is_file():
        raise UserError(f"{path} is missing: CLIP_benchmark's layout keeps {content} there")
    lines = [line.strip() for line in _text(StoredFile(path, str(path))).splitlines()]
    if not lines or not all(lines):
        raise UserError(f"{path} is empty or has an empty line: it must hold {content}")
    return lines
