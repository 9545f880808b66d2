from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlp.cli import main
from vlp.data.index import open_shard
from vlp.data.layers import LayerWriter
from vlp.data.shards import Shard, find_shards
from vlp.data.write import ShardWriter


def write_data(directory: Path, num_samples: int = 6, caption: str = "caption") -> list[Shard]:
    with ShardWriter(directory, 3) as writer:
        for number in range(num_samples):
            writer.write(b"picture %d" % number, "png", f"{caption} {number}")
    return [open_shard(path)[0] for path in find_shards(str(directory))]


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    """Two layers: scores of all but one sample, rewrites of the first shard."""
    found = write_data(tmp_path / "train")
    scores = LayerWriter(None, "aesthetic", {"tool": "score", "model": "M"})
    for shard in found:
        keys = [shard.key(row) for row in range(3)]
        keys = keys[1:] if shard is found[0] else keys
        scores.write(shard, keys, {"value": [float(key) / 10000 for key in keys], "note": [None for _ in keys]})
    texts = {"texts": [["ein Hund", "un chien"]]}
    LayerWriter(None, "rewrites", {"tool": "rewrite"}).write(found[0], [found[0].key(0)], texts)
    return found


def layers_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["data", "layers", *arguments])
    return capsys.readouterr().out


def test_the_table_and_the_figures(shards: list[Shard], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = layers_of(capsys, str(tmp_path / "train"), "--json", str(tmp_path / "out.json"), "--workers", "1")
    assert "aesthetic  2 of 2   5 of 6     83.3%             0      0           0" in output
    assert "rewrites   1 of 2   1 of 6     16.7%" in output
    assert "columns: value (float), note (text)" in output
    assert 'made by: {"model": "M", "tool": "score"}' in output
    aesthetic, rewrites = json.loads((tmp_path / "out.json").read_text())["layers"]
    assert aesthetic["coverage"] == pytest.approx(5 / 6)
    assert rewrites["columns"] == {"texts": "texts"}
    assert rewrites["provenance"] == [{"tool": "rewrite"}]


def test_one_layer_under_another_root_in_two_processes(
    shards: list[Shard], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        writer = LayerWriter(tmp_path / "root", name, {})
        for shard in shards:
            writer.write(shard, [shard.key(0)], {"v": [1]})
    root = str(tmp_path / "root")
    output = layers_of(capsys, str(tmp_path / "train"), "--root", root, "--name", "b", "--workers", "2")
    assert "b      2 of 2   2 of 6     33.3%" in output
    assert "a  " not in output


def test_a_preview_shows_values_beside_captions(
    shards: list[Shard], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = layers_of(capsys, str(tmp_path / "train"), "--preview", "4", "--workers", "1")
    samples = output.partition("\n\n")[2].split("\n\n")
    assert samples[0].splitlines() == [
        "000000000  caption 0",
        "    aesthetic.value: -",
        "    aesthetic.note: -",
        '    rewrites.texts: ["ein Hund", "un chien"]',
    ]
    assert samples[3].splitlines()[:2] == ["000010000  caption 3", "    aesthetic.value: 1"]
    assert len(samples) == 4


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["data", "layers", *arguments, "--workers", "1"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_stale_files_are_named(shards: list[Shard], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tar,) = [shard.path for shard in write_data(tmp_path / "new", 2)]
    Path(tar).replace(shards[0].path)
    error = refused(capsys, str(tmp_path / "train"))
    path = tmp_path / "train/layers/aesthetic/00000.parquet"
    assert f"2 stale, 1 with unknown keys; {path} was written for other samples" in error
    assert "run the tool that made it again" in error


def test_unknown_keys_and_broken_files_are_named(
    shards: list[Shard], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "train/layers/foreign"
    folder.mkdir()
    keys: list[Any] = [shards[0].key(0), "cat.jpg"]
    pq.write_table(pa.table({"key": keys, "v": [1, 2]}), folder / "00000.parquet")
    assert "00000.parquet: cat.jpg are keys that the shard lacks" in refused(capsys, str(tmp_path / "train"))
    pq.write_table(pa.table({"key": keys[:1] * 2, "v": [1, 2]}), folder / "00000.parquet")
    assert "00000.parquet (a key comes twice) cannot be used" in refused(capsys, str(tmp_path / "train"))
    (folder / "00000.parquet").write_bytes(b"PAR1")
    assert "1 unreadable; " in refused(capsys, str(tmp_path / "train"))


def test_mistakes(shards: list[Shard], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = str(tmp_path / "train")
    known = "--name: no layer 'aesthetik'"
    assert known in (error := refused(capsys, train, "--name", "aesthetik"))
    assert "the layers there are: aesthetic, rewrites" in error
    assert "holds no layer" in refused(capsys, train, "--root", str(tmp_path / "nowhere"))
    write_data(tmp_path / "second")
    error = refused(capsys, train, str(tmp_path / "second"), "--root", str(tmp_path))
    assert "would share the layer files 00000.parquet" in error


@pytest.mark.parametrize("tool", [["filter"], ["rewrite", "--engine", "scenes"]], ids=lambda tool: tool[0])
def test_no_tool_writes_over_the_layer_of_another(
    shards: list[Shard], tool: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(shards[0].path).parent / "layers/rewrites/00000.parquet"
    before = file.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        main(["data", *tool, str(Path(shards[0].path).parent), "--name", "rewrites"])
    assert stopped.value.code == 2
    assert f"{file} was written by rewrite: choose another --name, or remove that layer" in capsys.readouterr().err
    assert file.read_bytes() == before
