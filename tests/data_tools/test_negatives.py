"""``vlp data negatives`` from captions to what training draws; judge, generators and sheet are tested by themselves."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_tools._negatives import blind
from data_tools._negatives import layers as negative_layers
from data_tools._negatives.generators import scenes
from data_tools._negatives.judge import Verdict
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


def test_other_captions_under_the_same_keys_are_changed_anew(tmp_path: Path) -> None:
    shards = write(tmp_path / "s", [{"txt": caption.encode()} for caption in CAPTIONS[:2]])
    change(shards)
    before = layer(shards / "layers" / "negatives")
    other = write(tmp_path / "t", [{"txt": caption.encode()} for caption in CAPTIONS[1::-1]])
    (other / "00000.tar").rename(shards / "00000.tar")
    change(shards)
    assert layer(shards / "layers" / "negatives") == {"000": before["001"], "001": before["000"]}


def test_rules_that_changed_judge_anew_and_the_rejected_follow(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(shards, "--keep-rejected")
    before = layer(shards / "layers" / "negatives")
    rejected = shards / "layers" / "negatives_rejected"
    assert set(map(tuple, layer(rejected, "rejected").values())) == {()}
    monkeypatch.setattr(
        scenes.Generator,
        "judge",
        lambda self, items, negatives: [[Verdict(one.text, one.kind, "mine") for one in own] for own in negatives],
    )
    change(shards)
    assert layer(shards / "layers" / "negatives") == before, "kept verdicts"
    monkeypatch.setattr(negative_layers, "rules_digest", lambda folder: "others")
    change(shards)
    assert set(map(tuple, layer(shards / "layers" / "negatives").values())) == {()}
    assert layer(rejected, "rejected") == before
    assert set(layer(rejected, "reasons")["000"]) == {"mine"}


def test_the_digest_of_the_rules_depends_on_judge_and_generators_and_not_on_the_sheet(tmp_path: Path) -> None:
    tools = Path(negative_layers.__file__).parent.parent
    for name, counts in (
        ("_negatives/judge.py", True),
        ("_negatives/generators/scenes.py", True),
        ("_english/synonyms.txt", True),
        ("_scenes_changes.py", True),
        ("_negatives/sheet.py", False),
        ("_negatives/blind.py", False),
    ):
        folder = tmp_path / name.replace("/", "-")
        for part in ("_negatives", "_english"):
            shutil.copytree(tools / part, folder / part)
        for file in tools.glob("_scenes_*.py"):
            shutil.copy(file, folder)
        digest = negative_layers.rules_digest(folder)
        with (folder / name).open("a") as changed:
            changed.write("#")
        negative_layers.rules_digest.cache_clear()
        assert (negative_layers.rules_digest(folder) != digest) == counts, name


def test_the_layer_says_what_it_follows_from(shards: Path) -> None:
    change(shards, "--seed", "3", "--kinds", "swap relation", "replace colour", "--per-kind", "1")
    schema = pq.read_schema(shards / "layers" / "negatives" / "00000.parquet")
    made_by = json.loads(schema.metadata[b"vlp"])["provenance"]
    assert made_by["tool"] == "vlp data negatives"
    assert (made_by["generator"], made_by["kinds"], made_by["per_kind"]) == (
        "scenes",
        ["swap relation", "replace colour"],
        1,
    )
    assert (made_by["seed"], made_by["caption"], len(made_by["rules"])) == (3, "txt", 16)
    assert {"spacy", "lemminflect"} <= made_by["models"].keys()


# ----------------------------------------------------------------------------- several machines


def test_parts_and_processes_make_what_one_process_makes(shards: Path, tmp_path: Path) -> None:
    change(shards, "--root", tmp_path / "one")
    for part in range(2):
        change(shards, "--root", tmp_path / "parts", "--part", f"{part}/2")
    change(shards, "--root", tmp_path / "two", generator=["--generator", "scenes", "--workers", "2"])
    one = layer_bytes(tmp_path / "one" / "negatives")
    assert layer_bytes(tmp_path / "parts" / "negatives") == one != {}
    assert layer_bytes(tmp_path / "two" / "negatives") == one


def test_a_part_without_captions_has_an_empty_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write(tmp_path / "s", [{"txt": caption.encode()} for caption in [*CAPTIONS[:2], "", ""]])
    change(shards, "--part", "7/8")
    assert capsys.readouterr().out == "--part 7/8: no shard falls into this part\n"
    change(shards, "--part", "1/2")
    assert "captions: 0" in capsys.readouterr().out
    assert layer(shards / "layers" / "negatives") == {}
    says = refused(capsys, shards / "00001.tar", "--root", tmp_path / "other")
    assert says.startswith("no sample has a caption at --caption txt (left out 2, no caption: ")
    assert not (tmp_path / "other").exists()


@pytest.fixture
def ray_of_two() -> Iterator[str]:
    ray = pytest.importorskip("ray")
    yield "local"
    ray.shutdown()


@pytest.mark.slow
def test_ray_makes_what_one_process_makes(shards: Path, tmp_path: Path, ray_of_two: str) -> None:
    change(
        shards,
        "--root",
        tmp_path / "ray",
        generator=["--generator", "scenes", "--workers", "2", "--ray", ray_of_two],
    )
    change(shards, "--root", tmp_path / "one")
    assert layer_bytes(tmp_path / "ray" / "negatives") == layer_bytes(tmp_path / "one" / "negatives") != {}


# ----------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--generator", "scene"], "--generator: unknown generator 'scene', did you mean 'scenes'?; known: "),
        (["--caption", "layer.x"], "--caption layer.x is no source of captions here: write txt or json.FIELD"),
        (["--caption", "json.names"], "no sample has a caption at --caption json.names (left out 6, no caption"),
        (["--name", "my-layer"], "'my-layer' cannot name a layer"),
        (["--per-kind", "0"], "--per-kind: must be greater than or equal to 1"),
        (
            ["--model", "m"],
            "--model has no effect on --generator scenes: it is an option of --generator language_model",
        ),
        (["--prompt", "negatives"], "--prompt has no effect on --generator scenes"),
        (["--engine", "local"], "--engine has no effect on --generator scenes"),
        (["--temperature", "1"], "--temperature has no effect on --generator scenes"),
        (["--number", "2"], "--number has no effect on --generator scenes: it is an option of --generator "),
        (["--dry-run"], "--dry-run has no effect on --generator scenes: no model writes for it"),
        (["--dry-run", "--keep-rejected"], "have no effect with --dry-run"),
        (["--part", "2/2"], "--part 2/2: parts count from 0"),
        (["--gpus", "1", "--ray"], "--gpus 1 has no effect without --ray and --generator language_model"),
        (["--json", "nowhere/x.json"], "--json nowhere/x.json: there is no directory nowhere: make it first"),
        (["--workers", "0"], "--workers 0 must be at least 1"),
    ],
)
def test_mistakes_are_told_in_one_sentence_before_anything_is_written(
    shards: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, shards, generator=[*SCENES, *options])
    assert not (shards / "layers").exists()


def test_layers_of_other_tools_are_left_alone(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(shards)
    main(["data", "filter", str(shards), "--name", "mine", "--workers", "1"])
    before = layer_bytes(shards / "layers" / "mine")
    says = refused(capsys, shards, "--name", "mine")
    assert "was written by vlp data filter: choose another --name, or remove that layer" in says
    assert layer_bytes(shards / "layers" / "mine") == before


# ----------------------------------------------------------------------------- the blind test


def test_what_a_classifier_tells_apart_is_told_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    things = [f"{one}{two}" for one in ("ba", "do", "ki", "lu", "me") for two in ("gon", "rat", "sel", "tip", "vun")]
    captions = [f"a {colour} {thing}" for thing in things for colour in ("red", "red", "blue")]
    shards = write(tmp_path / "s", [{"txt": caption.encode()} for caption in captions], samples_per_shard=75)
    change(shards, generator=["--generator", "random", "--workers", "1", "--number", "1"])
    out = capsys.readouterr().out
    assert "blind test: of true and changed caption a classifier without pictures takes the true one" in out
    assert "WARNING" not in out, "captions of other pictures are as true as those of this one"


def test_without_scikit_learn_a_sentence_says_which_package_brings_it(
    shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    monkeypatch.setattr(blind, "FEWEST", 1)
    change(shards)
    out = capsys.readouterr().out
    assert "the blind test needs scikit-learn: pip install 'vlp[negatives]'" in out
    assert "train with" in out
