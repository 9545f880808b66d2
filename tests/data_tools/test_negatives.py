"""``vlp data negatives`` from captions to what training draws; judge, generators and sheet are tested by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_tools._negatives import layers as negative_layers
from vlp.cli import main
from vlp.data.captions import CaptionLayers, CaptionSource
from vlp.data.index import open_shard
from vlp.data.shards import find_shards
from vlp.data.write import TarFile

SCENES = ["--generator", "scenes", "--workers", "1"]
RANDOM = ["--generator", "random", "--workers", "1"]
CAPTIONS = [
    "a large white star above a large red square",
    "a large purple square right of a large purple star",
    "a large white star above a large red square",
    "",
    "a large white cross above a large purple heart",
    "no scene at all",
]


def write(directory: Path, samples: list[dict[str, bytes]], samples_per_shard: int = 2) -> Path:
    directory.mkdir()
    for start in range(0, len(samples), samples_per_shard):
        with TarFile(directory / f"{start // samples_per_shard:05d}.tar") as tar:
            for number, sample in enumerate(samples[start : start + samples_per_shard], start):
                tar.write(f"{number:03d}", {"png": b"", **sample})
    return directory


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write(tmp_path / "s", [{"txt": caption.encode()} for caption in CAPTIONS])


def change(*arguments: str | Path, generator: list[str] = SCENES) -> None:
    main(["data", "negatives", *map(str, arguments), *generator])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path, generator: list[str] = SCENES) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        change(*arguments, generator=generator)
    assert ended.value.code == 2
    *others, line = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in other for other in others)
    return line.removeprefix("vlp: ")


def layer(folder: Path, column: str = "negatives") -> dict[str, list[str]]:
    rows = [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return {row["key"]: row[column] for row in rows}


def layer_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.parquet")}


def written_at(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


# ----------------------------------------------------------------------------- from captions to training


def test_training_draws_the_hard_captions_and_the_counts_add_up(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(shards)
    folder = shards / "layers" / "negatives"
    texts, kinds = layer(folder), layer(folder, "kinds")
    assert list(texts) == ["000", "001", "002", "004", "005"], "a row for each caption"
    assert texts["000"] == texts["002"] != []
    assert "a large red star above a large white square" in texts["000"]
    assert kinds["000"][texts["000"].index("a large red star above a large white square")] == "swap attribute"
    assert texts["005"] == kinds["005"] == []
    assert all(len(texts[key]) == len(kinds[key]) for key in texts)

    number = sum(map(len, texts.values()))
    out = capsys.readouterr().out
    assert "captions: 5, 4 of them different" in out
    assert f"left out 1, no caption: {shards}/00001.tar: 003" in out
    assert "without a possible negative: 1 (20.0%), which train as before" in out
    assert f"1, nothing to change: {shards}/00002.tar: 005 (no scene at all)" in out
    assert f"accepted {number} of " in out
    assert "train with data.hard_captions: [{source: layer.negatives.negatives}] and objective hard_negatives" in out

    paths, source = find_shards([str(shards)]), "layer.negatives.negatives"
    drawn = CaptionLayers([CaptionSource(source=source)], paths)
    assert list(drawn.of(open_shard(paths[0])[0], 0)[source]) == texts["000"]
    assert list(drawn.of(open_shard(paths[2])[0], 1)[source]) == []


def test_every_caption_of_a_list_is_changed_and_no_change_is_another_one(tmp_path: Path) -> None:
    one, other, third = "a red dog", "a blue cat", "a green cow"
    samples = [
        {"txt": one.encode(), "json": json.dumps({"names": [other, one, 7]}).encode()},
        {"txt": third.encode(), "json": json.dumps({"names": [third, other]}).encode()},
        {"txt": one.encode(), "json": b"{broken"},
    ]
    shards = write(tmp_path / "s", samples, samples_per_shard=3)
    change(shards, "--caption", "json.names", "--keep-rejected", "--number", "9", generator=RANDOM)
    texts = layer(shards / "layers" / "negatives")
    assert texts == {"000": [third], "001": [one]}
    rejected = layer(shards / "layers" / "negatives_rejected", "rejected")
    reasons = layer(shards / "layers" / "negatives_rejected", "reasons")
    assert {key: sorted(zip(rejected[key], reasons[key], strict=True)) for key in rejected} == {
        "000": [(other, "other_caption"), (third, "repeated"), (one, "other_caption")],
        "001": [(other, "other_caption"), (third, "other_caption"), (one, "repeated")],
    }


def test_again_writes_nothing_changes_nothing_and_tells_the_same(
    shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(shards)
    first = capsys.readouterr().out
    folder = shards / "layers" / "negatives"
    before = written_at(folder)
    monkeypatch.setattr(negative_layers, "_judged", lambda *_: pytest.fail("judged again"))
    change(shards)
    assert capsys.readouterr().out == first
    assert written_at(folder) == before
    assert len(before) == 2 * 3
