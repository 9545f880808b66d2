"""Reading ARO's COCO-Order and Flickr30k-Order: pictures with their captions, and the captions' words shuffled.

Shuffling 25,000 captions takes half a minute, so the shuffles are kept in a file beside the captions, where that can be
written; it remembers the captions it was made from, and is made anew where they are others.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlp import distributed
from vlp.data import word_order
from vlp.data.benchmark_sets import StoredFile
from vlp.data.choice_sets import ChoiceSet, Item, choice_set, read_json
from vlp.types import UserError

CAPTIONS_SOURCE = "github.com/salesforce/BLIP, as github.com/mertyg/vision-language-models-are-bows does"
PICTURES = {"coco": "COCO's pictures of 2014, val2014", "flickr30k": "Flickr30k's pictures, flickr30k-images"}
OPTIONS = ("image", "caption_options")
VERSION = 1  # of what `word_order` makes


@dataclass(frozen=True)
class Files:
    """The files of one of the two sets: captions, options given by the user, and options made from the captions."""

    folder: Path
    corpus: str

    @property
    def captions(self) -> Path:
        return self.folder / ("coco_karpathy_test.json" if self.corpus == "coco" else "flickr30k_test.json")

    @property
    def given(self) -> Path:
        return self.folder / f"{self.corpus}_order.json"

    @property
    def source(self) -> Path:
        """What is read where a directory is named."""
        return self.given if self.given.is_file() else self.captions

    @property
    def made(self) -> Path:
        return self.folder / f"{self.corpus}_order.made_by_vlp.json"


class Options(NamedTuple):
    """A picture, its caption, and each shuffle of the caption, None where there is none."""

    image: str
    caption: str
    shuffled: Sequence[str | None]


@dataclass(frozen=True)
class OrderSet:
    """Captions against their shuffles.

    Attributes:
        shuffle_of_wrong: the name of the shuffle of each false caption of all choices.
        left_out: number of shuffles that would be the caption again, so that there is nothing to choose.
    """

    found: ChoiceSet
    shuffle_of_wrong: list[str]
    left_out: int


def find(path: Path) -> list[Files]:
    """The sets that ``path`` names or holds."""
    if path.is_file():
        return [files for files in _both(path.parent) if path.name in (files.captions.name, files.given.name)]
    return [files for files in _both(path) if files.source.is_file()]


def read_order_set(path: Path) -> OrderSet:
    """The set that ``path`` names or holds: from the user's options if there are any, else from the captions."""
    sets = find(path)
    if len(sets) > 1:
        both = " or ".join(str(files.source) for files in sets)
        raise UserError(f"{path} holds the captions of two sets: name the file of one, {both}")
    (files,) = sets
    source = files.captions if path.name == files.captions.name else files.source
    options = _made(files) if source == files.captions else _given(files.given)
    left_out = 0
    items: list[Item] = []
    names: list[str] = []
    pictures: dict[str, StoredFile] = {}
    for image, caption, others in options:
        shuffled = [(name, other) for name, other in zip(_shuffles(others), others, strict=True) if other]
        kept = [(name, other) for name, other in shuffled if not word_order.same_order(caption, other)]
        left_out += len(others) - len(kept)
        if not kept:
            continue
        if image not in pictures:
            pictures[image] = _picture(files, image, source)
        items.append(Item(pictures[image], caption, [other for _, other in kept]))
        names += [name for name, _ in kept]
    if not items:
        raise UserError(f"{source} holds no caption whose words can stand in another order: copy it again")
    return OrderSet(choice_set(items), names, left_out)


def _both(folder: Path) -> list[Files]:
    return [Files(folder, corpus) for corpus in PICTURES]


def _shuffles(others: Sequence[str | None]) -> Sequence[str]:
    """Their names; those of ARO where there are as many as ARO has."""
    official = len(others) == len(word_order.SHUFFLES)
    return word_order.SHUFFLES if official else [f"option_{number}" for number in range(1, len(others) + 1)]


def _picture(files: Files, image: str, source: Path) -> StoredFile:
    path = files.folder / image
    if not path.is_file():
        raise UserError(
            f"{path} is missing, which {source} names: it is one of {PICTURES[files.corpus]}, put them there"
        )
    return StoredFile(path, str(path))


def _given(path: Path) -> list[Options]:
    content = read_json(path)
    items = content.get("items") if isinstance(content, dict) else content
    if not isinstance(items, list) or not items:
        raise UserError(f"{path} is no list of items: write [{{image, caption_options: [true, shuffled, ...]}}, ...]")
    found = []
    for number, item in enumerate(items):
        image, options = (item.get(name) for name in OPTIONS) if isinstance(item, dict) else (None, None)
        texts = options if isinstance(options, list) and len(options) > 1 else [None]
        if not isinstance(image, str) or not texts[0] or not all(isinstance(text, str | None) for text in texts):
            raise UserError(
                f"item {number} of {path} needs image and caption_options, the true caption and then shuffled ones "
                "(null where there is none): write it again"
            )
        found.append(Options(image, texts[0], texts[1:]))
    return found


def _made(files: Files) -> list[Options]:
    """The shuffles of the captions, from the file that was made of them, or made now and kept if possible."""
    content = files.captions.read_bytes()
    made_of = {
        "made_by": "vlp",
        "version": VERSION,
        "seed": word_order.SEED,
        "captions": files.captions.name,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    if files.made.is_file():
        try:
            kept = json.loads(files.made.read_text(encoding="utf-8"))
            if all(kept[name] == value for name, value in made_of.items()):
                return _given(files.made)
        except (ValueError, KeyError, TypeError):
            pass  # cut short, or not ours: it is written again
    captions = _captions(files.captions)
    raw = [word_order.cut(caption) for _, caption in captions]
    if len(raw) > 1_000:
        distributed.say(f"shuffling the words of {len(raw):,} captions of {files.captions}, once")
    options = [
        Options(image, word_order.cleaned(caption), shuffled)
        for (image, _), caption, shuffled in zip(captions, raw, word_order.shuffles(raw), strict=True)
    ]
    _keep(files.made, {**made_of, "tagger": word_order.tagger_name()}, options)
    return options


def _keep(path: Path, made_of: dict[str, Any], options: Sequence[Options]) -> None:
    items = [dict(zip(OPTIONS, (image, [caption, *shuffled]), strict=True)) for image, caption, shuffled in options]
    # Processes of several machines may share the directory.
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps({**made_of, "items": items}, ensure_ascii=False, indent=0), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        distributed.say(f"{path} cannot be written ({error.strerror}): captions are shuffled anew at every start")


def _captions(path: Path) -> list[tuple[str, str]]:
    """Name of the picture and caption, one after the other, empty ones left out."""
    items = read_json(path)
    if not isinstance(items, list) or not items:
        raise UserError(f"{path} is no list of pictures with captions: copy it again from {CAPTIONS_SOURCE}")
    found = []
    for number, item in enumerate(items):
        image, captions = (item.get("image"), item.get("caption")) if isinstance(item, dict) else (None, None)
        if (
            not isinstance(image, str)
            or not isinstance(captions, list)
            or not all(isinstance(c, str) for c in captions)
        ):
            raise UserError(f"item {number} of {path} needs image and caption: copy it again from {CAPTIONS_SOURCE}")
        found += [(image, caption) for caption in captions if word_order.cleaned(caption)]
    return found
