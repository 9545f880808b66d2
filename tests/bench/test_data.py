"""vlp bench data: its figures add up, they are of the loader itself, and the peer does what open_clip's users get."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from vlp import cli, recipe
from vlp.bench import _openclip_loader, data
from vlp.bench._rounds import Contender, Window, cpu_seconds, ratio, rounds, summary, window
from vlp.data.transforms import AugmentOptions, PictureFormat
from vlp.data.write import ShardWriter, encode_image
from vlp.encoders.tokenizer import FastTokenizer

FORMAT = PictureFormat((16, 16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SAMPLES = 24


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of twelve samples, one of which has a broken picture."""
    folder = tmp_path_factory.mktemp("shards") / "train"
    generator = np.random.default_rng(0)
    with ShardWriter(folder, 12) as writer:
        for i in range(SAMPLES):
            image = Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8))
            data = encode_image(image, "jpg")
            writer.write(b"no picture" if i == 5 else data, "jpg", f"caption number {i}")
    return folder


def recipe_of(shards: Path, *overrides: str) -> recipe.Recipe:
    small = [f"data.train={shards}", "data.max_bad_fraction=1", "train.global_batch_size=8", *overrides]
    return recipe.load("quickstart", ["profile=smoke", *small])


# ---- Windows


class Stream:
    """Batches of four, every one of which takes ten milliseconds."""

    def __init__(self) -> None:
        self.given = 0
        self.closed = False

    def start(self) -> Iterator[int]:
        try:
            while True:
                time.sleep(0.01)
                self.given += 1
                yield 4
        finally:
            self.closed = True


@pytest.mark.parametrize(("workers", "seconds", "most"), [(0, 0.0, 2), (3, 0.0, 6), (2, 0.05, 14)])
def test_a_window_begins_after_the_first_batch_of_each_worker(workers: int, seconds: float, most: int) -> None:
    stream = Stream()
    found = window(Contender(stream.start, workers), seconds)
    group = max(1, workers)
    assert found.samples == 4 * (stream.given - group)
    assert found.samples % (4 * group) == 0
    assert stream.given <= most
    assert found.seconds >= max(seconds, 0.01 * found.samples / 4)
    assert stream.closed


def test_rounds_alternate_the_order() -> None:
    told: list[str] = []
    streams = {name: Contender(Stream().start, 0) for name in ("a", "b", "c")}
    windows = rounds(streams, 3, 0, told.append)
    assert told == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    assert {name: len(found) for name, found in windows.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratio_compares_time_a_sample_round_by_round() -> None:
    ours = [Window(100, 1.0, 2.0), Window(200, 1.0, 2.0)]
    theirs = [Window(50, 1.0, 1.0), Window(50, 1.0, 4.0)]
    found = ratio(theirs, ours)
    assert found["clock"] == {"median": 3.0, "min": 2.0, "max": 4.0, "rounds": [2.0, 4.0]}
    assert found["cpu"]["rounds"] == [1.0, 8.0]
    assert summary(ours)["milliseconds_per_sample"] == pytest.approx((10 + 5) / 2)


def _burn(seconds: float, done: Any, end: Any) -> None:
    started = time.process_time()
    while time.process_time() - started < seconds:
        pass
    done.set()
    end.wait(30)


def test_cpu_time_of_living_children_counts() -> None:
    context = multiprocessing.get_context("fork")
    done, end = context.Event(), context.Event()
    before = cpu_seconds()
    child = context.Process(target=_burn, args=(0.3, done, end))
    child.start()
    assert done.wait(30)
    assert cpu_seconds() - before >= 0.25
    end.set()
    child.join()


# ---- The benchmark


def test_figures_of_a_recipe(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    figures = data.run(recipe_of(shards, "data.workers=2"), seconds=0, repeats=2)
    assert list(figures["loaders"]) == ["0 workers", "1 worker", "2 workers", "open_clip"]
    assert all(row["samples_per_second"] > 0 for row in figures["loaders"].values())
    assert len(figures["ratio"]["clock"]["rounds"]) == 2
    for kind in ("microseconds", "cpu_microseconds"):
        spent = {name: row[kind] for name, row in figures["stages"].items()}
        assert spent.pop("all") == pytest.approx(sum(spent.values()))
        assert min(spent.values()) >= 0
        assert spent["pictures"] > spent["tokenizer"]
    assert figures["bad"]["kinds"].keys() == {"undecodable picture"}
    assert 0 < figures["bad"]["fraction"] < 0.5
    assert multiprocessing.active_children() == []
    printed = capsys.readouterr().out
    assert f"{SAMPLES} samples in 2 shards" in printed
    assert "open_clip's time over ours:" in printed
    assert "undecodable picture, such as" in printed


def test_command_writes_all_figures(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "run", partial(data.run, seconds=0, repeats=1))
    rows = ["data.workers=0", "data.captions=[{source: json.caption}]", "train.global_batch_size=4"]
    path = tmp_path / "figures.json"
    cli.main(["bench", "data", "quickstart", "profile=smoke", f"data.train={shards}", *rows, "--json", str(path)])
    figures = json.loads(path.read_text())
    assert figures["batch_size"] == 4
    assert list(figures["loaders"])[:2] == ["0 workers", "1 worker"]
    assert figures["samples"] == SAMPLES
    assert "samples/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dota", "quickstart"], "did you mean 'data'"),
        (["data", "quickstart", "profile=smoke", "data.train=nowhere"], "nowhere does not exist"),
        (["data", "quickstart", "--json", "nowhere/x.json"], "nowhere/x.json: No such file"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


# ---- The peer


def test_peer_gives_the_samples_of_the_shards_as_open_clip_does(shards: Path) -> None:
    """Also of fewer shards than workers, which it would refuse."""
    pytest.importorskip("pandas")
    augment = AugmentOptions(colour_jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2, flip=0.5)
    preprocess = _openclip_loader.transform(FORMAT, augment)
    assert [type(step).__name__ for step in preprocess.transforms].count("color_jitter") == 1
    assert _openclip_loader.not_done(augment) == ["flip"]
    tar = str(max(shards.glob("*.tar")))
    stream = _openclip_loader.batches([tar], preprocess, FastTokenizer(context_length=8), 4, 2, seed=0)
    batches = [next(stream) for _ in range(6)]
    stream.close()
    assert multiprocessing.active_children() == []
    images, ids = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert images.shape == (24, 3, 16, 16)
    assert images.dtype == torch.float32
    assert images.min() < -1  # normalised
    expected = SimpleTokenizer(context_length=8)([f"caption number {i}" for i in range(12, SAMPLES)])
    assert {tuple(row) for row in ids.tolist()} == {tuple(row) for row in expected.tolist()}


@pytest.mark.parametrize(
    ("columns", "paths", "reason"),
    [(["jpg", "json"], ["a.tar"], ".txt"), (["jpg", "txt"], ["a.tar", "s3://bucket/b.tar"], "local shards")],
)
def test_peer_that_cannot_run_says_why(columns: list[str], paths: list[str], reason: str) -> None:
    pytest.importorskip("pandas")
    assert reason in _openclip_loader.why_not(columns, paths)


def test_peer_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "open_clip_train.data", raising=False)
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert _openclip_loader.why_not(["txt"], ["a.tar"]).endswith("pip install pandas")
