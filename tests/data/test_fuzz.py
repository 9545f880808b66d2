"""More than a thousand damaged data sets: what is whole is trained on as it is, what is not is named, nothing crashes.

Every mutation is drawn from a seed of its own (`FUZZ_SEED` shifts them all), so each failure names one that repeats.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools._verify_shard import check_shard
from data_tools.index import write_index
from vlp.data.batches import DataOptions, TrainingData
from vlp.data.captions import CaptionSource
from vlp.data.index import scan
from vlp.data.layers import LayerWriter
from vlp.data.transforms import AugmentOptions, PictureFormat
from vlp.types import Skipped, UserError

SEED = int(os.environ.get("FUZZ_SEED", "0"))
FORMAT = PictureFormat((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
WHOLE = AugmentOptions(crop_scale=(1, 1), crop_ratio=(1, 1))  # of a square: pixels do not depend on the position
KINDS: Sequence[tuple[str, str, dict[str, Any]]] = (
    ("jpg", "JPEG", {"quality": 90}),
    ("png", "PNG", {}),
    ("webp", "WEBP", {"quality": 80}),
    ("gif", "GIF", {}),
)
SHARDS, ROWS, BATCH, BLOCK = 3, 4, 4, 512
LOST = {"missing shard", "not a tar", "truncated shard", "empty shard"}
REWRITES = [CaptionSource(source="json.rewrites")]
Members = dict[str, bytes]


# ---- A data set, and one of its shards again and again in another state


def members_of(shard: int) -> Members:
    members = {}
    for row, (extension, kind, options) in enumerate(KINDS):
        key, buffer = f"{shard:05d}{row:04d}", io.BytesIO()
        pixels = np.random.default_rng(ROWS * shard + row).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, kind, **options)
        members[f"{key}.{extension}"] = buffer.getvalue()
        members[f"{key}.txt"] = f"caption {key}".encode()
        members[f"{key}.json"] = json.dumps({"key": key, "rewrites": [f"one {key}", f"two {key}"]}).encode()
    return members


def tar_of(members: Members, format: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for place, (name, data) in enumerate(members.items()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if format == tarfile.PAX_FORMAT and place % 2:
                info.pax_headers = {"path": name, "comment": "of any length " * 3}
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@dataclass
class Epoch:
    """What came of an epoch; ``rows`` are all that were trained on, ``keys`` those of the epoch itself."""

    rows: list[tuple[str, str, bytes]]
    keys: set[str]
    skipped: list[Skipped]
    defects: list[Skipped]

    @property
    def named(self) -> set[str]:
        return {bad.where.rpartition(": ")[2] for bad in [*self.skipped, *self.defects] if ": " in bad.where}

    @property
    def total(self) -> int:
        return sum(bad.samples for bad in [*self.skipped, *self.defects])


def tokens(captions: list[str]) -> torch.Tensor:
    return torch.tensor([list(caption.encode()[:6].ljust(6)) for caption in captions])


def epoch(folder: Path, **options: Any) -> Epoch:
    """One epoch as a run without workers reads it; every batch is full and of the right shape."""
    given = {"workers": 0, "shuffle_window": 5, "max_bad_fraction": 1.0, "augment": WHOLE, **options}
    data = TrainingData(DataOptions(train=str(folder), **given), FORMAT, tokens, BATCH, seed=5)
    steps = -(-data.num_samples // BATCH)
    batches = list(data.batches(0, steps))
    assert len(batches) == steps
    for batch in batches:
        assert batch.image_VNCHW.shape == (1, BATCH, 3, 8, 8)
        assert batch.image_VNCHW.dtype == torch.uint8
        assert batch.text_NL.shape == (BATCH, 6)
        assert len(batch.keys) == len(batch.captions) == BATCH
        assert all(batch.captions)
    rows = [
        (key, caption, pixels.numpy().tobytes())
        for batch in batches
        for key, caption, pixels in zip(batch.keys, batch.captions, batch.image_NCHW, strict=True)
    ]
    keys = {key for key, _, _ in rows[: data.num_samples]}
    return Epoch(rows, keys, [bad for batch in batches for bad in batch.skipped], data.defects)


def epoch_or_sentence(folder: Path, **options: Any) -> Epoch | str:
    try:
        return epoch(folder, **options)
    except UserError as error:
        sentence = str(error)
    assert "\n" not in sentence
    return sentence


class DataSet:
    """``reference`` is what each sample gives when nothing is damaged."""

    def __init__(self, folder: Path, format: int = tarfile.USTAR_FORMAT) -> None:
        self.folder = folder
        folder.mkdir()
        for shard in range(SHARDS):
            (folder / f"{shard:05d}.tar").write_bytes(tar_of(members_of(shard), format))
        self.target = folder / "00001.tar"
        self.whole = self.target.read_bytes()
        self.format = format
        self.reference = {key: pixels for key, _, pixels in epoch(folder).rows}
        assert len(self.reference) == SHARDS * ROWS

    def check_rows(self, found: Epoch, intact: set[str], captions: Sequence[str] = ("caption {}",)) -> None:
        """Of samples that are ``intact`` pixels and caption are their own, and none of them was skipped."""
        assert intact <= found.keys
        assert not intact & found.named
        for key, caption, pixels in found.rows:
            if key in intact:
                assert pixels == self.reference[key], key
                assert caption in [text.format(key) for text in captions]


@contextmanager
def mutation(what: str, number: int) -> Iterator[random.Random]:
    """Draws of one mutation, which has 20 seconds; a failure says which it was."""

    def hung(*_: object) -> None:
        raise AssertionError("hung")

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, 20)
    try:
        yield random.Random(f"{SEED} {what} {number}")
    except BaseException as error:
        error.add_note(f"mutation {number} of {what}") if hasattr(error, "add_note") else print(what, number)
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Other bytes in the place of ``data``: flipped, overwritten, cut, zeroed, longer, shorter, none or any."""
    new, size = bytearray(data), len(data)
    kind = draw.choice(["flip", "flip", "bytes", "cut", "zero", "insert", "remove", "noise", "empty"])
    at = draw.randrange(size)
    if kind == "flip":
        for _ in range(draw.choice([1, 1, 3, 20])):
            new[draw.randrange(size)] ^= 1 << draw.randrange(8)
    elif kind == "bytes":
        new[at] = draw.choice([0, 127, 128, 255, draw.randrange(256)])
    elif kind == "cut":
        del new[at:]
    elif kind == "zero":
        stop = min(size, at + draw.choice([1, 4, 64]))
        new[at:stop] = bytes(stop - at)
    elif kind == "insert":
        new[at:at] = draw.randbytes(draw.choice([1, 4, 30]))
    elif kind == "remove":
        del new[at : at + draw.choice([1, 4, 30])]
    else:
        new = bytearray(draw.randbytes(size) if kind == "noise" else b"")
    return bytes(new)


# ---- Damaged members of whole tars


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "txt", "json"])
def test_a_damaged_member_costs_at_most_its_sample(tmp_path: Path, extension: str) -> None:
    data = DataSet(tmp_path / "train")
    members = members_of(1)
    names = [name for name in members if name.endswith(extension)]
    captions = REWRITES if extension == "json" else [CaptionSource(source="txt")]
    texts = ["one {}", "two {}"] if extension == "json" else ["caption {}"]
    for number in range(60):
        with mutation(extension, number) as draw:
            name = draw.choice(names)
            changed = {**members, name: damaged(draw, members[name])}
            data.target.write_bytes(tar_of(changed, data.format))
            found = epoch(data.folder, captions=captions)
            key = name.partition(".")[0]
            data.check_rows(found, data.reference.keys() - {key}, texts)
            assert found.defects == []
            assert {bad.where for bad in found.skipped} <= {f"{data.target}: {key}"}
            assert (key in found.keys) is not bool(found.skipped)
            checked = check_shard(str(data.target), ("json.rewrites",) if extension == "json" else ("txt",))
            assert {d.kind for d in checked.defects} >= {bad.kind for bad in found.skipped}


# ---- Damaged tars


def parts_of(tar: bytes) -> list[tuple[int, int, str | None]]:
    """Stretches of a tar as (start, stop, key of the sample whose contents they are, or None for headers)."""
    parts: list[tuple[int, int, str | None]] = []
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        for member in file:
            stop = member.offset_data + -(-member.size // BLOCK) * BLOCK
            parts += [(member.offset, member.offset_data, None), (member.offset_data, stop, member.name.split(".")[0])]
    return [*parts, (parts[-1][1], len(tar), None)]


def intact_after(whole: bytes, now: bytes) -> set[str]:
    """Samples that a damaged tar must still give: untouched ones before the first header that changed or moved."""
    parts = parts_of(whole)
    if len(now) == len(whole):
        changed = np.flatnonzero(np.frombuffer(whole, np.uint8) != np.frombuffer(now, np.uint8)).tolist()
    else:
        same = next((i for i, pair in enumerate(zip(whole, now, strict=False)) if pair[0] != pair[1]), len(now))
        changed = [same, *(start for start, _, _ in parts if start > same)]
    at = [next(part for part in parts if part[0] <= place < part[1] or part is parts[-1]) for place in changed]
    broken = min((start for start, _, key in at if key is None), default=len(whole))
    touched = {key for _, _, key in at}
    keys = dict.fromkeys(key for _, _, key in parts if key is not None)
    ends = {key: max(stop for _, stop, of in parts if of == key) for key in keys}
    before = [key for key in keys if ends[key] <= broken]
    if len(before) == 1 < len(keys):
        return set()  # nothing shows that the only sample before a broken header is whole
    return set(before) - touched


def reordered(draw: random.Random, tar: bytes) -> bytes:
    """Blocks or bytes of a tar changed, cut, inserted, removed, swapped, zeroed; its headers overwritten."""
    new, size = bytearray(tar), len(tar)
    kind = draw.choice(["flip", "cut", "insert", "remove", "swap", "zero", "header", "noise"])
    at = draw.randrange(size)
    block = at // BLOCK * BLOCK
    at = draw.choice([at, block, block])
    headers = [start for start, stop, key in parts_of(tar)[:-1] if key is None]
    if kind == "flip":
        for _ in range(draw.choice([1, 1, 3, 20])):
            new[draw.randrange(size)] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del new[at:]
    elif kind == "insert":
        new[at:at] = draw.randbytes(draw.choice([1, BLOCK, 2 * BLOCK]))
    elif kind == "remove":
        del new[at : at + draw.choice([1, BLOCK, 2 * BLOCK])]
    elif kind == "swap":
        other = draw.randrange(size // BLOCK) * BLOCK
        new[block : block + BLOCK], new[other : other + BLOCK] = tar[other : other + BLOCK], tar[block : block + BLOCK]
    elif kind == "zero":
        stop = min(size, at + draw.choice([1, BLOCK, 2 * BLOCK, 8 * BLOCK]))
        new[at:stop] = bytes(stop - at)
    elif kind == "header":
        new[draw.choice(headers) + draw.randrange(BLOCK)] = draw.randrange(256)
    else:
        block = draw.choice(headers)
        new[block : block + BLOCK] = draw.randbytes(BLOCK)
    return bytes(new)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_damaged_tar_gives_what_is_whole_and_counts_the_rest(tmp_path: Path, format: int) -> None:
    data = DataSet(tmp_path / "train", format)
    own = {key for key in data.reference if key.startswith("00001")}
    for number in range(160):
        with mutation(f"tar {format}", number) as draw:
            now = reordered(draw, data.whole)
            data.target.write_bytes(now)
            found = epoch(data.folder)
            data.check_rows(found, (data.reference.keys() - own) | intact_after(data.whole, now))
            missing = data.reference.keys() - found.keys
            unnamed = missing - found.named
            lost = [bad for bad in found.defects if bad.kind in LOST]
            # Zeros up to the end of so small a file may be the padding of a shard that never had more.
            ended = not any(now[min((data.whole.index(key.encode()) for key in unnamed), default=0) :])
            assert ended or sum(bad.samples for bad in lost) >= len(unnamed), (unnamed, found.defects)
            assert ended or len(missing) <= found.total <= len(missing) + len(found.named) + 1
            checked = check_shard(str(data.target), ("txt",))
            assert ended or checked.defects or not missing


def with_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


SIZES = (
    *(b"77777777777\0", b"00000000000\0", b"           \0", b"-0000000001\0", b"00000abcdef\0", b"\xff" * 12),
    *(b"\x80" + b"\0" * 10 + b"\xff", b"\x80\0\0\0" + b"\xff" * 8, b"\x80" + b"\0" * 5 + b"\1" + b"\0" * 5),
)
RECORDS = (
    *(b"20 size=99999999999\n", b"11 size=-5\n", b"16 path=\xff\xfe.txt\n", b"12 path=a\0b\n", b"0 path=x\n"),
    *(b"99999999999 path=x\n", b"13 path=evil\n", b"27 GNU.sparse.major=1\n", b"22 GNU.sparse.map=1,2\n"),
    *(b"22 GNU.sparse.size=-1\n", b"31 GNU.sparse.realsize=9999999\n", b"21 hdrcharset=BINARY\n", b"path=x", b""),
)


def lied_to(draw: random.Random, tar: bytes) -> tuple[bytes, int]:
    """A tar with a header whose checksum is right and whose size, type, name or record is not; where that stands."""
    new = bytearray(tar)
    headers = [start for start, _, key in parts_of(tar)[:-1] if key is None]
    at = draw.choice(headers)
    header = bytearray(tar[at : at + BLOCK])
    kind = draw.choice(["size", "type", "name", "record", "bytes"])
    if kind == "size":
        header[124:136] = draw.choice([*SIZES, b"%011o\0" % draw.randrange(100_000)])
    elif kind == "type":
        header[156] = ord(draw.choice("0123456789xgLKSDVMXA\0"))
    elif kind == "name":
        other = draw.choice(headers)
        header[:100] = draw.choice([tar[other : other + 100], draw.randbytes(100), bytes(100)])
    elif kind == "bytes":
        for _ in range(draw.choice([1, 2, 5])):
            header[draw.randrange(148)] = draw.randrange(256)
    else:
        record = draw.choice([*RECORDS, draw.randbytes(40)])
        header = bytearray(BLOCK)
        header[:9], header[124:136] = b"PaxHeader", b"%011o\0" % len(record)
        header[156], header[257:265] = ord(draw.choice("xxxg")), b"ustar\0" + b"00"
        new[at:at] = with_checksum(header) + record.ljust(BLOCK, b"\0")
        return bytes(new), at
    new[at : at + BLOCK] = with_checksum(header)
    return bytes(new), at


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_header_that_lies_harms_nothing_before_it_and_no_other_shard(tmp_path: Path, format: int) -> None:
    data = DataSet(tmp_path / "train", format)
    own = {key for key in data.reference if key.startswith("00001")}
    for number in range(120):
        with mutation(f"lie {format}", number) as draw:
            now, at = lied_to(draw, data.whole)
            data.target.write_bytes(now)
            found = epoch(data.folder)
            sure = intact_after(data.whole, data.whole[:at])
            named = found.named  # a member may have been given the name of an earlier one
            data.check_rows(found, (data.reference.keys() - own) | (sure - named))
            check_shard(str(data.target), ("txt",))


# ---- Damaged files beside the tars


def write_counts(folder: Path) -> None:
    for path in folder.glob("*.tar"):
        stats = {"count": ROWS, "successes": ROWS, "status_dict": {"success": ROWS}}
        (folder / f"{path.stem}_stats.json").write_text(json.dumps(stats))


def write_sizes(folder: Path) -> None:
    (folder / "sizes.json").write_text(json.dumps({path.name: ROWS for path in folder.glob("*.tar")}))


def write_wids(folder: Path) -> None:
    listed = [{"url": path.name, "nsamples": ROWS} for path in folder.glob("*.tar")]
    (folder / "wids.json").write_text(json.dumps({"shardlist": listed}))


def write_index_of(folder: Path) -> None:
    write_index([str(folder)])


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (write_index_of, "index/00001.parquet"),
        (write_index_of, "index/shards.json"),
        (write_counts, "00001_stats.json"),
        (write_sizes, "sizes.json"),
        (write_wids, "wids.json"),
    ],
)
def test_a_damaged_index_is_named_or_changes_nothing(tmp_path: Path, write: Callable[[Path], None], file: str) -> None:
    data = DataSet(tmp_path / "train")
    write(data.folder)
    path = data.folder / file
    whole = path.read_bytes()
    for number in range(60):
        with mutation(file, number) as draw:
            path.write_bytes(damaged(draw, whole))
            found = epoch_or_sentence(data.folder)
            if isinstance(found, str):
                assert str(path) in found or f"{data.folder}/0000" in found
            else:
                data.check_rows(found, set(data.reference))
            if file.startswith("index") and number % 10 == 0:  # the cure that is named
                write_index_of(data.folder)
                data.check_rows(epoch(data.folder), set(data.reference))
            check_shard(str(data.target), ("txt",))


@pytest.mark.parametrize("use", ["text", "texts", "filter"])
def test_a_damaged_layer_is_named_or_changes_nothing(tmp_path: Path, use: str) -> None:
    data = DataSet(tmp_path / "train")
    writer = LayerWriter(None, "extra", {"tool": "test"})
    for path in sorted(data.folder.glob("*.tar")):
        shard, _ = scan(str(path))
        keys = [shard.key(row) for row in range(len(shard))]
        columns = {"text": [f"text of {k}" for k in keys], "texts": [[f"one of {k}", f"two of {k}"] for k in keys]}
        writer.write(shard, keys, {**columns, "score": [float(row) for row in range(len(keys))]})
    expected = {key for key in data.reference if use != "filter" or not key.endswith("0")}
    texts = {"text": ["text of {}"], "texts": ["one of {}", "two of {}"], "filter": ["caption {}"]}[use]
    options: dict[str, Any] = {"captions": [CaptionSource(source=f"layer.extra.{use}")]}
    if use == "filter":
        options = {"filter": "extra.score >= 1"}
    path = data.folder / "layers" / "extra" / "00001.parquet"
    whole = path.read_bytes()
    for number in range(60):
        with mutation(f"layer {use}", number) as draw:
            path.write_bytes(damaged(draw, whole))
            found = epoch_or_sentence(data.folder, **options)
            if isinstance(found, str):
                assert str(path) in found
            else:
                assert found.keys == expected
                data.check_rows(found, expected, texts)
