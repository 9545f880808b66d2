from __future__ import annotations

import csv
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import _attach_join
from data_tools.attach import AttachOptions, attach
from vlp.cli import main
from vlp.data.captions import CaptionLayers, CaptionSource, draw
from vlp.data.index import open_shard
from vlp.data.layer_files import layer_columns, record_of
from vlp.data.layers import LayerReader, LayerWriter, check_layer
from vlp.data.shards import find_shards
from vlp.data.write import ShardWriter

NUMBER = 7
KEYS = [f"{i // 3:05d}{i % 3:04d}" for i in range(99)]  # of shards of three


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Seven samples in three shards, with file and url in their JSON; sample 3 has no url, 5 and 6 share one."""
    with ShardWriter(tmp_path / "train", 3) as writer:
        for i in range(NUMBER):
            url = {} if i == 3 else {"url": f"http://a/{min(i, 5)}.png?w=1"}
            writer.write(b"picture %d" % i, "png", f"a cat, number {i}", file=f"sub/{i}.png", **url)
    return tmp_path / "train"


def run(folder: Path, *arguments: Any, name: str = "new") -> None:
    main(["data", "attach", str(folder), "--name", name, "--workers", "1", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: Any) -> str:
    """The sentence of a refusal, after which there is no layer."""
    with pytest.raises(SystemExit) as caught:
        run(folder, *arguments, name="refused")
    assert caught.value.code == 2
    assert not (folder / "layers/refused").exists()
    text = capsys.readouterr().err.strip()
    assert "\n" not in text
    return text


def values(folder: Path, name: str = "new", root: Path | None = None) -> dict[str, list[Any]]:
    """Column -> the values of all samples, None where the layer has none."""
    paths = find_shards(str(folder))
    columns = layer_columns(name, paths, root)
    assert columns is not None
    reader = LayerReader(root, name, columns)
    found: dict[str, list[Any]] = {column: [] for column in columns}
    for path in paths:
        shard, _ = open_shard(path)
        assert check_layer(shard, name, root), f"{path} has a file"
        for column, array in reader.columns_of(shard).items():
            row = [array[i] for i in range(len(shard))]
            found[column] += [None if v is None or (isinstance(v, float) and np.isnan(v)) else v for v in row]
    return found


# ---- LaCLIP's release


def release(tmp_path: Path, rows: list[tuple[str, str]], *texts: list[str]) -> list[Path]:
    """The CSV without header, and a text file of each of ``texts``."""
    with (tmp_path / "original.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    files = [tmp_path / f"rewrites_{number}.txt" for number in range(len(texts))]
    for file, lines in zip(files, texts, strict=True):
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return [tmp_path / "original.csv", *files]


def whole(order: list[int]) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    rows = [(f"sub/{i}.png", f"a cat, number {i}") for i in order]
    return rows, [f"first of {i}\u2028, \x0bone line" for i in order], [f"second of {i}" for i in order]


def test_rewrites_of_laclip_join_by_file_whatever_the_order(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = release(tmp_path, *whole([4, 2, 0, 6, 5, 3, 1]))
    run(shards, "--laclip", *files, "--sample", "json.file", "--json", tmp_path / "out.json")
    found = values(shards)["rewrites"]
    assert found == [[f"first of {i}\u2028, \x0bone line", f"second of {i}"] for i in range(NUMBER)]
    assert "7 captions compared with those of the samples, 0.00% are other ones" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert (figures["samples"], figures["covered"], figures["compared"], figures["differing"]) == (7, 7, 7, 0)


@pytest.mark.parametrize("compare", ["stem", "name"])
def test_paths_join_by_the_part_that_is_asked_for(shards: Path, tmp_path: Path, compare: str) -> None:
    rows, *texts = whole(list(range(NUMBER)))
    files = release(tmp_path, [(f"elsewhere/{path}", caption) for path, caption in rows], *texts)
    run(shards, "--laclip", *files, "--sample", "json.file", "--compare", compare)
    assert [texts[1] for texts in values(shards)["rewrites"]] == [f"second of {i}" for i in range(NUMBER)]


def test_a_csv_may_go_through_the_captions_several_times(shards: Path, tmp_path: Path) -> None:
    """Row i belongs to line i mod lines; a header and files that are no pictures are no rows."""
    rows = [("path", "caption"), *((f"{KEYS[i]}.jpg", f"own {i}") for i in range(6)), ("notes.pdf", "none")]
    files = release(tmp_path, rows, ["one", "two", "three"])
    run(shards, "--laclip", *files, "--max-differing", 1)
    assert values(shards)["rewrites"] == [["one"], ["two"], ["three"]] * 2 + [None]


def test_the_caption_that_was_rewritten_is_the_one_compared(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of row i that of row i mod lines, whatever else the CSV says."""
    rows = [(f"{KEYS[i]}.jpg", "a cat, number 0" if i == 0 else f"own {i}") for i in range(6)]
    files = release(tmp_path, rows, ["one"])
    run(shards, "--laclip", *files, "--max-differing", 1)
    assert "6 captions compared with those of the samples, 83.33% are other ones" in capsys.readouterr().out


def test_files_out_of_line_are_refused(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, first, second = whole(list(range(NUMBER)))
    at = ["--sample", "json.file"]
    files = release(tmp_path, rows, first, second[:-1])
    sentence = refused(capsys, shards, "--laclip", *files, *at)
    assert f"{files[1]} has 7 lines, {files[2]} has 6: each must hold a rewrite of each caption" in sentence
    files = release(tmp_path, rows[:-1], first)
    assert f"{files[0]} has 6 rows (6 of pictures), {files[1]} has 7 lines" in refused(
        capsys, shards, "--laclip", *files, *at
    )
    shifted = [(path, caption) for (path, _), (_, caption) in zip(rows, [*rows[1:], rows[0]], strict=True)]
    files = release(tmp_path, shifted, first)
    sentence = refused(capsys, shards, "--laclip", *files, *at)
    assert "7 of 7 captions" in sentence
    assert f"{shards}/00000.tar: 000000000, 'a cat, number 1' in the table" in sentence


def test_white_space_is_no_difference_and_few_differences_are_reported(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, first, _ = whole(list(range(NUMBER)))
    rows[0] = (rows[0][0], " a  cat, number 0\n")
    rows[1] = (rows[1][0], "a dog")
    files = release(tmp_path, rows, first)
    assert "1 of 7 captions" in refused(capsys, shards, "--laclip", *files, "--sample", "json.file")
    run(shards, "--laclip", *files, "--sample", "json.file", "--max-differing", 0.2)
    assert "14.29% are other ones" in capsys.readouterr().out


def test_an_empty_rewrite_keeps_its_share_and_draws_the_caption(shards: Path, tmp_path: Path) -> None:
    files = release(tmp_path, whole(list(range(NUMBER)))[0], [""] * NUMBER, ["word"] * NUMBER, ["two words"] * NUMBER)
    run(shards, "--laclip", *files, "--sample", "json.file")
    shard = open_shard(find_shards(str(shards))[0])[0]
    sources = [CaptionSource(source="layer.new", each=True), CaptionSource(source="txt")]
    texts = CaptionLayers(sources, [shard.path]).of(shard, 0)
    generator = np.random.default_rng(0)
    drawn = [draw({"txt": b"plain"}, sources, generator, texts) for _ in range(2000)]
    assert set(drawn) == {"plain", "two words"}
    assert abs(drawn.count("two words") - 500) < 80


# ---- Tables


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = path.suffixes[0]
    if text == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    file = io.StringIO(newline="")
    if text == ".jsonl":
        file.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if text == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    content = file.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl", "t.jsonl.gz", "t.csv", "t.tsv", "t.csv.gz"])
def test_a_table_of_any_format(shards: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"id": KEYS[i], "said": f'a "cat",\nnumber {i}', "score": i / 4, "count": i, "day": f"2024-01-0{i + 1}"}
        for i in (6, 1, 2, 98, 5)
    ]
    table = write_table(tmp_path / name, rows)
    run(shards, "--table", table, "--on", "id", "--column", "said=text", "score", "--column", "count", "day")
    assert values(shards) == {
        "text": [f'a "cat",\nnumber {i}' if i in (1, 2, 5, 6) else None for i in range(NUMBER)],
        "score": [i / 4 if i in (1, 2, 5, 6) else None for i in range(NUMBER)],
        "count": [i if i in (1, 2, 5, 6) else None for i in range(NUMBER)],
        "day": [f"2024-01-0{i + 1}" if i in (1, 2, 5, 6) else None for i in range(NUMBER)],
    }
    assert layer_columns("new", find_shards(str(shards))) == {
        "text": "text",
        "score": "float",
        "count": "int",
        "day": "text",
    }
    output = capsys.readouterr().out
    assert "4 of 7 samples have a row (57.1%)" in output
    assert f"1 rows of no sample: '{KEYS[98]}'" in output
    assert f"3 samples without a row: {shards}/00000.tar: 000000000, {shards}/00001.tar: 000010000" in output


def test_lists_and_truth_values_and_several_files(shards: Path, tmp_path: Path) -> None:
    one = write_table(tmp_path / "a.jsonl", [{"key": "000000000", "said": ["a", "b"], "good": True}])
    two = write_table(tmp_path / "b.parquet", [{"key": KEYS[6], "said": ["c"], "good": False}])
    run(shards, "--table", one, two, "--on", "key", "--column", "said", "good")
    found = values(shards)
    assert found["said"] == [["a", "b"], *[None] * 5, ["c"]]
    assert found["good"] == [True, *[None] * 5, False]


def test_a_name_in_the_json_may_be_that_of_several_samples(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"link": f"http://a/{i}.png?w=1", "said": f"text {i}"} for i in range(6)]
    table = write_table(tmp_path / "t.csv", rows)
    run(shards, "--table", table, "--on", "link", "--column", "said", "--sample", "json.url")
    assert values(shards)["said"] == ["text 0", "text 1", "text 2", None, "text 4", "text 5", "text 5"]
    output = capsys.readouterr().out
    assert "1 rows of no sample: 'http://a/3.png?w=1'" in output
    assert "1 x sample without json.url" in output
    sentence = refused(
        capsys,
        shards,
        "--table",
        table,
        "--on",
        "link",
        "--column",
        "said",
        "--sample",
        "json.url",
        "--compare",
        "name",
    )
    assert KEYS[5] in sentence
    assert KEYS[6] in sentence
    assert "have the same json.url (name)" in sentence


def test_repeated_rows_are_refused_or_gathered(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if they stand far apart, in files of their own, and their shard was handed rows in between."""
    monkeypatch.setattr(_attach_join, "HELD", 2)
    tables = []
    for number in range(3):
        rows = [{"key": KEYS[i], "said": f"{number} of {i}", "score": 1.5} for i in range(number, NUMBER)]
        tables.append(write_table(tmp_path / f"{number}.jsonl", rows))
    asked = ["--table", *tables, "--on", "key", "--column", "said"]
    assert "several rows are of the sample '000000001'" in refused(capsys, shards, *asked)
    sentence = refused(capsys, shards, *asked, "score", "--repeated", "list")
    assert "--repeated list gathers texts, and 'score' is float" in sentence
    run(shards, *asked, "--repeated", "list")
    assert values(shards)["said"] == [[f"{n} of {i}" for n in range(3) if n <= i] for i in range(NUMBER)]


def test_repeated_rows_in_one_batch_are_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "t.csv", [{"key": KEYS[i], "v": i} for i in (1, 2, 4, 2)])
    assert "sample '000000002'" in refused(capsys, shards, "--table", table, "--on", "key", "--column", "v")


def test_many_rows_in_small_pieces_and_processes_are_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ShardWriter(tmp_path / "train", 50) as writer:
        for i in range(500):
            writer.write(b"p", "png", f"caption {i}")
    order = np.random.default_rng(0).permutation(700)
    table = write_table(tmp_path / "t.parquet", [{"key": f"{i // 50:05d}{i % 50:04d}.jpg", "v": int(i)} for i in order])
    asked = AttachOptions((str(tmp_path / "train"),), "v", (table,), "key", ("v",), workers=1)
    report = attach(asked)
    assert (report.joined.covered, report.joined.unmatched, report.written) == (500, 200, 10)
    assert values(tmp_path / "train", "v")["v"] == list(range(500))
    monkeypatch.setattr("data_tools._attach_tables.ROWS", 7)
    monkeypatch.setattr(_attach_join, "HELD", 40)
    attach(AttachOptions(**(vars(asked) | {"root": str(tmp_path / "root"), "workers": 2})))
    for path in (tmp_path / "train/layers/v").iterdir():
        assert path.read_bytes() == (tmp_path / "root/v" / path.name).read_bytes()


def test_what_is_there_is_not_written_again(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "t.csv", [{"key": KEYS[i], "v": i} for i in range(NUMBER)])
    asked = ["--table", table, "--on", "key", "--column", "v"]
    run(shards, *asked)
    assert "wrote 3 files" in capsys.readouterr().out
    file = shards / "layers/new/00001.parquet"
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in file.parent.iterdir()}
    file.unlink()
    (file.parent / ".attach").mkdir()
    (file.parent / ".attach/00001.arrows").write_bytes(b"of a run that was killed")
    run(shards, *asked)
    assert "wrote 1 files" in capsys.readouterr().out
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in file.parent.iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name][1] != before[name][1]} == {"00001.parquet"}
    assert after["00001.parquet"][0] == before["00001.parquet"][0]
    write_table(tmp_path / "t.csv", [{"key": KEYS[i], "v": -i} for i in range(NUMBER)])
    run(shards, *asked)
    assert "wrote 3 files" in capsys.readouterr().out
    assert values(shards)["v"] == [-i for i in range(NUMBER)]


def test_provenance_names_files_and_their_content(shards: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", [{"key": "000000000", "v": 1}])
    run(shards, "--table", table, "--on", "key", "--column", "v")
    record = record_of(pq.read_schema(shards / "layers/new/00000.parquet"))
    assert record is not None
    provenance = record["provenance"]
    assert provenance["tool"] == "vlp data attach"
    assert provenance["files"][0]["name"] == "t.csv"
    assert len(provenance["files"][0]["sha256"]) == 64


def test_layers_of_other_tools_are_left_alone(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = open_shard(find_shards(str(shards))[1])[0]
    written = Path(LayerWriter(None, "new", {"tool": "vlp data rewrite"}).write(shard, [shard.key(0)], {"v": [1]}))
    before = written.read_bytes()
    table = write_table(tmp_path / "t.csv", [{"key": "000000000", "v": 1}])
    with pytest.raises(SystemExit):
        run(shards, "--table", table, "--on", "key", "--column", "v")
    assert f"{written} was written by vlp data rewrite: choose another --name" in capsys.readouterr().err
    assert written.read_bytes() == before


TABLE = ["--table", "t.csv", "--on", "key", "--column", "v"]


@pytest.mark.parametrize(
    ("content", "arguments", "sentence"),
    [
        ("key,v\n1,2\n", TABLE, "no row of t.csv is of a sample: the rows' names are such as '1'.*such as '000000000'"),
        ("key,v\n000000000,2\n", [*TABLE, "--sample", "json.link"], "has a json.link to be joined by; fields.*file"),
        ("key,v\n000000000,2\n", [*TABLE[:4], "--column", "w"], "no column 'w'.*columns: key, v"),
        ("key,v\n000000000,2\n", [*TABLE, "v=w:number"], "KIND one of text, texts, float, int, bool"),
        ("key,v\n000000000,2\n", [*TABLE, "v=2nd"], "'2nd' cannot name a column"),
        ("key,v\n000000000,x\n", [*TABLE[:4], "--column", "v=v:int"], "t.csv cannot be read as .csv: .*'x'"),
        ("key,v\n", TABLE, "t.csv has no rows"),
        ("", TABLE, "t.csv has no column 'key'"),
        ("key,v\n000000000\n", TABLE, "t.csv cannot be read as .csv: .*Expected 2 columns, got 1"),
        ("key,v\n", [*TABLE, "--laclip", "t.csv", "t.csv"], "give either --table or --laclip"),
        ("key,v\n", [], "give either --table or --laclip"),
        ("key,v\n", ["--laclip", "t.csv"], "--laclip needs the CSV and one or several text files"),
        ("one\n", ["--laclip", "t.csv", "t.csv"], "t.csv, line 1, is no 'path,caption'"),
        ("key,v\n", ["--table", "u.csv", *TABLE[2:]], "u.csv is no file"),
        ("key,v\n", [*TABLE, "--caption", "json.title"], "no effect without --laclip"),
        ("key,v\n", [*TABLE, "--sample", "url"], "write key or json.FIELD"),
        ("key,v\n", ["--laclip", "t.csv", "t.csv", "--on", "x"], "no effect with --laclip"),
    ],
)
def test_mistakes_are_named(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(content)
    message = refused(capsys, shards, *arguments)
    assert re.search(sentence, message), message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"key": "000000000", "v": 1}\n{"key": "1", "v": "x"}\n', "column 'v' is not text, texts, float, int, bool"),
        ('{"key": "000000000", "v": {"a": 1}}\n', "column 'v' is not text, texts, float, int, bool"),
        ('{"key": "000000000", "v": 1\n', "t.jsonl, line 1, is not JSON"),
        ('\n["key"]\n', "t.jsonl, line 2, is no JSON object"),
    ],
)
def test_broken_json_lines_are_named(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    table = tmp_path / "t.jsonl"
    table.write_text(text)
    assert sentence in refused(capsys, shards, "--table", table, "--on", "key", "--column", "v")


def test_a_kind_that_later_rows_contradict_is_named(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_table(tmp_path / "a.jsonl", [{"key": "000000000", "v": 1}])
    two = write_table(tmp_path / "b.jsonl", [{"key": "000000001", "v": 1.5}])
    asked = ["--table", one, two, "--on", "key"]
    assert f"{two}: column 'v' is not int" in refused(capsys, shards, *asked, "--column", "v")
    run(shards, *asked, "--column", "v=v:float")
    assert values(shards)["v"][:3] == [1, 1.5, None]


def test_a_shard_that_is_missing_is_counted(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (shards / "00002.tar").open("r+b") as tar:
        tar.truncate(100)
    table = write_table(tmp_path / "t.csv", [{"key": KEYS[i], "v": i} for i in range(NUMBER)])
    run(shards, "--table", table, "--on", "key", "--column", "v")
    output = capsys.readouterr().out
    assert "6 of 6 samples" in output
    assert f"1 rows of no sample: '{KEYS[6]}'" in output
    assert "1 x not a tar" in output
