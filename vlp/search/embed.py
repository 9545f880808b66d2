"""One part of what is embedded -> its files of embeddings; what is whole already is left as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools._models import few_threads, num_decoders
from vlp.data.digest import hash64
from vlp.data.index import open_shard
from vlp.data.picture_files import Picture
from vlp.data.samples import IMAGE_EXTENSIONS, BadSample
from vlp.data.shards import Shard
from vlp.encoders.two_tower import TwoTower
from vlp.evaluation.embed import embed_texts
from vlp.search import files
from vlp.search.captions import Captions, SkippedRows, spelled
from vlp.search.features import features_where_possible
from vlp.search.files import PICTURES, TEXTS, Record, Rows
from vlp.search.job import Job
from vlp.search.model import loaded
from vlp.search.parts import ROWS, is_texts, name_of, number_of, pictures_of, source_of, texts_of
from vlp.types import Skipped, UserError

EMPTY = "empty text"
LOST = ("missing shard", "unreadable shard")
"""What may be there the next time: a file that lacks something for such a reason is not whole."""


@dataclass(frozen=True)
class Embedded:
    """What is in the files of a part, and how many rows of it were written now."""

    pictures: int = 0
    texts: int = 0
    written_pictures: int = 0
    written_texts: int = 0
    skipped: tuple[Skipped, ...] = ()

    def __add__(self, other: Embedded) -> Embedded:
        return Embedded(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def embed_part(part: str, job: Job, threads: int = 1) -> Embedded:
    """Write the files of a part, unless they are whole.

    Args:
        threads: of the model, on the CPU.

    Raises:
        UserError: MODEL has changed since the run began, or its features are not finite.
    """
    if is_texts(source_of(part)):
        return _texts(part, job, threads)
    if source_of(part) == part:
        return _shard(part, job, threads)
    return _folder(part, job, threads)


def _model(job: Job) -> TwoTower:
    model, digest = loaded(job.model, job.device)
    if digest != job.digest:
        raise UserError(f"{job.model} has changed since this run began: name a checkpoint that stays as it is")
    return model


def caption_name(part: str) -> str:
    """The name of the file of a shard's captions."""
    return f"{name_of(part)}.captions"


# ---- The three kinds


def _shard(path: str, job: Job, threads: int) -> Embedded:
    shard, defects = open_shard(path)
    lost = tuple((one.kind, one.where, one.samples) for one in defects)
    members = {*IMAGE_EXTENSIONS, job.captions.partition(".")[0]}
    # The table alone is the same where a caption was replaced by one of its length.
    content = (*shard.extensions, shard.keys, shard.offset, shard.size, job.captions, _state(Path(path)))
    texts = Captions(shard, job.captions)

    def pictures() -> tuple[Rows, SkippedRows]:
        def read(row: int) -> bytes:
            found = shard.read(row, members)
            texts.keep(row, found)
            return next(found[extension] for extension in IMAGE_EXTENSIONS if extension in found)

        features, skipped = _pictures(_model(job), range(len(shard)), read, shard.key, job, path, threads)
        rows = list(features)
        places = [shard.extents(row, [_picture_extension(shard, row)])[0] for row in rows]
        captions = [next(iter(texts.of(row)), None) for row in rows]
        return Rows(
            [shard.key(r) for r in rows], captions, places, _stack(features.values(), job)
        ), lost + texts.broken() + _where(shard, skipped)

    done = _unless_whole(name_of(path), PICTURES, path, content, job, pictures)
    if not job.with_captions:
        return done

    def captions() -> tuple[Rows, SkippedRows]:
        found = [(row, text) for row in range(len(shard)) for text in texts.of(row)]
        places = [shard.extents(row, [_picture_extension(shard, row)])[0] for row, _ in found]
        feature_ND = _embedded([text for _, text in found], job, threads)
        keys = [shard.key(row) for row, _ in found]
        return Rows(keys, [text for _, text in found], places, feature_ND), lost + texts.broken()

    return done + _unless_whole(caption_name(path), TEXTS, path, content, job, captions)


def _folder(part: str, job: Job, threads: int) -> Embedded:
    folder, names = Path(source_of(part)), [str(path) for path in pictures_of(part)]
    texts: dict[int, str | None] = {}

    def pictures() -> tuple[Rows, SkippedRows]:
        def read(number: int) -> bytes:
            texts[number] = _text_beside(folder / names[number])
            return Picture(folder / names[number], names[number]).read()

        everything = range(len(names))
        features, skipped = _pictures(_model(job), everything, read, names.__getitem__, job, str(folder), threads)
        rows = list(features)
        kept = Rows(
            [names[r] for r in rows], [texts[r] for r in rows], [None] * len(rows), _stack(features.values(), job)
        )
        return kept, tuple((bad.kind, names[row], 1) for row, bad in skipped.items())

    content = [(name, *_state(folder / name), *_state((folder / name).with_suffix(".txt"))) for name in names]
    return _unless_whole(name_of(part), PICTURES, str(folder), content, job, pictures)


def _texts(part: str, job: Job, threads: int) -> Embedded:
    file, texts = source_of(part), texts_of(part, job.column)
    first = ROWS * number_of(part)

    def lines() -> tuple[Rows, SkippedRows]:
        found = [row for row, text in enumerate(texts) if text]
        feature_ND = _embedded([texts[row] for row in found], job, threads)
        empty = tuple((EMPTY, f"row {first + row}", 1) for row, text in enumerate(texts) if not text)
        keys = [str(first + row) for row in found]
        return Rows(keys, [texts[row] for row in found], [None] * len(found), feature_ND), empty

    return _unless_whole(name_of(part), TEXTS, file, texts, job, lines)


# ---- What they share


def _unless_whole(
    name: str,
    kind: str,
    source: str,
    content: Iterable[object],
    job: Job,
    make: Callable[[], tuple[Rows, SkippedRows]],
) -> Embedded:
    """The counts of a file of embeddings, written if it is not there, broken, or of another ``content``."""
    signature = f"{hash64(repr([_plain(one) for one in content]).encode('utf-8', 'surrogateescape')):016x}"
    record, written = files.read_record(job.directory, name, job.files), 0
    if record is None or not _is_whole(record, signature, job):
        rows, skipped = make()
        written = len(rows.keys)
        record = Record(job.digest, job.dtype, kind, source, signature, written, skipped)
        if written or not any(one[0] in LOST for one in skipped):
            files.write(job.directory, name, job.files, rows, record)
    left_out = tuple(Skipped(what, _named(source, where), number) for what, where, number in record.skipped)
    if kind == PICTURES:
        return Embedded(pictures=record.rows, written_pictures=written, skipped=left_out)
    return Embedded(texts=record.rows, written_texts=written, skipped=left_out)


def _is_whole(record: Record, signature: str, job: Job) -> bool:
    wanted = (job.digest, job.dtype, signature)
    lost = any(kind in LOST for kind, _, _ in record.skipped)
    return (record.digest, record.dtype, record.signature) == wanted and not lost


def _plain(one: object) -> object:
    return hash64(one.tobytes()) if isinstance(one, np.ndarray) else one


def _named(source: str, where: str) -> str:
    return where if where.startswith(source) else f"{source}: {where}"


def _pictures(
    model: TwoTower,
    rows: range,
    read: Callable[[int], bytes],
    key: Callable[[int], str],
    job: Job,
    source: str,
    threads: int,
) -> tuple[dict[int, np.ndarray], dict[int, BadSample]]:
    """(features, what has none) by row."""
    features: dict[int, np.ndarray] = {}
    skipped: dict[int, BadSample] = {}

    def read_named(row: int) -> bytes:
        _check_key(key(row))
        return read(row)

    with few_threads(model, threads):
        for row, found in features_where_possible(model, rows, read_named, job.batch_size, num_decoders(model, source)):
            if isinstance(found, BadSample):
                skipped[row] = found
            else:
                features[row] = found
    return features, skipped


def _check_key(key: str) -> None:
    if any(character in key for character in "\n\r"):
        raise BadSample("name with a line break", repr(key))
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise BadSample("name that is not UTF-8", repr(key)) from error


def _embedded(texts: list[str], job: Job, threads: int) -> np.ndarray:
    model = _model(job)
    if not texts:
        return np.zeros((0, job.dimension), np.float32)
    with few_threads(model, threads):
        return np.asarray(embed_texts(model, texts, job.batch_size).cpu().numpy())


def _stack(features: Iterable[np.ndarray], job: Job) -> np.ndarray:
    found = list(features)
    return np.stack(found) if found else np.zeros((0, job.dimension), np.float32)


def _picture_extension(shard: Shard, row: int) -> str:
    return next(
        extension
        for extension in IMAGE_EXTENSIONS
        if extension in shard.extensions and shard.size[row, shard.extensions.index(extension)] >= 0
    )


def _where(shard: Shard, skipped: Mapping[int, BadSample]) -> SkippedRows:
    return tuple((bad.kind, spelled(shard.key(row)), 1) for row, bad in skipped.items())


def _state(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change), zeros if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _text_beside(picture: Path) -> str | None:
    """The caption of ``a.jpg`` is ``a.txt``, where there is one that is UTF-8."""
    try:
        return picture.with_suffix(".txt").read_text(encoding="utf-8-sig").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
