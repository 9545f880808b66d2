from __future__ import annotations

from pathlib import Path

import pytest

from vlp.data.shards import find_shards, folder, stem
from vlp.types import UserError


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
        ("{00001..00002}.tar", "00001.tar does not exist"),
        ("{00000,notes}", "00000 does not exist"),
        ("x*.tar", "no file matches"),
        (".", "no .tar file in the directory"),
        ("notes.txt", "not a .tar file"),
        ("00000.*", "not a .tar file"),
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


def test_what_only_a_pattern_names_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "00001.tar").touch()
    names = [str(tmp_path / f"{i:05d}.tar") for i in range(3)]
    assert find_shards(str(tmp_path / "{00000..00002}.tar")) == names


def test_addresses_and_commands_are_taken_as_they_are() -> None:
    sources = ["https://host/set/{00000..00001}.tar?sig=a/b", "pipe:aws s3 cp s3://b/x/{00007..00008}.tar -"]
    assert find_shards(sources) == [
        "https://host/set/00000.tar?sig=a/b",
        "https://host/set/00001.tar?sig=a/b",
        "pipe:aws s3 cp s3://b/x/00007.tar -",
        "pipe:aws s3 cp s3://b/x/00008.tar -",
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b/00000.tar", ("a/b", "00000")),
        ("/00000.tar", ("/", "00000")),
        ("00000.tar", (".", "00000")),
        ("s3://bucket/x/00000.tar", ("s3://bucket/x", "00000")),
        ("https://host/x/00000.tar?sig=a/b.tar", ("https://host/x", "00000")),
        ("pipe:cat /data/00000.tar | pv", (".", "00000")),
    ],
)
def test_the_folder_and_the_stem_of_a_shard(path: str, expected: tuple[str, str]) -> None:
    assert (folder(path), stem(path)) == expected
