"""The data sheet: the figures of all shards put together, and the samples that are shown."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from data_tools._stats_figures import Digests, Figures, Repeats, ordered, repeats
from data_tools._stats_shard import SURE, UNSURE, ShardFigures, read_sample
from data_tools._verify_sample import SampleCheck
from vlp.data.captions import SampleTexts
from vlp.data.index import open_shard
from vlp.data.layer_files import layer_path, list_layers
from vlp.data.samples import IMAGE_EXTENSIONS, decode_image
from vlp.data.shards import LOCAL, Shard

KIND, VERSION = "vlp data sheet", 1
NUM_CAPTIONS = 20  # most frequent ones shown
NUM_GROUPS = 8  # of pictures that look alike
NUM_ALIKE = 6  # pictures shown of such a group
THUMBNAIL = 144  # pixels of the longer side
NOT_COUNTED_LOOKS = "not counted: pip install 'vlp[stats]' brings ImageHash"
NOT_COUNTED_LANGUAGES = "not counted: pip install 'vlp[stats]' brings py3langid"


@dataclass
class DataSet:
    """Everything that was counted; positions run over the items of all shards in order."""

    paths: Sequence[str]
    captions_from: Sequence[str]
    figures: Figures = field(default_factory=Figures)
    pictures: list[Digests] = field(default_factory=list)
    looks: list[Digests] | None = field(default_factory=list)
    captions: list[Digests] = field(default_factory=list)

    def add(self, shard: ShardFigures) -> None:
        self.figures += shard.figures
        self.pictures.append(shard.pictures)
        self.captions.append(shard.captions)
        if shard.looks is None or self.looks is None:
            self.looks = None  # a machine of the cluster without ImageHash: no count is better than a part of one
        else:
            self.looks.append(shard.looks)

    def name(self, number: int, key: str) -> str:
        """How the sheet names a sample: the path goes as far as shards differ."""
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in self.paths])
        return f"{os.path.relpath(self.paths[number], folder)}: {key}"


def data_sheet(data: DataSet, name: str, num_shown: int, seed: int) -> dict[str, Any]:
    """The whole sheet as JSON; the same data and seed give the same sheet."""
    figures = data.figures
    shown = _Shown(data)
    sample = shown.drawn(num_shown, seed)
    duplicates = _duplicates(data, shown if num_shown else None)
    return {
        "kind": KIND,
        "version": VERSION,
        "name": name,
        "captions_from": list(data.captions_from),
        "shards": len(data.paths),
        "samples": figures.num_samples,
        "bytes": figures.num_bytes,
        "members": ordered(figures.table("members")),
        "pictures": {
            "number": figures.table("formats").total(),
            **{key: figures.spread(key) for key in ("width", "height", "aspect")},
            "bytes": figures.spread("picture_bytes"),
            "formats": ordered(figures.table("formats")),
            "modes": ordered(figures.table("modes")),
            "traits": ordered(figures.table("traits")),
        },
        "captions": _captions(data, shown),
        "duplicates": duplicates,
        "languages": _languages(figures),
        "fields": _fields(figures),
        "layers": _layers(data.paths),
        "defects": {kind: {"number": n, "example": figures.examples[kind]}
                    for kind, n in ordered(figures.table("defects")).items()},
        "sheet": sample,
        "thumbnails": shown.thumbnails,
    }  # fmt: skip


def _captions(data: DataSet, shown: _Shown) -> dict[str, Any]:
    found = repeats(_joined(data.captions), NUM_CAPTIONS)
    return {
        "number": found.number,
        "words": data.figures.spread("words"),
        "characters": data.figures.spread("characters"),
        **_repeated(found),
        "most_frequent": [
            {"caption": shown.caption(position), "number": number} for number, position in found.groups
        ],
    }  # fmt: skip


def _repeated(found: Repeats) -> dict[str, int]:
    return {"distinct": found.distinct, "repeated": found.in_groups}


def _duplicates(data: DataSet, shown: _Shown | None) -> dict[str, Any]:
    """Pictures with the same bytes, and those with the same perceptual hash, which those are among."""
    found: dict[str, Any] = {}
    for name, digests in (("bytes", data.pictures), ("look", data.looks)):
        if digests is None:
            found[name] = NOT_COUNTED_LOOKS
            continue
        values = _joined(digests)
        counted = repeats(values, NUM_GROUPS)
        groups = []
        for number, position in counted.groups if shown else ():
            places = np.flatnonzero(values == values[position])[:NUM_ALIKE]
            groups.append({"number": number, "samples": [shown.picture(digests, int(p)) for p in places]})  # type: ignore[union-attr]
        found[name] = {"number": counted.number, **_repeated(counted), "groups": groups}
    return found


def _languages(figures: Figures) -> dict[str, Any] | str:
    """Captions by language where the detector is sure, and how often it is, by the length of the caption."""
    if "characters" in figures.spreads and not figures.table("languages"):
        return NOT_COUNTED_LANGUAGES
    table, lengths = figures.table("languages"), figures.table("language_lengths")
    return {
        "sure_from": SURE,
        "sure": {name: number for name, number in ordered(table).items() if name != UNSURE},
        "unsure": table[UNSURE],
        "by_length": {
            name: {"number": lengths[name, True] + lengths[name, False], "sure": lengths[name, True]}
            for name in sorted({name for name, _ in lengths})
        },
    }


def _fields(figures: Figures) -> list[dict[str, Any]]:
    """JSON fields by how many samples have a value (not null) in them."""
    types: dict[str, dict[str, int]] = {}
    for (name, kind), number in figures.table("json").items():
        types.setdefault(name, {})[kind] = number
    found = [
        {"name": name, "samples": sum(n for kind, n in kinds.items() if kind != "null"), "types": ordered(kinds)}
        for name, kinds in types.items()
    ]
    return sorted(found, key=lambda one: (-int(str(one["samples"])), str(one["name"])))


def _layers(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Layers beside the shards, and how many shards have a file of each."""
    found = []
    for name in list_layers(path for path in paths if not path.startswith("pipe:")):
        shards = sum(
            LOCAL.exists(layer_path(path, name), optional=True) for path in paths if not path.startswith("pipe:")
        )
        found.append({"name": name, "shards": shards})
    return found


def _joined(digests: Sequence[Digests]) -> np.ndarray:
    return np.concatenate([one.values for one in digests])


class _Shown:
    """Reads again the few samples that are shown; ``thumbnails`` are data URIs by sample."""

    def __init__(self, data: DataSet) -> None:
        self._data = data
        self._open: tuple[int, Shard] | None = None
        self.thumbnails: dict[str, str] = {}

    def drawn(self, number: int, seed: int) -> list[dict[str, Any]]:
        """Usable pictures drawn evenly without replacement, in the order of the shards."""
        pictures = self._data.pictures
        total = sum(len(one.rows) for one in pictures)
        drawn = np.random.default_rng(seed).choice(total, min(number, total), replace=False)
        return [self.picture(pictures, int(position)) for position in sorted(drawn)]

    def picture(self, digests: Sequence[Digests], position: int) -> dict[str, Any]:
        number, index = self._place(digests, position)
        row = int(digests[number].rows[index])
        shard, check = self._read(number, row)
        assert check.image is not None
        name = self._data.name(number, shard.key(row))
        if name not in self.thumbnails:
            self.thumbnails[name] = thumbnail(check.image)
        caption = check.captions[0] if check.captions else ""
        return {"sample": name, "caption": caption, "width": check.image.width, "height": check.image.height}

    def caption(self, position: int) -> str:
        number, index = self._place(self._data.captions, position)
        rows = self._data.captions[number].rows
        _, check = self._read(number, int(rows[index]))
        return check.captions[index - int(np.searchsorted(rows, rows[index]))]

    def _place(self, digests: Sequence[Digests], position: int) -> tuple[int, int]:
        ends = np.cumsum([len(one.rows) for one in digests])
        number = int(np.searchsorted(ends, position, side="right"))
        return number, position - int(ends[number] - len(digests[number].rows))

    def _read(self, number: int, row: int) -> tuple[Shard, SampleCheck]:
        if self._open is None or self._open[0] != number:
            self._open = number, open_shard(self._data.paths[number])[0]
        shard = self._open[1]
        return shard, read_sample(shard, row, self._data.captions_from)


def sample_shown(shard: Shard, row: int, captions_from: Sequence[str]) -> dict[str, Any]:
    """What a sheet shows of a sample whose picture can be decoded: its first caption, a thumbnail, its size."""
    members = shard.read(row, shard.extensions)
    image = decode_image(next(members[extension] for extension in IMAGE_EXTENSIONS if extension in members))
    texts = SampleTexts(members)
    return {
        "key": shard.key(row),
        "shard": shard.path.rpartition("/")[2],
        "caption": next((text for source in captions_from for text in texts.of(source) if text), ""),
        "thumbnail": thumbnail(image),
        "width": image.width,
        "height": image.height,
    }


def thumbnail(image: Image.Image) -> str:
    """A data URI: WebP of at most `THUMBNAIL` pixels a side, lossless where nothing was reduced."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", lossless=max(image.size) <= 64, quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
