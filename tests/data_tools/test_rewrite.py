"""``vlp data rewrite`` from captions to what training draws; passes and files of their own are tested beside them."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools import _rewrite_layers
from data_tools._rewrite_gate import CONTENT, Verdict
from vlp import resolve
from vlp.cli import main
from vlp.data.captions import CaptionLayers, CaptionSource
from vlp.data.index import open_shard
from vlp.data.shards import find_shards
from vlp.data.write import TarFile

OFF = ["--off", *CONTENT]  # the rules of form are quick
SCENES = ["--engine", "scenes", "--workers", "1", *OFF]
CAPTIONS = [
    "a large white star above a large red square",
    "a large purple square right of a large purple star",
    "a large white star above a large red square",
    "",
    "a large white cross above a large purple heart",
    "no scene at all",
]


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(directory: Path, captions: list[str] = CAPTIONS, samples_per_shard: int = 2) -> Path:
    directory.mkdir()
    for start in range(0, len(captions), samples_per_shard):
        with TarFile(directory / f"{start // samples_per_shard:05d}.tar") as tar:
            for number, caption in enumerate(captions[start : start + samples_per_shard], start):
                tar.write(f"{number:03d}", {"png": png("red"), "txt": caption.encode()})
    return directory


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write(tmp_path / "s")


def rewrite(*arguments: str | Path, engine: list[str] = SCENES) -> None:
    main(["data", "rewrite", *map(str, arguments), *engine])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path, engine: list[str] = SCENES) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        rewrite(*arguments, engine=engine)
    assert ended.value.code == 2
    *others, line = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in other for other in others)
    return line.removeprefix("vlp: ")


def layer(folder: Path, column: str = "rewrites") -> dict[str, list[str]]:
    rows = [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return {row["key"]: row[column] for row in rows}


def layer_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.parquet")}


def written_at(folder: Path) -> dict[Path, int]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")
    return {file: file.stat().st_mtime_ns for file in files}


# ----------------------------------------------------------------------------- from captions to training


def test_training_draws_the_rewrites_and_the_counts_add_up(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(shards, "--keep-rejected", "--json", tmp_path / "s.json")
    accepted = layer(shards / "layers" / "rewrites")
    assert list(accepted) == ["000", "001", "002", "004", "005"], "a row for each caption"
    assert accepted["000"] == accepted["002"] != []
    assert accepted["005"] == []
    rejected = layer(shards / "layers" / "rewrites_rejected", "rejected")
    reasons = layer(shards / "layers" / "rewrites_rejected", "reasons")
    assert all(len(accepted[key]) + len(rejected[key]) == 5 for key in accepted)
    assert (rejected["005"], reasons["005"]) == ([""] * 5, ["refused"] * 5)

    number = sum(map(len, accepted.values()))
    out = capsys.readouterr().out
    assert "captions: 5, 4 of them different" in out
    assert f"left out 1, no caption: {shards}/00001.tar: 003" in out
    assert f"accepted {number} of 25 texts ({number / 25:.1%})" in out
    assert "5   20.0%  refused" in out
    assert "refused texts are not asked for again: for that remove their lines" in out
    assert "train with data.captions: [{source: txt}, {source: layer.rewrites, each: true}]" in out
    sheet = json.loads((tmp_path / "s.json").read_text())
    assert (sheet["texts"], sheet["accepted"], sheet["captions"], sheet["unanswered"]) == (25, number, 4, 0)
    assert sheet["left_out"]["no caption"]["number"] == 1
    assert sum(rule["texts"] for rule in sheet["rules"]) == 25 - number

    paths = find_shards([str(shards)])
    source = "layer.rewrites"
    layers = CaptionLayers([CaptionSource(source="txt"), CaptionSource(source=source, each=True)], paths)
    assert list(layers.of(open_shard(paths[0])[0], 0)[source]) == accepted["000"]
    assert list(layers.of(open_shard(paths[1])[0], 1)[source]) == []


def test_again_writes_nothing_and_tells_the_same(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(shards)
    first = capsys.readouterr().out.partition("captions:")[2]
    folder = shards / "layers" / "rewrites"
    before = written_at(folder)
    rewrite(shards)
    assert capsys.readouterr().out.partition("captions:") == ("", "captions:", first)
    assert written_at(folder) == before
    assert len(before) == 3 * 3


def test_captions_whose_texts_all_lie_in_the_files_of_other_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write(tmp_path / "s", [*CAPTIONS[:2], *CAPTIONS[:2]])
    rewrite(shards / "00001.tar")
    capsys.readouterr()
    rewrite(shards)
    assert "wrote" not in capsys.readouterr().out
    texts = layer(shards / "layers" / "rewrites")
    assert (texts["000"], texts["001"]) == (texts["002"], texts["003"])


def test_another_gate_judges_the_same_texts_anew(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(shards)
    texts = {file: file.read_bytes() for file in shards.rglob("*.jsonl")}
    rewrite(shards, "--off", "duplicate")
    more = layer(shards / "layers" / "rewrites")
    assert [len(more[key]) for key in ("000", "005")] == [5, 0]
    assert {file: file.read_bytes() for file in shards.rglob("*.jsonl")} == texts
    capsys.readouterr()
    rewrite(shards, "--min-words", "30")
    out = capsys.readouterr().out
    assert "WARNING: 100% of the texts are rejected" in out
    assert "train with" not in out


def test_rejected_texts_that_are_there_follow_another_gate(shards: Path) -> None:
    rewrite(shards, "--keep-rejected")
    rewrite(shards, "--min-words", "30")
    rejected = layer(shards / "layers" / "rewrites_rejected", "reasons")
    assert rejected["000"] == ["too_short"] * 5
    assert layer(shards / "layers" / "rewrites")["000"] == []


def test_a_gate_whose_code_changed_judges_anew(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(shards)
    before = layer(shards / "layers" / "rewrites")
    monkeypatch.setattr(_rewrite_layers, "judge", lambda _, items: [[Verdict("x")] * len(own) for _, own in items])
    rewrite(shards)
    assert layer(shards / "layers" / "rewrites") == before
    monkeypatch.setattr(_rewrite_layers, "_gate_itself", lambda: {"rules": "others"})
    rewrite(shards)
    assert layer(shards / "layers" / "rewrites")["000"] == ["x"] * 5
    for name, counts in (("words.py", True), ("pictures.py", True), ("synonyms.txt", True), ("sheet.py", False)):
        folder = tmp_path / name
        folder.mkdir()
        for file in Path(_rewrite_layers.__file__).parent.glob("_rewrite_*.*"):
            shutil.copy(file, folder)
        digest = _rewrite_layers.rules_digest(folder)
        with (folder / f"_rewrite_{name}").open("a") as changed:
            changed.write("#")
        assert (_rewrite_layers.rules_digest(folder) != digest) == counts


def test_verdicts_are_kept_only_for_the_texts_and_samples_they_are_of(shards: Path) -> None:
    rewrite(shards)
    before = layer(shards / "layers" / "rewrites")
    shutil.rmtree(shards / "layers" / "rewrites" / ".completions")
    rewrite(shards, "--seed", "1")
    after = layer(shards / "layers" / "rewrites")
    assert after != before
    for file in shards.rglob("*.verdicts.json"):
        file.write_bytes(file.read_bytes()[:40])
    rewrite(shards, "--seed", "1", "--keep-rejected")
    assert layer(shards / "layers" / "rewrites") == after


def test_other_captions_or_other_texts_make_another_layer_under_the_same_keys_and_options(tmp_path: Path) -> None:
    shards = write(tmp_path / "s")
    folder = shards / "layers" / "rewrites"
    rewrite(shards)
    before = layer(folder)
    shutil.copytree(shards / "layers", tmp_path / "layers")
    shutil.rmtree(shards)
    write(shards, [*CAPTIONS[1::-1], *CAPTIONS[2:4], "", *CAPTIONS[5:]])
    shutil.copytree(tmp_path / "layers", shards / "layers")
    rewrite(shards)
    assert layer(folder) == {"000": before["001"], "001": before["000"], "002": before["000"], "005": []}
    for file in folder.glob(".completions/00000.jsonl"):
        head, *lines = map(json.loads, file.read_text().splitlines())
        others = [{**line, "text": f"{line['text']} outside"} for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in (head, *others)))
    rewrite(shards)
    after = layer(folder)
    assert after["000"] == [f"{text} outside" for text in before["001"]]
    assert after["002"] == before["000"]


@pytest.mark.slow
def test_parts_of_a_slurm_array_make_what_one_machine_makes(shards: Path, tmp_path: Path) -> None:
    script = resolve.recipes_folder() / "launch" / "slurm" / "rewrite.sbatch"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    engine = ["--engine", "scenes", "--workers", "1", *OFF]
    for task in range(2):
        numbers = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"}
        done = subprocess.run(
            ["bash", script, str(shards), "--root", str(tmp_path / "parts"), *engine],
            env={**environment, **numbers},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / "parts" / "rewrites").glob("*.parquet"))) == (2, 3)[task]
    rewrite(shards, "--root", tmp_path / "one")
    assert layer_bytes(tmp_path / "parts" / "rewrites") == layer_bytes(tmp_path / "one" / "rewrites") != {}


def test_a_part_without_shards_says_so(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(shards, "--part", "7/8")
    assert capsys.readouterr().out == "--part 7/8: no shard falls into this part\n"
    assert not (shards / "layers").exists()


def test_a_part_without_captions_has_an_empty_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write(tmp_path / "s", [*CAPTIONS[:2], "", ""])
    rewrite(shards, "--part", "1/2", "--dry-run")
    rewrite(shards, "--part", "1/2", "--report", tmp_path / "s.html")
    assert "--part 1/2: no sample of this part has a caption, so its layer is empty" in capsys.readouterr().out
    assert (tmp_path / "s.html").is_file()
    assert [file.name for file in (shards / "layers" / "rewrites").glob("*.parquet")] == ["00001.parquet"]
    assert layer(shards / "layers" / "rewrites") == {}
    assert "none of the 2 samples has a caption" in refused(capsys, shards / "00001.tar")


# ----------------------------------------------------------------------------- before it costs


def test_an_estimate_keeps_its_texts_and_shows_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = [
        f"a large {one} {shape} above a large {other} {shape}"
        for one in ("red", "green", "white")
        for other in ("blue", "yellow", "purple")
        for shape in ("square", "star", "heart")
    ]
    shards = write(tmp_path / "s", scenes, samples_per_shard=9)
    rewrite(shards, "--dry-run")
    out = capsys.readouterr().out
    assert "captions  27 in 27 samples, 27 of them different" in out
    assert "texts     135, of which 135 are not there yet" in out
    assert "for the 102 texts that are left" in out
    assert "(accepted)" in out
    assert not list(shards.rglob("*.parquet")), "no layer yet"
    assert sum(len(file.read_text().splitlines()) - 1 for file in shards.rglob("*.jsonl")) == 33
    rewrite(shards)
    assert "wrote 102 texts in " in capsys.readouterr().out
    rewrite(shards, "--dry-run")
    assert "nothing is left to be written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--number", "0"], "--number 0 must be at least 1"),
        (["--caption", "layer.x"], "--caption layer.x is no source of captions here: write txt or json.FIELD"),
        (["--caption", "json.names"], "none of the 6 samples has a caption at --caption json.names"),
        (["--name", "my-layer"], "'my-layer' cannot name a layer"),
        (["--root", "s3://bucket/layers"], "name a local folder with --root"),
        (["--prompt", "laclib"], "no prompt 'laclib', did you mean 'laclip'?"),
        (["--temperature", "-1"], "--temperature: must be greater than or equal to 0"),
        (["--url", "http://h"], "--url has no effect on --engine scenes"),
        (["--part", "2/2"], "--part 2/2: parts count from 0"),
        (["--gpus", "1"], "--gpus 1 has no effect without --ray"),
        (["--json", "nowhere/x.json"], "--json nowhere/x.json: there is no directory nowhere: make it first"),
        (["--dry-run", "--keep-rejected"], "have no effect with --dry-run"),
        (["--workers", "0"], "--workers 0 must be at least 1"),
        pytest.param(["--clip-model", "nothing"], "nothing", marks=pytest.mark.slow),
    ],
)
def test_mistakes_are_told_in_one_sentence_before_anything_is_written(
    shards: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, shards, engine=[*SCENES, *options])
    assert not (shards / "layers").exists()


def test_texts_of_other_options_are_refused_and_named(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(shards)
    before = {file: file.read_bytes() for file in shards.rglob("*.jsonl")}
    assert 'grammar: "both" there, "B" wanted' in refused(capsys, shards, "--grammar", "B")
    assert "seed: 0 there, 1 wanted" in refused(capsys, shards, "--seed", "1", "--dry-run")
    assert {file: file.read_bytes() for file in shards.rglob("*.jsonl")} == before


# ----------------------------------------------------------------------------- real parts


@pytest.fixture
def ray_of_two() -> Iterator[str]:
    ray = pytest.importorskip("ray")
    yield "local"
    ray.shutdown()


@pytest.mark.slow
def test_ray_makes_what_one_process_makes(
    shards: Path, tmp_path: Path, ray_of_two: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = ["--engine", "scenes", "--workers", "2", "--ray", ray_of_two, *OFF]
    says = refused(capsys, shards, "--gpus", "9", "--root", tmp_path / "ray", engine=ray)
    assert says == "--gpus 9: no machine of the Ray cluster has more than 0: ask for fewer"
    rewrite(shards, "--root", tmp_path / "ray", engine=ray)
    rewrite(shards, "--root", tmp_path / "one")
    assert layer_bytes(tmp_path / "ray" / "rewrites") == layer_bytes(tmp_path / "one" / "rewrites") != {}


@pytest.mark.slow
def test_a_real_language_model_behind_a_server(
    language_server: Any, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ["--engine", "server", "--url", language_server.url, "--number", "2", "--max-tokens", "24", *SCENES[2:]]
    rewrite(shards, "--in-flight", "4", "--report", tmp_path / "s.html", engine=server)
    out = capsys.readouterr().out
    assert "wrote 8 texts in " in out
    records = [json.loads(line) for file in shards.rglob("*.jsonl") for line in file.read_text().splitlines()]
    texts = [record for record in records if "caption" in record]
    assert {record["model"] for record in records if "model" in record} == {language_server.model}
    assert all(0 < text["tokens"] <= 25 and text["prompt_tokens"] > 30 for text in texts)
    assert list(layer(shards / "layers" / "rewrites")) == ["000", "001", "002", "004", "005"]
    assert "<html" in (tmp_path / "s.html").read_text()[:200]
    rewrite(shards, "--in-flight", "2", "--dry-run", engine=server)
    assert "nothing is left to be written" in capsys.readouterr().out
