"""``vlp caption MODEL SHARDS``: a layer of what a real model says of each picture, and what it says of itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools._captions.job import Job
from data_tools._captions.shard import caption_shard
from data_tools.scenes import ScenesOptions, write_scenes
from vlp.cli import main
from vlp.data.index import open_shard
from vlp.data.layer_files import record_of
from vlp.data.layers import LayerWriter, check_layer
from vlp.data.samples import decode_image
from vlp.data.shards import find_shards
from vlp.data.write import TarFile, encode_image
from vlp.encoders import openclip
from vlp.encoders.options import ModelOptions
from vlp.generation import captions_of
from vlp.generation_options import GenerationOptions
from vlp.types import UserError

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 1, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
HEAD = {"layers": 1, "width": 16, "heads": 2, "queries": 4}
SHORT = ["--max-length", "6", "--beams", "1"]
SHORTLY = GenerationOptions(max_length=6, beams=1)


def png(seed: int) -> bytes:
    """Soft blobs of colour, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return encode_image(Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC))


def write(directory: Path, shards: list[dict[str, bytes]]) -> Path:
    """Tars of pictures by their keys, each with a caption that tells its key."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, samples in enumerate(shards):
        with TarFile(directory / f"{number:05d}.tar") as tar:
            for key, picture in samples.items():
                tar.write(key, {"png": picture, "txt": f"the caption of {key}".encode("utf-8", "replace")})
    return directory


def pictures(first: int, number: int) -> dict[str, bytes]:
    return {f"{seed:03d}": png(seed) for seed in range(first, first + number)}


THREE = [pictures(0, 5), pictures(5, 3), pictures(8, 4)]


def saved(directory: Path, seed: int = 0, head: dict[str, int] | None = HEAD) -> str:
    model = openclip.build(ModelOptions(config=CONFIG, captioner=head), seed=seed)
    openclip.save_openclip_directory(model, directory)
    return str(directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A captioner of random weights, which says something else of each picture."""
    return saved(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(model: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``run(shards, *options)`` is the command; what it printed comes back."""

    def run(shards: object, *options: object, of: str = model) -> str:
        given = [] if "--workers" in options else ["--workers", "1"]
        main(["caption", of, str(shards), *SHORT, *given, *map(str, options)])
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(run: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The sentence with which the command ends."""

    def refused(*arguments: object, **more: str) -> str:
        with pytest.raises(SystemExit) as ended:
            run(*arguments, **more)
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    return refused


def layer(shards: Path, name: str = "captions") -> dict[str, str]:
    """Key -> caption."""
    files = sorted((shards / "layers" / name).glob("*.parquet"))
    return {row["key"]: row["caption"] for file in files for row in pq.read_table(file).to_pylist()}


def times(shards: Path) -> list[int]:
    return [file.stat().st_mtime_ns for file in sorted((shards / "layers" / "captions").glob("*.parquet"))]


def by_hand(shards: Path, model: str, options: GenerationOptions = SHORTLY) -> dict[str, str]:
    """What the model says of each picture alone."""
    tower, found = openclip.load(model), {}
    for path in find_shards(str(shards)):
        shard, _ = open_shard(path)
        for row in range(len(shard)):
            pixels = tower.eval_transform(decode_image(shard.read(row, {"png"})["png"]))
            found[shard.key(row)] = captions_of(tower, pixels[None], options)[0]
    return found


# ----------------------------------------------------------------------------- the layer


def test_the_layer_has_what_the_model_says_of_each_picture(tmp_path: Path, run: Callable[..., str], model: str) -> None:
    shards = write(tmp_path / "s", THREE)
    said = run(shards, "--batch-size", 2)
    wanted = by_hand(shards, model)
    assert layer(shards) == wanted
    assert f"12 of 12 samples have captions, {len(set(wanted.values()))} of them different" in said
    assert len(set(wanted.values())) > 3
    assert "train with data.captions: [{source: txt}, {source: layer.captions}]" in said
    for path in find_shards(str(shards)):
        check = check_layer(open_shard(path)[0], "captions")
        assert check is not None
        assert (check.stale, check.num_unknown, check.columns) == (False, 0, {"caption": "text"})


def test_the_layer_records_what_made_it(tmp_path: Path, run: Callable[..., str], model: str) -> None:
    shards = write(tmp_path / "s", THREE[:1])
    run(shards)
    record = record_of(pq.read_schema(shards / "layers" / "captions" / "00000.parquet"))
    assert record is not None
    made_by = record["provenance"]
    assert (made_by["tool"], made_by["model"]) == ("vlp caption", model)
    assert len(made_by["weights"]) == 16
    assert made_by["options"] == {**SHORTLY.model_dump(), "beams": 1}


@pytest.mark.slow
def test_several_processes_write_the_same(tmp_path: Path, run: Callable[..., str]) -> None:
    one, two = (write(tmp_path / name, THREE) for name in ("one", "two"))
    run(one)
    run(two, "--workers", 2)
    assert layer(one) == layer(two)


def test_shards_are_named_as_for_other_tools_and_layers_lie_where_one_says(
    tmp_path: Path, run: Callable[..., str], model: str
) -> None:
    shards = write(tmp_path / "s", THREE)
    run(shards / "{00000..00001}.tar", "--root", tmp_path / "here", "--name", "synthetic")
    files = sorted((tmp_path / "here" / "synthetic").iterdir())
    assert [file.name for file in files] == ["00000.parquet", "00001.parquet"]
    assert not (shards / "layers").exists()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """``tmp_path`` as an HTTP server shows it, which knows no ranges."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_remote_shards_need_a_folder_here(
    tmp_path: Path, run: Callable[..., str], refused: Callable[..., str], address: str
) -> None:
    shards = write(tmp_path / "s", THREE)
    run(shards)
    names = f"{address}/s/{{00000..00002}}.tar"
    assert "cannot write the layer to http://" in refused(names, "--name", "other")
    run(names, "--root", tmp_path / "here")
    files = sorted((tmp_path / "here" / "captions").iterdir())
    assert {row["key"]: row["caption"] for file in files for row in pq.read_table(file).to_pylist()} == layer(shards)


# ----------------------------------------------------------------------------- going on


def test_the_same_command_again_writes_nothing(tmp_path: Path, run: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", THREE)
    first, before = run(shards), times(shards)
    again = run(shards)
    assert "wrote 12 captions" in first
    assert "wrote" not in again
    assert times(shards) == before
    assert [line for line in first.splitlines() if "wrote" not in line] == again.splitlines()


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, run: Callable[..., str], model: str) -> None:
    shards = write(tmp_path / "s", [pictures(40 * number, 40) for number in range(5)])
    whole = shutil.copytree(shards, tmp_path / "whole")
    command = [sys.executable, "-m", "vlp", "caption", model, str(shards), *SHORT, "--workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while not times(shards):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = times(shards)
    said = run(shards)
    assert times(shards)[: len(before)] == before
    assert "200 of 200 samples have captions" in said
    run(whole)
    assert layer(shards) == layer(whole)


def test_samples_first_and_the_rest_later(tmp_path: Path, run: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", THREE)
    said = run(shards, "--samples", 7)
    assert "7 of 8 samples have captions" in said
    assert "the same command without it captions the rest" in said
    assert sorted(layer(shards)) == [f"{number:03d}" for number in range(7)]
    assert "wrote 5 captions" in run(shards)
    assert len(layer(shards)) == 12


def test_parts_together_are_the_whole(tmp_path: Path, run: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", THREE)
    run(shards, "--part", "0/2")
    assert sorted(layer(shards)) == ["000", "001", "002", "003", "004", "008", "009", "010", "011"]
    assert "wrote 3 captions" in run(shards, "--part", "1/2")
    assert "no shard falls into this part" in run(shards, "--part", "3/4")
    assert len(layer(shards)) == 12


def test_a_shard_that_holds_other_samples_now_is_captioned_anew(
    tmp_path: Path, run: Callable[..., str], model: str
) -> None:
    shards = write(tmp_path / "s", THREE)
    run(shards)
    write(shards, [{"000": png(90), "new": png(91)}])  # a key may come again with another picture
    assert "wrote 2 captions" in run(shards)
    assert layer(shards) == by_hand(shards, model)


# ----------------------------------------------------------------------------- what cannot be captioned


def test_bad_samples_are_counted_and_tried_again(tmp_path: Path, run: Callable[..., str], model: str) -> None:
    shards = write(tmp_path / "s", [{**pictures(0, 3), "cut": png(9)[:100], "none": b"hello"}, pictures(5, 2)])
    said = run(shards)
    assert "5 of 7 samples have captions" in said
    assert f"left out 1, truncated picture: {shards}/00000.tar: cut" in said
    assert f"left out 1, undecodable picture: {shards}/00000.tar: none" in said
    assert "left out 1, truncated picture" in run(shards), "also when nothing is written"
    before, kept = times(shards), layer(shards)
    write(shards, [{**pictures(0, 3), "cut": png(9), "none": b"hello"}])
    again = run(shards)
    assert "wrote 1 captions" in again
    assert "left out 1, undecodable picture" in again
    assert {**kept, "cut": layer(shards)["cut"]} == layer(shards)
    assert times(shards)[1] == before[1]


def test_keys_that_are_no_text_harm_neither_the_layer_nor_what_is_said(tmp_path: Path, run: Callable[..., str]) -> None:
    names = [key.decode("utf-8", "surrogateescape") for key in (b"\xff1", b"\xff2")]
    shards = write(tmp_path / "s", [{names[0]: b"hello", names[1]: png(1)}])
    said = run(shards, "--json", tmp_path / "c.json", "--report", tmp_path / "c.html")
    assert "left out 1, undecodable picture" in said
    assert "1 of 2 samples have captions" in run(shards)
    assert json.loads((tmp_path / "c.json").read_text())["sheet"][0]["key"] == names[1]


def test_a_shard_that_is_missing_or_no_tar_is_named(tmp_path: Path, run: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", THREE[:1])
    (shards / "00001.tar").write_text("hello")
    said = run(shards / "{00000..00002}.tar")
    assert f"left out 1, missing shard: {shards}/00002.tar" in said
    assert f"left out 1, not a tar: {shards}/00001.tar" in said
    assert "5 of 5 samples have captions" in said


def test_shards_without_a_picture_that_can_be_read_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", [{"a": b"hello"}])
    assert f"no sample with a picture in 1 shards (undecodable picture: {shards}/00000.tar: a)" in refused(shards)
    assert not (shards / "layers").exists()


# ----------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--name", "my layer"), "'my layer' cannot name a layer"),
        (("--samples", "0"), "--samples 0 must be at least 1"),
        (("--gpus", "1"), "--gpus 1 has no effect without --ray"),
        (("--part", "2/2"), "--part 2/2: parts count from 0"),
        (("--workers", "0"), "--workers 0 must be at least 1"),
        (("--json", "-"), "--json - is for captions of pictures"),
        (("--report", "nowhere/x.html"), "there is no directory nowhere"),
        (("--min-length", "17", "--max-length", "20"), "min_length is 17, but the model's texts have at most 16 ids"),
    ],
)
def test_mistakes_are_named_with_their_cure(
    tmp_path: Path, refused: Callable[..., str], options: tuple[str, ...], sentence: str
) -> None:
    shards = write(tmp_path / "s", THREE[:1])
    assert sentence in refused(shards, *options)
    assert not (shards / "layers").exists()


def test_a_model_that_tells_no_captions_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", THREE[:1])
    assert "the model tells no captions" in refused(shards, of=saved(tmp_path / "m", head=None))


def test_a_layer_of_another_model_or_other_options_is_left_alone(
    tmp_path: Path, run: Callable[..., str], refused: Callable[..., str], model: str
) -> None:
    shards = write(tmp_path / "s", THREE)
    run(shards / "00001.tar")
    before = times(shards)
    other = saved(tmp_path / "other", seed=1)
    file = f"{shards}/layers/captions/00001.parquet"
    assert f"{file} was written by other weights ({model}) than those of {other}: choose" in refused(shards, of=other)
    said = refused(shards, "--beams", 2, "--prompt", "a photo")
    different = "--beams 1, not 2 and --length-penalty left out, not 1.0 and --prompt left out, not a photo"
    assert f"{file} was written with {different}: choose another --name" in said
    assert times(shards) == before
    moved = str(shutil.copytree(model, tmp_path / "elsewhere" / "model"))
    assert "wrote 9 captions" in run(shards, of=moved), "a model is told by its weights"


def test_a_layer_of_another_tool_is_left_alone(tmp_path: Path, refused: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", THREE)
    shard, _ = open_shard(str(shards / "00000.tar"))
    LayerWriter(None, "captions", {"tool": "by hand"}).write(shard, [shard.key(0)], {"caption": ["mine"]})
    assert "was written by by hand: choose another --name" in refused(shards)


def test_a_model_that_changes_during_the_run_is_refused(tmp_path: Path, model: str) -> None:
    shards = write(tmp_path / "s", THREE[:1])
    job = Job(model, weights="of the step before", options=SHORTLY)
    with pytest.raises(UserError, match=r"has changed since this run began: name a checkpoint that stays"):
        caption_shard(str(shards / "00000.tar"), job)


# ----------------------------------------------------------------------------- what people look at


def test_the_sheet_shows_pictures_with_both_captions(tmp_path: Path, run: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", [*THREE, {"bad": b"hello"}])
    run(shards, "--json", tmp_path / "c.json", "--report", tmp_path / "c.html")
    sheet, captions = json.loads((tmp_path / "c.json").read_text()), layer(shards)
    assert (sheet["samples"], sheet["captions"], sheet["distinct"]) == (13, 12, len(set(captions.values())))
    assert sheet["left_out"] == {"undecodable picture": {"number": 1, "examples": [f"{shards}/00003.tar: bad"]}}
    assert sheet["words"]["number"] == 12
    assert {one["key"]: one["told"] for one in sheet["sheet"]} == captions
    assert all(one["caption"] == f"the caption of {one['key']}" for one in sheet["sheet"])
    for one in sheet["most_frequent"]:
        assert one["number"] == list(captions.values()).count(one["caption"]) > 1
    page = (tmp_path / "c.html").read_text()
    assert page.count('<article class="rewritten"') == 12
    main(["report", str(tmp_path / "c.json"), "--output", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_text() == page


def test_the_same_caption_of_most_pictures_is_said_loudly(tmp_path: Path, run: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", [{**{f"same{n}": png(1) for n in range(4)}, **pictures(2, 2)}])
    said = run(shards)
    assert f"WARNING: 67% of the captions are '{layer(shards)['same0']}'" in said


def test_captions_too_short_for_training_are_counted(tmp_path: Path, run: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", THREE[:1])
    said = run(shards, "--max-length", 3)
    assert all(len(caption.split()) < 2 for caption in layer(shards).values())
    assert "5 captions have fewer than two words" in said


# ----------------------------------------------------------------------------- what it is for


def test_training_reads_the_layer(tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_scenes(ScenesOptions(out=tmp_path / "data", num_train=32, num_eval=2))
    run("data/train")
    losses = {}
    for source in ("txt", "layer.captions"):
        options = [f"data.captions=[{{source: {source}}}]", "data.train=data/train", "evaluate.sets=[]"]
        main(["train", "quickstart", "profile=smoke", f"run_dir={source}", "train.steps=2", *options])
        records = [json.loads(line) for line in (tmp_path / source / "metrics.jsonl").read_text().splitlines()]
        losses[source] = [one["train/loss"] for one in records if "train/loss" in one]
    assert losses["txt"] != losses["layer.captions"]
    assert all(np.isfinite(losses["layer.captions"]))
