"""Writing data sets: shards like img2dataset, evaluation sets like CLIP_benchmark, SugarCrepe and Winoground.

Everything written is reproducible to the byte: no clock, no user name and no random order gets in.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset as wds
from PIL import Image

from vlp.types import UserError


def encode_image(image: Image.Image, extension: str = "png") -> bytes:
    """The bytes of ``image`` as ``png``, ``jpg`` (quality 95, no chroma subsampling) or ``webp`` (lossless).

    JPEG has no transparency: what is transparent becomes white.
    """
    buffer = io.BytesIO()
    if extension in ("jpg", "jpeg"):
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image.convert("RGB").save(buffer, "JPEG", quality=95, subsampling=0)
    elif extension == "webp":
        image.save(buffer, "WEBP", lossless=True)
    elif extension == "png":
        image.save(buffer, "PNG")
    else:
        raise UserError(f"cannot write pictures as '{extension}': use png, jpg or webp")
    return buffer.getvalue()


def new_directory(path: str | Path) -> Path:
    """Create ``path``, which must not hold files yet, so that two data sets never mix."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists and is not empty: choose another directory or remove it first")
    path.mkdir(parents=True, exist_ok=True)
    return path


class TarFile:
    """One tar of samples; members of a sample are ``KEY.EXTENSION``.

    As a context manager it leaves ``PATH.partial`` after an error: a half-written tar must not look whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._stream = open(self._partial, "wb")  # noqa: SIM115 - close() and abandon() close it
        self._tar = wds.TarWriter(self._stream, encoder=False, user="vlp", group="vlp", mtime=0, mode=0o644)

    def write(self, key: str, members: dict[str, bytes]) -> None:
        self._tar.write({"__key__": key, **members})

    def close(self) -> None:
        """Finish the tar and give it its name."""
        self._tar.close()
        self._stream.close()
        self._partial.rename(self._path)

    def abandon(self) -> None:
        """Close the file with what it holds, under its partial name."""
        try:
            self._tar.close()
        finally:
            self._stream.close()

    def __enter__(self) -> TarFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close() if kind is None else self.abandon()


class ShardWriter:
    """Training shards in img2dataset's layout: ``00000.tar``, ``00000.parquet`` and ``00000_stats.json``.

    Use as a context manager; ``write`` numbers the samples itself (``000000000`` = shard 0, sample 0). A tar
    gets its name last, so where it lies its parquet and stats lie too.
    """

    def __init__(self, directory: str | Path, samples_per_shard: int = 1000) -> None:
        if samples_per_shard < 1:
            raise UserError(f"samples_per_shard is {samples_per_shard} but must be at least 1")
        self.directory = new_directory(directory)
        self.samples_per_shard = samples_per_shard
        self.num_samples = 0
        self._digits = max(4, len(str(samples_per_shard - 1)))
        self._shard = -1
        self._tar: TarFile | None = None
        self._rows: list[dict[str, Any]] = []
        self._schemas: list[Any] = []

    def write(self, image: bytes, extension: str, caption: str, **metadata: Any) -> str:
        """Append one sample and return its key. ``metadata`` joins the sample's JSON and the parquet file."""
        row = self.num_samples % self.samples_per_shard
        if row == 0:
            self._finish_shard()
            self._shard += 1
            self._tar = TarFile(self.directory / f"{self._shard:05d}.tar")
        key = f"{self._shard:05d}{row:0{self._digits}d}"
        record = {"key": key, "caption": caption, "status": "success", "error_message": None}
        assert not record.keys() & metadata.keys(), f"names of our own: {record.keys() & metadata.keys()}"
        record |= metadata
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
        name, count = f"{self._shard:05d}", len(self._rows)
        self._schemas.append(_write_parquet(self.directory / f"{name}.parquet", self._rows))
        stats = {
            "count": count,
            "successes": count,
            "failed_to_download": 0,
            "failed_to_resize": 0,
            "status_dict": {"success": count},
        }
        (self.directory / f"{name}_stats.json").write_text(json.dumps(stats, indent=2) + "\n", encoding="utf-8")
        self._tar.close()
        self._tar = None
        self._rows = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish_shard()
            _unify_parquet(self.directory, self._schemas)
        elif self._tar is not None:
            self._tar.abandon()


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> Any:
    """Write the records of one shard and return the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def flat(value: Any) -> Any:
        # Nested factors go in as JSON text: their column types would change from shard to shard.
        nested = isinstance(value, (list, tuple, dict))
        return json.dumps(value, ensure_ascii=False, sort_keys=True) if nested else value

    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: pa.array([flat(row.get(name)) for row in rows]) for name in names})
    pq.write_table(table, path)
    return table.schema


def _unify_parquet(directory: Path, schemas: list[Any]) -> None:
    """Give all parquet files one schema: a column may be empty, missing or integer in some shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not schemas:
        return
    unified = pa.unify_schemas(schemas, promote_options="permissive")
    fields = [pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in unified]
    for number, schema in enumerate(schemas):
        if schema == pa.schema(fields):
            continue
        path = directory / f"{number:05d}.parquet"
        table = pq.read_table(path, use_threads=False, pre_buffer=False)
        columns = {
            f.name: table[f.name].cast(f.type) if f.name in schema.names else pa.nulls(len(table), f.type)
            for f in fields
        }
        partial = path.with_name(path.name + ".partial")
        pq.write_table(pa.table(columns, schema=pa.schema(fields)), partial)
        partial.replace(path)


def write_retrieval_set(directory: str | Path, items: Iterable[tuple[bytes, str, Sequence[str]]]) -> int:
    """CLIP_benchmark's webdataset retrieval layout from (image bytes, extension, captions).

    The layout has one caption a line, so white space inside a caption becomes single blanks. Returns the
    number of images.

    Raises:
        UserError: a picture without a caption.
    """

    def labelled() -> Iterator[tuple[bytes, str, str, bytes]]:
        for number, (image, extension, captions) in enumerate(items):
            lines = [" ".join(caption.split()) for caption in captions]
            if not lines or not all(lines):
                raise UserError(
                    f"picture {number} for {directory} has an empty caption or none: leave it out or mend it"
                )
            yield image, extension, "txt", "\n".join(lines).encode()

    count = _write_benchmark_tar(directory, labelled())
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
    assert all("{c}" in template for template in templates), templates

    def labelled() -> Iterator[tuple[bytes, str, str, bytes]]:
        for image, extension, label in items:
            assert 0 <= label < len(classnames), f"label {label} of {len(classnames)} classes"
            yield image, extension, "cls", str(label).encode()

    count = _write_benchmark_tar(directory, labelled())
    (Path(directory) / "classnames.txt").write_text("\n".join(classnames) + "\n", encoding="utf-8")
    path = Path(directory) / "zeroshot_classification_templates.txt"
    path.write_text("\n".join(templates) + "\n", encoding="utf-8")
    return count


def _write_benchmark_tar(directory: str | Path, items: Iterable[tuple[bytes, str, str, bytes]]) -> int:
    split = new_directory(directory) / "test"
    split.mkdir()
    count = 0
    with TarFile(split / "0.tar") as tar:
        for image, extension, label_extension, label in items:
            tar.write(f"{count:09d}", {extension: image, label_extension: label})
            count += 1
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
    """SugarCrepe's layout: ``images/`` and ``SUITE.json``: {"0": {filename, caption, negative_caption}, ...}."""
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


@dataclass(frozen=True)
class CaptionedTwins:
    """Two PNG pictures and the caption of each, in the same order; one example of Winoground."""

    images: tuple[bytes, bytes]
    captions: tuple[str, str]
    tag: str


def write_twins(directory: str | Path, twins: Iterable[CaptionedTwins]) -> int:
    """Winoground's layout: a line an example in ``examples.jsonl``, pictures as ``images/ex_ID_img_0.png`` and ``_1``.

    ``tag`` is both the tag and the collapsed tag. Returns the number of twins.
    """
    directory = new_directory(directory)
    (directory / "images").mkdir()
    lines = []
    for number, twin in enumerate(twins):
        names = [f"ex_{number}_img_{side}" for side in (0, 1)]
        for name, image in zip(names, twin.images, strict=True):
            (directory / "images" / f"{name}.png").write_bytes(image)
        example = {
            "id": number,
            "image_0": names[0],
            "image_1": names[1],
            "caption_0": twin.captions[0],
            "caption_1": twin.captions[1],
            "tag": twin.tag,
            "secondary_tag": "",
            "num_main_preds": 1,
            "collapsed_tag": twin.tag,
        }
        lines.append(json.dumps(example, ensure_ascii=False) + "\n")
    (directory / "examples.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(lines)
