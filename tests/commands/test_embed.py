"""``vlp embed``: rows as the evaluation embeds them, what is whole is left, what is bad is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlp import distributed
from vlp.cli import main
from vlp.data.benchmark_sets import StoredFile
from vlp.data.write import ShardWriter, encode_image
from vlp.encoders import openclip
from vlp.encoders.options import ModelOptions
from vlp.evaluation.embed import embed_images, embed_texts
from vlp.search import collect, parts
from vlp.search.model import place_of

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


def saved(directory: Path, seed: int) -> str:
    openclip.save_openclip_directory(openclip.build(ModelOptions(config=CONFIG), seed=seed), directory)
    return str(directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("model"), seed=1)


def png(seed: int) -> bytes:
    """Blobs of colour, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return encode_image(Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of three pictures each, and one bad picture."""
    with ShardWriter(tmp_path / "shards", 4) as writer:
        for number in range(7):
            data = png(number) if number != 2 else b"\x89PNG broken"
            writer.write(data, "png", f"picture {number}", captions=[f"one {number}", f"two {number}"])
    return tmp_path / "shards"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for seed, name in enumerate(["b.png", "a.png", "deep/c.png"]):
        (folder / name).write_bytes(png(seed))
    (folder / "a.txt").write_text("beside it\n")
    return folder


@pytest.fixture
def embed(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``embed(*inputs and options)`` into ``tmp_path/out``; what it printed comes back."""

    def run(*given: object, code: int = 0) -> str:
        words = [str(one) for one in given]
        words = words if "--output" in words else [*words, "--output", str(tmp_path / "out")]
        words = words if {"--workers", "--ray"} & {*words} else [*words, "--workers", "1"]
        if code:
            with pytest.raises(SystemExit) as ended:
                main(["embed", model, *words])
            assert ended.value.code == code
        else:
            main(["embed", model, *words])
        printed = capsys.readouterr()
        return printed.err if code == 2 else printed.out

    return run


def tables(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """By the name without its digest, the rows of each file."""
    found = {}
    for path in sorted(directory.glob("*.parquet")):
        stem, _, rest = path.name.removesuffix(".parquet").partition("-")
        found[stem + rest[8:]] = pq.read_table(path).to_pylist()
    return found


def meta(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "meta.json").read_text())


def states(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("*.parquet")}


# ---- What is written


def test_shards_become_a_file_each_with_captions_and_places(embed, shards: Path, tmp_path: Path) -> None:
    said = embed(shards, "--texts")
    found = tables(tmp_path / "out")
    assert found.keys() == {"00000", "00000.captions", "00001", "00001.captions"}
    first = found["00000"]
    assert [(row["key"], row["caption"]) for row in first] == [
        ("000000000", "picture 0"),
        ("000000001", "picture 1"),
        ("000000003", "picture 3"),
    ]
    with open(shards / "00000.tar", "rb") as tar:
        tar.seek(first[2]["offset"])
        assert tar.read(first[2]["size"]) == png(3)
    assert {row["shard"] for row in first} == {str(shards / "00000.tar")}
    texts = found["00000.captions"]
    assert [row["text"] for row in texts] == ["picture 0", "picture 1", "picture 2", "picture 3"]
    assert texts[3]["offset"] == first[2]["offset"]
    about = meta(tmp_path / "out")
    assert about["counts"] == {"pictures": 6, "texts": 7, "files": 4}
    assert about["skipped"]["undecodable picture"] == {"count": 1, "names": [f"{shards}/00000.tar: 000000002"]}
    assert (about["dimension"], about["dtype"], about["normalised"]) == (16, "float16", True)
    assert about["preprocessing"]["pictures"]["interpolation"] == "bicubic"
    assert "6 pictures and 7 texts" in said
    assert "pictures/s" in said
    assert f"left out 1, undecodable picture: {shards}/00000.tar: 000000002" in said


def test_features_are_those_of_the_evaluation(embed, model: str, photos: Path, tmp_path: Path) -> None:
    names = ["a.png", "b.png", "deep/c.png"]
    texts = tmp_path / "texts.txt"
    texts.write_text("a dog\n\n  a cat that is described at length by nine words \n")
    said = embed(photos, texts, "--dtype", "float32")
    tower = openclip.load(model)
    found = tables(tmp_path / "out")
    assert [row["key"] for row in found["photos-00000"]] == names
    assert [row["caption"] for row in found["photos-00000"]] == ["beside it", None, None]
    wanted = embed_images(tower, [StoredFile(photos / name, name) for name in names], 8).numpy()
    ours = np.array([row["embedding"] for row in found["photos-00000"]], np.float32)
    np.testing.assert_allclose(ours, wanted, atol=1e-6)
    wanted = embed_texts(tower, ["a dog", "a cat that is described at length by nine words"], 8).numpy()
    ours = np.array([row["embedding"] for row in found["texts-00000"]], np.float32)
    np.testing.assert_allclose(ours, wanted, atol=1e-6)
    assert [row["key"] for row in found["texts-00000"]] == ["0", "2"]
    assert f"left out 1, empty text: {texts}: row 1" in said
    assert np.ptp(wanted, axis=0).max() > 0.01, "a test that cannot tell texts apart"


def test_float16_is_the_stored_type_and_the_default(embed, photos: Path, tmp_path: Path) -> None:
    embed(photos)
    (path,) = (tmp_path / "out").glob("*.parquet")
    assert pq.read_schema(path).field("embedding").type == pa.list_(pa.float16(), 16)


def test_npy_is_a_matrix_with_a_key_a_line(embed, photos: Path, tmp_path: Path) -> None:
    embed(photos, "--files", "npy")
    (matrix,) = (tmp_path / "out").glob("*.npy")
    keys = matrix.with_name(matrix.name.replace(".npy", ".keys.txt")).read_text().splitlines()
    assert keys == ["a.png", "b.png", "deep/c.png"]
    features = np.load(matrix)
    assert (features.shape, features.dtype) == ((3, 16), np.float16)
    np.testing.assert_allclose(np.linalg.norm(features.astype(np.float32), axis=1), 1, atol=1e-3)
    assert "all of them were there already" in embed(photos, "--files", "npy")


@pytest.mark.parametrize(
    ("name", "options"),
    [("x.csv", []), ("x.tsv", ["--column", "what"]), ("x.parquet", [])],
)
def test_tables_of_texts_give_a_column(embed, tmp_path: Path, name: str, options: list[str]) -> None:
    path = tmp_path / name
    if name == "x.csv":
        path.write_text('id,caption\n1,"a dog, large"\n2,a cat\n')
    elif name == "x.tsv":
        path.write_text("what\tcaption\na dog, large\tno\na cat\tno\n")
    else:
        pq.write_table(pa.table({"n": [1, 2], "text": ["a dog, large", "a cat"]}), path)
    embed(path, *options)
    assert [row["text"] for row in tables(tmp_path / "out")["x-00000"]] == ["a dog, large", "a cat"]


def test_json_captions_give_a_row_for_each_text(embed, shards: Path, tmp_path: Path) -> None:
    embed(shards / "00001.tar", "--texts", "--caption", "json.captions")
    found = tables(tmp_path / "out")
    assert [row["caption"] for row in found["00001"]] == ["one 4", "one 5", "one 6"]
    assert [row["text"] for row in found["00001.captions"]][:3] == ["one 4", "two 4", "one 5"]


# ---- Going on


def test_what_is_whole_is_left_and_what_is_missing_or_broken_is_made(embed, shards: Path, tmp_path: Path) -> None:
    embed(shards)
    before = states(tmp_path / "out")
    assert "all of them were there already" in embed(shards)
    assert states(tmp_path / "out") == before
    first, second = sorted(before)
    (tmp_path / "out" / first).write_bytes(b"broken")
    assert "embedded 3 now" in embed(shards)
    after = states(tmp_path / "out")
    assert after[second] == before[second]
    assert after[first] != before[first]
    assert "6 pictures and 7 texts" in embed(shards, "--texts")
    assert {name: after[name] for name in before} == {n: states(tmp_path / "out")[n] for n in before}


def test_a_shard_that_was_written_anew_is_embedded_again(embed, shards: Path, tmp_path: Path) -> None:
    embed(shards)
    with ShardWriter(tmp_path / "again", 4) as writer:
        writer.write(png(9), "png", "another")
    (shards / "00001.tar").write_bytes((tmp_path / "again" / "00000.tar").read_bytes())
    assert "embedded 1 now" in embed(shards)
    assert meta(tmp_path / "out")["counts"]["pictures"] == 4


def test_a_folder_that_became_smaller_leaves_no_rows_behind(embed, photos: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parts, "ROWS", 2)
    embed(photos)
    assert tables(tmp_path / "out").keys() == {"photos-00000", "photos-00001"}
    (photos / "b.png").unlink()
    embed(photos)
    assert [row["key"] for row in tables(tmp_path / "out")["photos-00000"]] == ["a.png", "deep/c.png"]
    assert meta(tmp_path / "out")["counts"] == {"pictures": 2, "texts": 0, "files": 1}


def test_killed_half_way_it_goes_on(embed, model: str, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "many", 60) as writer:
        for number in range(600):
            writer.write(png(number), "png", f"picture {number}")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vlp", "embed", model, str(tmp_path / "many"), "--output", str(out)]
    process = subprocess.Popen([*command, "--workers", "1", "--batch-size", "2"], stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("*.parquet"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = states(out)
    assert 2 <= len(before) < 10, "it was to be killed half-way"
    embed(tmp_path / "many")
    after = states(out)
    assert len(after) == 10
    assert {name: after[name] for name in before} == before
    assert meta(out)["counts"]["pictures"] == 600


@pytest.mark.parametrize("options", [[], ["--dtype", "float32"], ["--files", "npy"]])
def test_other_embeddings_in_the_same_directory_are_refused(
    embed, other_model: str, photos: Path, tmp_path: Path, capsys, options: list[str]
) -> None:
    embed(photos)
    before = states(tmp_path / "out")
    if options:
        said = embed(photos, *options, code=2)
    else:
        with pytest.raises(SystemExit, match="2"):
            main(["embed", other_model, str(photos), "--output", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert "of another model" in said
    assert "choose another --output" in said
    assert states(tmp_path / "out") == before


# ---- Several processes


def test_parts_and_processes_write_what_one_process_writes(embed, shards: Path, tmp_path: Path) -> None:
    embed(shards)
    embed(shards, "--output", tmp_path / "parts", "--part", "0/2")
    assert tables(tmp_path / "parts").keys() == {"00000"}
    embed(shards, "--output", tmp_path / "parts", "--part", "1/2")
    embed(shards, "--output", tmp_path / "processes", "--workers", "2")
    assert tables(tmp_path / "out") == tables(tmp_path / "parts") == tables(tmp_path / "processes")
    assert meta(tmp_path / "out") == meta(tmp_path / "parts") == meta(tmp_path / "processes")


def _rank(rank: int, world: int, arguments: list[str]) -> str:
    distributed.leave = lambda: None  # the fixture's own ranks end their group
    collect.cores = lambda: 1  # a forked child cannot use its parent's thread pool
    try:
        main(["embed", *arguments])
    except SystemExit as ended:
        return f"code {ended.code}"
    return "done"


def test_ranks_share_the_files_and_end_alike(run_ranks, embed, model: str, shards: Path, tmp_path: Path) -> None:
    embed(shards)
    assert run_ranks(_rank, 2, [model, str(shards), "--output", str(tmp_path / "ranks")]) == ["done", "done"]
    assert tables(tmp_path / "ranks") == tables(tmp_path / "out")
    assert meta(tmp_path / "ranks") == meta(tmp_path / "out")
    options = [model, str(shards), "--output", str(tmp_path / "ranks"), "--workers", "2"]
    assert run_ranks(_rank, 2, options) == ["code 2", "code 2"]


# ---- What is bad


def test_a_bad_picture_of_a_folder_is_named_and_the_exit_code_is_1(embed, photos: Path, tmp_path: Path) -> None:
    (photos / "b.png").write_bytes(b"no picture")
    said = embed(photos, code=1)
    assert f"left out 1, undecodable picture: {photos}: b.png" in said
    assert [row["key"] for row in tables(tmp_path / "out")["photos-00000"]] == ["a.png", "deep/c.png"]
    assert "left out 1" in embed(photos, code=1), "named again, as it is still not there"
    (photos / "b.png").write_bytes(png(5))
    assert "left out" not in embed(photos)


def test_names_that_no_table_can_hold_are_left_out(embed, photos: Path, tmp_path: Path) -> None:
    with open(os.fsencode(photos) + b"/\xff.png", "wb") as file:
        file.write(png(7))
    (photos / "two\nlines.png").write_bytes(png(8))
    said = embed(photos, code=1)
    assert "left out 1, name that is not UTF-8" in said
    assert "left out 1, name with a line break" in said
    assert meta(tmp_path / "out")["counts"]["pictures"] == 3


def test_a_missing_shard_is_tried_again(embed, shards: Path, tmp_path: Path) -> None:
    names = f"{shards}/{{00000..00002}}.tar"
    assert f"left out 1, missing shard: {shards}/00002.tar" in embed(names)
    (shards / "00002.tar").write_bytes((shards / "00001.tar").read_bytes())
    said = embed(names)
    assert "embedded 3 now" in said
    assert "missing shard" not in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("nowhere", "nowhere does not exist"),
        ("nowhere.txt", "nowhere.txt does not exist"),
        ("photos photos", "twice"),
        ("photos/a.png", "is a single file"),
        ("photos --texts", "--texts has no effect"),
        ("photos --column x", "--column x has no effect"),
        ("table.csv", "name one with --column (there: a, b)"),
        ("table.csv --column c", "no column 'c'"),
        ("empty.txt", "holds no text"),
        ("photos --batch-size 0", "--batch-size 0"),
        ("photos --gpus 1", "no effect without --ray"),
        ("photos --part 2/2", "parts count from 0"),
        ("photos --output photos", "holds other files"),
        ("photos --output table.csv", "is a file: name a folder"),
        ("photos --caption layer.x", "--caption layer.x"),
    ],
)
def test_a_mistake_is_one_sentence(
    embed, photos: Path, tmp_path: Path, monkeypatch, arguments: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("a,b\n1,2\n")
    Path("empty.txt").write_text("\n\n")
    said = embed(*arguments.split(), code=2)
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out" / "meta.json").exists() or "--part" in arguments


def test_a_caption_replaced_by_one_of_its_length_is_embedded_again(embed, shards: Path, tmp_path: Path) -> None:
    """Keys, places and sizes in the shard stay what they were."""
    embed(shards, "--texts")
    shard = shards / "00001.tar"
    before = shard.read_bytes()
    assert before.count(b"picture 5") == 2, "a text and a field of JSON"
    shard.write_bytes(before.replace(b"picture 5", b"another 5"))
    embed(shards, "--texts")
    files = (tmp_path / "out").glob("*.captions.parquet")
    texts = [text for file in files for text in pq.read_table(file)["text"].to_pylist()]
    assert "another 5" in texts
    assert "picture 5" not in texts


def test_a_lone_file_of_weights_is_noted_by_its_full_path(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a search finds it from another directory."""
    monkeypatch.chdir(model)
    assert place_of("ViT-B-32:open_clip_model.safetensors") == f"ViT-B-32:{model}/open_clip_model.safetensors"
