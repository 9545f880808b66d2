from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from vlp.data.samples import BadSample
from vlp.data.shards import Shard, find_shards, index_shard, index_shards
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


# ---- Finding


def test_sources_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(tmp_path / f"{i:05d}.tar") for i in range(3)]
    for name in reversed(names):
        Path(name).touch()
    (tmp_path / "00000.parquet").touch()
    assert find_shards(str(tmp_path)) == names
    assert find_shards(str(tmp_path / "*.tar")) == names
    assert find_shards(str(tmp_path / "{00000..00002}.tar")) == names
    assert find_shards([names[2], str(tmp_path / "0000[01].tar")]) == [names[2], names[0], names[1]]
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert find_shards(f"~/{tmp_path.name}/00001.tar") == [f"{tmp_path.parent}/{tmp_path.name}/00001.tar"]


def test_a_path_with_pattern_characters_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "set {a,b} [1]"
    folder.mkdir()
    (folder / "0.tar").touch()
    assert find_shards(str(folder)) == [str(folder / "0.tar")]
    assert find_shards(str(folder / "0.tar")) == [str(folder / "0.tar")]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere.tar", "nowhere.tar does not exist"),
        ("{00000..00002}.tar", "00001.tar does not exist"),
        ("x*.tar", "no file matches"),
        (".", "no .tar file in the directory"),
        ("notes.txt", "not a .tar file"),
        ("00000.*", "not a .tar file"),
        ("s3://bucket/00000.tar", "not a local path"),
        (["00000.tar", "0000*.tar"], "more than once|twice"),
        ([], "empty"),
        ("", "empty"),
        ("{00000..00001.tar", "the braces of .* do not match"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if source != ".":
        (tmp_path / "00000.tar").touch()
        (tmp_path / "00000.tar.gz").touch()
        (tmp_path / "notes.txt").touch()
    if isinstance(source, list) and source:
        source[1] = "0000*.tar"
    with pytest.raises(UserError, match=sentence) as caught:
        find_shards(source)
    assert "data.train" in str(caught.value)


# ---- Indexing


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
    shard, defects = index_shard(str(path))
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
    shard, defects = index_shard(str(path))
    assert list(content(shard)) == ["a", "b", "c"]
    assert defects == []


def test_defects_have_kind_and_name(write_tar: Callable[..., Path]) -> None:
    path = write_tar([*MEMBERS, ("d.txt", b"no picture"), ("a.png", b"again"), ("a.txt", b"again")])
    shard, defects = index_shard(str(path))
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
    expected_all = content(index_shard(str(tmp_path / "00000.tar"))[0])
    archive_end = max(ends.values()) + 512
    cut = tmp_path / "cut.tar"
    for length in range(512, archive_end, 64):
        cut.write_bytes(whole[:length])
        shard, defects = index_shard(str(cut))
        expected = {key: expected_all[key] for key, end in ends.items() if end <= length}
        if length < ends["a"] // 512 * 512 + 1024:  # before the header of b nothing tells that a is whole
            expected = {}
        assert content(shard) == expected, length
        assert [d.kind for d in defects] == ["truncated shard"], length


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"", "not a tar"), (b"<html>not found</html>" * 90, "not a tar"), (bytes(10240), "empty shard")],
)
def test_files_without_samples(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / "00000.tar"
    path.write_bytes(data)
    shard, defects = index_shard(str(path))
    assert len(shard) == 0
    assert [d.kind for d in defects] == [kind]
    with pytest.raises(UserError, match=f"no usable sample in 1 shards .*{kind}"):
        index_shards([str(path)])


def test_one_bad_shard_does_not_stop_the_others(write_tar: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    paths = [str(write_tar(MEMBERS)), str(tmp_path / "bad.tar"), str(write_tar(MEMBERS, name="2.tar"))]
    shards, defects = index_shards(paths)
    assert [shard.path for shard in shards] == [paths[0], paths[2]]
    assert [d.kind for d in defects] == ["not a tar"]


def test_damaged_headers_never_crash(write_tar: Callable[..., Path], tmp_path: Path) -> None:
    whole = write_tar([(f"{i}.{e}", b"x" * 600) for i in range(3) for e in ("png", "txt")]).read_bytes()
    broken = tmp_path / "broken.tar"
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 40)):
            data[place] = rng.integers(256)
        broken.write_bytes(data)
        shard, _ = index_shard(str(broken))
        content(shard)


# ---- Reading


def test_a_shard_that_shrank_or_went_is_a_bad_sample(write_tar: Callable[..., Path]) -> None:
    path = write_tar(MEMBERS)
    shard, _ = index_shard(str(path))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadSample, match="unreadable shard"):
        shard.read(0, {"png"})
    other, _ = index_shard(str(write_tar(MEMBERS, name="other.tar")))
    Path(other.path).unlink()
    with pytest.raises(BadSample, match="unreadable shard"):
        other.read(0, {"png"})


def test_a_shard_that_was_replaced_is_read_anew(write_tar: Callable[..., Path]) -> None:
    for content in (b"first", b"other, and longer"):
        path = write_tar([("a.png", content)], "new.tar")
        path.rename(path.with_name("same.tar"))
        shard, _ = index_shard(str(path.with_name("same.tar")))
        assert shard.read(0, ("png",)) == {"png": content}


def test_more_shards_than_a_process_may_open(write_tar: Callable[..., Path]) -> None:
    shards = [index_shard(str(write_tar(MEMBERS, name=f"{i}.tar")))[0] for i in range(70)]
    for _ in range(2):
        assert all(shard.read(0, {"txt"}) == {"txt": b"one"} for shard in shards)
