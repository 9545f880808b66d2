"""Writing data sets: training shards as img2dataset lays them out, evaluation sets as CLIP_benchmark and SugarCrepe do.

Everything written is reproducible to the byte: no clock, no user name and no random order gets in.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset as wds
from PIL import Image

from vlp.types import UserError


def encode_image(image: Image.Image, extension: str = "png") -> bytes:
    """The bytes of ``image`` as ``png``, ``jpg`` (quality 95, no chroma subsampling) or ``webp`` (lossless)."""
    buffer = io.BytesIO()
    if extension == "jpg":
        image.convert("RGB").save(buffer, "JPEG", quality=95, subsampling=0)
    elif extension == "webp":
        image.save(buffer, "WEBP", lossless=True)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def new_directory(path: str | Path) -> Path:
    """Create ``path``, which must not hold files yet, so that two data sets never mix."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists and is not empty: choose another directory or remove it first")
    path.mkdir(parents=True, exist_ok=True)
    return path


class TarFile:
    """One tar of samples; members of a sample are ``KEY.EXTENSION``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._stream = open(self._partial, "wb")
        self._tar = wds.TarWriter(self._stream, encoder=False, user="vlp", group="vlp", mtime=0, mode=0o644)

    def write(self, key: str, members: dict[str, bytes]) -> None:
        self._tar.write({"__key__": key, **members})

    def close(self) -> None:
        self._tar.close()
        self._stream.close()
        self._partial.rename(self._path)


class ShardWriter:
    """Training shards in img2dataset's layout: ``00000.tar``, ``00000.parquet`` and ``00000_stats.json``.

    Use as a context manager; ``write`` numbers the samples itself (``000000000`` = shard 0, sample 0).
    """

    def __init__(self, directory: str | Path, samples_per_shard: int = 1000) -> None:
        self.directory = new_directory(directory)
        self.samples_per_shard = samples_per_shard
        self.num_samples = 0
        self._shard = -1
        self._tar: TarFile | None = None
        self._rows: list[dict[str, Any]] = []

    def write(self, image: bytes, extension: str, caption: str, **metadata: Any) -> str:
        """Append one sample and return its key. ``metadata`` joins the sample's JSON and the parquet file."""
        row = self.num_samples % self.samples_per_shard
        if row == 0:
            self._finish_shard()
            self._shard += 1
            self._tar = TarFile(self.directory / f"{self._shard:05d}.tar")
        key = f"{self._shard:05d}{row:04d}" if self.samples_per_shard <= 10_000 else f"{self._shard:05d}{row:06d}"
        record = {"key": key, "caption": caption, "status": "success", "error_message": None, **metadata}
        assert self._tar is not None
        self._tar.write(
            key,
            {
                extension: image,
                "txt": caption.encode(),
                "json": json.dumps(record, ensure_ascii=False, sort_keys=True).encode(),
            },
        )
        self._rows.append(record)
        self.num_samples += 1
        return key

    def _finish_shard(self) -> None:
        if self._tar is None:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._tar.close()
        self._tar = None
        name = f"{self._shard:05d}"
        # Nested factors go in as JSON text: a column type that changes from shard to shard would break readers.
        flat = [
            {k: json.dumps(v, ensure_ascii=False, sort_keys=True) if isinstance(v, list | dict) else v for k, v in r.items()}
            for r in self._rows
        ]
        pq.write_table(pa.Table.from_pylist(flat), self.directory / f"{name}.parquet")
        stats = {
            "count": len(flat),
            "successes": len(flat),
            "failed_to_download": 0,
            "failed_to_resize": 0,
            "status_dict": {"success": len(flat)},
        }
        (self.directory / f"{name}_stats.json").write_text(json.dumps(stats, indent=2) + "\n", encoding="utf-8")
        self._rows = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error the open shard keeps its .partial name: a half-written shard must not look whole.
        if kind is None:
            self._finish_shard()


def write_retrieval_set(directory: str | Path, items: Iterable[tuple[bytes, str, Sequence[str]]]) -> int:
    """CLIP_benchmark's webdataset retrieval layout from (image bytes, extension, captions); returns the number of images."""
    for_caption = ((image, extension, "txt", "\n".join(captions).encode()) for image, extension, captions in items)
    count = _write_benchmark_tar(directory, for_caption)
    (Path(directory) / "dataset_type.txt").write_text("retrieval\n", encoding="utf-8")
    return count


def write_classification_set(
    directory: str | Path,
    items: Iterable[tuple[bytes, str, int]],
    classnames: Sequence[str],
    templates: Sequence[str],
) -> int:
    """CLIP_benchmark's webdataset zero-shot classification layout from (image bytes, extension, class index).

    Templates use ``{c}`` for the class name. Returns the number of images.
    """
    count = _write_benchmark_tar(directory, ((i, e, "cls", str(label).encode()) for i, e, label in items))
    (Path(directory) / "classnames.txt").write_text("\n".join(classnames) + "\n", encoding="utf-8")
    path = Path(directory) / "zeroshot_classification_templates.txt"
    path.write_text("\n".join(templates) + "\n", encoding="utf-8")
    return count


def _write_benchmark_tar(directory: str | Path, items: Iterable[tuple[bytes, str, str, bytes]]) -> int:
    split = new_directory(directory) / "test"
    split.mkdir()
    tar = TarFile(split / "0.tar")
    count = 0
    for image, extension, label_extension, label in items:
        tar.write(f"{count:09d}", {extension: image, label_extension: label})
        count += 1
    tar.close()
    (split / "nshards.txt").write_text("1\n", encoding="utf-8")
    return count


@dataclass(frozen=True)
class CaptionPair:
    """A picture with a true and a false caption, one instance of a SugarCrepe file."""

    image: bytes
    extension: str
    caption: str
    negative_caption: str


def write_pairs(directory: str | Path, suites: dict[str, Iterable[CaptionPair]]) -> None:
    """SugarCrepe's layout: ``SUITE.json`` = {"0": {filename, caption, negative_caption}, ...}, pictures in ``images/``."""
    directory = new_directory(directory)
    images = directory / "images"
    images.mkdir()
    for suite, pairs in suites.items():
        table: dict[str, dict[str, str]] = {}
        for number, pair in enumerate(pairs):
            filename = f"{suite}_{number:06d}.{pair.extension}"
            (images / filename).write_bytes(pair.image)
            table[str(number)] = {
                "filename": filename,
                "caption": pair.caption,
                "negative_caption": pair.negative_caption,
            }
        text = json.dumps(table, indent=1, ensure_ascii=False)
        (directory / f"{suite}.json").write_text(text + "\n", encoding="utf-8")
