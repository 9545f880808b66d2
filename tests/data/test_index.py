from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from vlp.data.index import load, open_shard, save, scan
from vlp.data.samples import BadSample
from vlp.data.shards import Shard
from vlp.types import UserError

MEMBERS = [
    ("a.png", b"A" * 700),
    ("a.txt", b"one"),
    ("b.png", b"B"),
    ("b.txt", b"two"),
    ("c.jpg", b""),
    ("c.txt", b""),
]


def content(shard: Shard) -> dict[str, dict[str, bytes]]:
    return {shard.key(row): shard.read(row, shard.extensions) for row in range(len(shard))}


# ---- Scanning


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_sample_is_read_as_webdataset_reads_it(write_tar: Callable[..., Path], format: int) -> None:
    long = "folder/" + "k" * 90
    members = [
        *MEMBERS,
        (f"{long}.seg.PNG", b"mask"),
        (f"{long}.png", b"P" * 5000),
        ("ü/d.webp", "ü".encode()),
        ("ü/d.json", b"{}"),
    ]
    path = write_tar(members, format=format)
    shard, defects = scan(str(path))
    assert defects == []
    reference = {
        sample["__key__"]: {name: data for name, data in sample.items() if not name.startswith("__")}
        for sample in wds.WebDataset(str(path), shardshuffle=False, empty_check=False)
    }
    assert content(shard) == reference
    assert shard.read(1, {"txt"}) == {"txt": b"two"}
    assert shard.where(1) == f"{path}: b"


def test_foreign_members_are_no_samples(write_tar: Callable[..., Path]) -> None:
    path = write_tar([("README", b"r"), (".hidden.png", b"h"), ("._a.png", b"m"), *MEMBERS])
    shard, defects = scan(str(path))
    assert list(content(shard)) == ["a", "b", "c"]
    assert defects == []


def test_defects_have_kind_and_name(write_tar: Callable[..., Path]) -> None:
    path = write_tar([*MEMBERS, ("d.txt", b"no picture"), ("a.png", b"again"), ("a.txt", b"again")])
    shard, defects = scan(str(path))
    assert [(d.kind, d.where) for d in defects] == [
        ("duplicate key", f"{path}: a"),
        ("no picture", f"{path}: d"),
    ]
    assert content(shard)["a"]["txt"] == b"one"
    assert list(content(shard)) == ["a", "b", "c"]


def test_every_cut_keeps_the_whole_samples_before_it(write_tar: Callable[..., Path], tmp_path: Path) -> None:
    whole = write_tar(MEMBERS).read_bytes()
    with tarfile.open(tmp_path / "00000.tar") as tar:
        ends = {m.name.split(".")[0]: m.offset_data + m.size for m in tar}  # the last member of each key wins
    expected_all = content(scan(str(tmp_path / "00000.tar"))[0])
    archive_end = max(ends.values()) + 512
    cut = tmp_path / "cut.tar"
    for length in range(512, archive_end, 64):
        cut.write_bytes(whole[:length])
        shard, defects = scan(str(cut))
        expected = {key: expected_all[key] for key, end in ends.items() if end <= length}
        if length < ends["a"] // 512 * 512 + 1024:  # before the header of b nothing tells that a is whole
            expected = {}
        assert content(shard) == expected, length
        assert [d.kind for d in defects] == ["truncated shard"], length


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (None, "missing shard"),
        (b"", "not a tar"),
        (b"<html>not found</html>" * 90, "not a tar"),
        (bytes(10240), "empty shard"),
    ],
)
def test_files_without_samples(tmp_path: Path, data: bytes | None, kind: str) -> None:
    path = tmp_path / "00000.tar"
    if data is not None:
        path.write_bytes(data)
    shard, defects = scan(str(path))
    assert len(shard) == 0
    assert [d.kind for d in defects] == [kind]


def test_damaged_headers_never_crash(write_tar: Callable[..., Path], tmp_path: Path) -> None:
    whole = write_tar([(f"{i}.{e}", b"x" * 600) for i in range(3) for e in ("png", "txt")]).read_bytes()
    broken = tmp_path / "broken.tar"
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 40)):
            data[place] = rng.integers(256)
        broken.write_bytes(data)
        shard, _ = scan(str(broken))
        content(shard)


# ---- Reading


def test_a_shard_that_shrank_or_went_is_a_bad_sample(write_tar: Callable[..., Path]) -> None:
    path = write_tar(MEMBERS)
    shard, _ = scan(str(path))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadSample, match="unreadable shard"):
        shard.read(0, {"png"})
    other, _ = scan(str(write_tar(MEMBERS, name="other.tar")))
    Path(other.path).unlink()
    with pytest.raises(BadSample, match="unreadable shard"):
        other.read(0, {"png"})


def test_a_shard_that_was_replaced_is_read_anew(write_tar: Callable[..., Path]) -> None:
    for content in (b"first", b"other, and longer"):
        path = write_tar([("a.png", content)], "new.tar")
        path.rename(path.with_name("same.tar"))
        shard, _ = scan(str(path.with_name("same.tar")))
        assert shard.read(0, ("png",)) == {"png": content}


def test_more_shards_than_a_process_may_open(write_tar: Callable[..., Path]) -> None:
    shards = [scan(str(write_tar(MEMBERS, name=f"{i}.tar")))[0] for i in range(70)]
    for _ in range(2):
        assert all(shard.read(0, {"txt"}) == {"txt": b"one"} for shard in shards)


def test_members_that_lie_close_are_read_at_once(write_tar: Callable[..., Path]) -> None:
    path = write_tar([("a.png", b"A" * 700), ("a.json", b"j" * 100_000), ("a.txt", b"one")])
    shard, _ = scan(str(path))
    assert len(shard.extents(0, {"png", "txt", "json"})) == 1
    assert len(shard.extents(0, {"png", "txt"})) == 2, "a large member between them is not read"
    assert shard.extents(0, {"webp"}) == []
    assert shard.read(0, {"png", "txt"}) == {"png": b"A" * 700, "txt": b"one"}


# ---- The index file


def test_an_index_says_what_a_scan_says(write_tar: Callable[..., Path], tmp_path: Path) -> None:
    path = write_tar([*MEMBERS, ("ü/d.webp", b"d"), ("e.txt", b"no picture"), ("a.txt", b"again")])
    assert load(str(path)) is None
    scanned = scan(str(path))
    for root in (None, str(tmp_path / "elsewhere")):
        save(*scanned, root)
        loaded = load(str(path), root)
        assert loaded is not None
        assert content(loaded[0]) == content(scanned[0])
        assert loaded[0].extensions == scanned[0].extensions
        assert loaded[1] == scanned[1]
    first = (tmp_path / "index" / "00000.parquet").read_bytes()
    save(*scanned)
    assert (tmp_path / "index" / "00000.parquet").read_bytes() == first
    table = pq.read_table(tmp_path / "index" / "00000.parquet")
    assert table.column_names[:3] == ["key", "jpg.offset", "jpg.size"]


def test_an_index_of_another_file_is_refused(write_tar: Callable[..., Path], tmp_path: Path) -> None:
    path = write_tar(MEMBERS)
    save(*scan(str(path)))
    write_tar([*MEMBERS, ("d.png", b"D" * 10_000)])
    with pytest.raises(UserError, match=r"index/00000\.parquet is stale: .* run vlp data index again"):
        open_shard(str(path))
    (tmp_path / "index" / "00000.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="is no index of a shard"):
        open_shard(str(path))


def test_the_index_is_used(write_tar: Callable[..., Path], tmp_path: Path) -> None:
    """Only what the index lists is there."""
    path = write_tar(MEMBERS)
    shard, defects = scan(str(path))
    kept = Shard(shard.path, shard.keys[:1], shard.extensions, shard.offset[:1], shard.size[:1])
    save(kept, defects)
    assert list(content(open_shard(str(path))[0])) == ["a"]
    assert list(content(scan(str(path))[0])) == ["a", "b", "c"]
    assert json.loads(pq.read_schema(tmp_path / "index" / "00000.parquet").metadata[b"vlp"])["defects"] == []


def test_a_server_that_refuses_absent_files_has_no_index(write_tar: Callable[..., Path], web: Any) -> None:
    web.absent, web.files["0.tar"] = 403, write_tar([("a.png", b"1")]).read_bytes()
    shard, defects = open_shard(web.url("0.tar"))
    assert (shard.keys.tolist(), defects) == ([b"a"], [])
    with pytest.raises(UserError, match=r"1\.tar cannot be read: the server refuses it \(HTTP 403\)"):
        open_shard(web.url("1.tar"))  # it must not pass for an empty one
