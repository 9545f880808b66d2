"""What is wrong with a checkpoint is seen, and said in a few words."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from vlp.checkpoint import checksums, directory


@pytest.fixture
def whole(snapshot, tmp_path) -> Path:
    return directory.write(tmp_path, snapshot(3))


def test_every_file_is_listed_with_its_own_sum(whole):
    table = json.loads((whole / "checksums.json").read_text())
    files = {path.relative_to(whole).as_posix(): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    del files["checksums.json"]
    assert {"open_clip_model.safetensors", "state.json", "tokenizer/place.txt"} < files.keys()
    assert table == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    assert checksums.defect(whole) == ""


def test_a_file_larger_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "_BLOCK", 1000)
    (tmp_path / "file").write_bytes(bytes(range(256)) * 10)
    checksums.write(tmp_path)
    table = checksums.parse((tmp_path / "checksums.json").read_bytes())
    assert table["file"].sha256 == hashlib.sha256(bytes(range(256)) * 10).hexdigest()


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("optimizer.safetensors", flip_a_byte, "optimizer.safetensors is not what was written"),
        ("tokenizer/place.txt", flip_a_byte, "tokenizer/place.txt is not what was written"),
        ("optimizer.safetensors", cut_short, "optimizer.safetensors has 239 bytes instead of 240"),
        ("state.json", Path.unlink, "state.json is missing"),
        ("checksums.json", cut_short, "checksums.json cannot be read"),
        ("checksums.json", lambda path: path.write_text("{}"), "checksums.json cannot be read"),
        ("checksums.json", lambda path: path.write_text('{"a": 1}'), "checksums.json cannot be read"),
    ],
)
def test_damage(whole, name, spoil, said):
    spoil(whole / name)
    assert checksums.defect(whole) == said


@pytest.mark.parametrize("name", ["../file", "/etc/passwd", "a/../../file"])
def test_names_outside_of_the_checkpoint_are_refused(name):
    table = {name: {"bytes": 1, "sha256": "0"}}
    with pytest.raises(ValueError, match="names no files of a checkpoint"):
        checksums.parse(json.dumps(table).encode())


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("tokenizer", shutil.rmtree, ""),
        ("optimizer.safetensors", cut_short, "optimizer.safetensors cannot be read"),
        ("state.json", cut_short, "state.json cannot be read"),
        ("state.json", Path.unlink, "state.json is missing"),
    ],
)
def test_those_of_earlier_versions_have_at_least_headers(whole, name, spoil, said):
    (whole / "checksums.json").unlink()
    spoil(whole / name)
    assert checksums.defect(whole) == said
