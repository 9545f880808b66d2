"""Each benchmark of benchmarks/speed runs with tiny settings and writes what the table of the README needs."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "speed"
TINY = {
    "pictures": "--count 2 --repeats 2",
    "tokenizer": "--count 60 --batch-size 30 --repeats 2",
    "loader": "--samples 64 --pictures 2 --batch-size 8 --workers 1 --repeats 1 --seconds 0",
    "resume": "--shards 10 --samples-per-shard 40 --position 0 200 --batch-size 16 --repeats 1",
    "memory": "--samples 2000 --every 500 --remote-samples 1200 --remote-every 300 --batch-size 100",
    "caption_loss": "--captions 2 3 --width 16 --vocabulary 60 --repeats 2 --chunks 5 100",
    "loss": "--softmax 256 --sigmoid 256 --alone 512 --rounding 128 --rows 32 --width 32 --repeats 2",
}


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The modules, which find each other beside them as when they run; forgotten afterwards: others have such names."""
    names = [path.stem for path in FOLDER.glob("*.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield {name: importlib.import_module(name) for name in names}
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def results(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each of them writes."""
    pytest.importorskip("pandas")
    folder = tmp_path_factory.mktemp("results")
    for name, options in TINY.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *options.split(), "--json", str(folder / f"{name}.json")])
            assert not scripts[name].main(), name
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in TINY}


def test_pictures_are_near_those_of_pillow(results: dict[str, Any]) -> None:
    rows = results["pictures"]["rows"]
    assert list(rows) == ["640x480", "1280x960", "341x256"]
    assert all(row["exact"]["mae"] < 0.1 and row["fast"]["mae"] < 5 for row in rows.values())


def test_losses_are_those_of_their_peers(results: dict[str, Any]) -> None:
    loss = results["loss"]
    assert list(loss["rows"]) == ["softmax, batch 256", "sigmoid, batch 256"]
    for row in loss["rows"].values():
        assert row["loss_difference"] < 1e-4
        assert list(row["losses"]) == ["vlp", *row["ratio"]]
        assert all(found["seconds"] > 0 for found in row["losses"].values())
    assert loss["alone"]["batch"] == 512
    assert loss["rounding"]["vlp"] < 1e-4 < loss["rounding"]["open_clip ClipLoss"]
    assert list(loss["traffic"]) == ["2", "4"]
    assert all(found["gradient_difference"] < 1e-5 for found in loss["traffic"].values())


def test_captioning_losses_are_those_of_their_peers(results: dict[str, Any]) -> None:
    found = results["caption_loss"]
    assert [row["told"] for row in list(found["rows"].values())[::2]] == [2 * 76, 3 * 76]
    assert len(found["rows"]) == 4
    for name, row in found["rows"].items():
        assert row["told"] < 76 * 3 / 2 if "real" in name else row["told"] % 76 == 0
        assert max(row["differences"].values()) < 1e-5
        assert all(ways["seconds"] > 0 for ways in row["ways"].values())
        assert "dense logits, open_clip's loss" in row["ratio"]
    assert list(found["chunks"]) == ["5", "100"]


def test_tokenizers_give_the_same_ids(results: dict[str, Any]) -> None:
    assert results["tokenizer"]["different_ids"] == 0


def test_loader_compares_each_of_ours_with_each_peer(results: dict[str, Any]) -> None:
    rows = results["loader"]["rows"]
    assert list(rows) == ["640x480", "341x256"]
    for row in rows.values():
        assert list(row["loaders"]) == ["vlp exact", "vlp fast", "open_clip", "webdataset"]
        assert len(row["ratio"]) == 4
        assert all(ratio["clock"]["min"] > 0 for ratio in row["ratio"].values())
        pixels = {name: size["pixels"] for name, size in row["bytes"].items()}
        assert pixels["vlp exact"] == 224 * 224 * 3
        assert pixels["open_clip"] == pixels["webdataset"] == 4 * pixels["vlp exact"]


def test_resumed_batches_are_the_same_in_all_ways(results: dict[str, Any]) -> None:
    resume = results["resume"]
    assert resume["same"]
    assert len(resume["digests"]) == 3 * 3 + 3
    assert resume["seconds"].keys() == {
        "index, 0 workers",
        "index, 1 workers",
        "index, 2 workers",
        "counts, no index",
        "scan",
    }
    assert all(rows.keys() >= {"208"} for rows in resume["seconds"].values())
    assert resume["seconds"]["index, 2 workers"].keys() == {"0", "208"}


def test_memory_is_of_the_main_process_and_of_both_workers(results: dict[str, Any]) -> None:
    runs = results["memory"]["runs"]
    assert [point["samples"] for point in runs["disk"]["points"]] == [500, 1000, 1500, 2000]
    assert [point["samples"] for point in runs["http, layer"]["points"]] == [300, 600, 900, 1200]
    for run in runs.values():
        assert all(len(point["resident"]) == len(point["own"]) == 3 for point in run["points"])
        assert all(min(point["own"]) > 1 for point in run["points"])


def test_slope_is_of_the_second_half(scripts: dict[str, ModuleType]) -> None:
    slope = scripts["memory"].slope
    points = [{"samples": 50_000 * i, "resident": [i, max(0, i - 3)], "own": [5]} for i in range(8)]
    assert slope(points) == {"resident": pytest.approx(4), "own": pytest.approx(0)}
    assert slope(points[:2]) == {}


def test_table_has_a_row_for_every_figure(results: dict[str, Any], scripts: dict[str, ModuleType]) -> None:
    lines = scripts["run"].table(results).splitlines()
    assert all(line.count("|") == 4 for line in lines)
    kinds = Counter(line.split()[1] for line in lines[2:])
    expected = {"picture": 6, "tokenizer,": 2, "tar": 8, "bytes": 1, "first": 8, "the": 1, "resident": 2, "loss,": 12}
    expected["captioning"] = 2 * sum(len(row["ratio"]) for row in results["caption_loss"]["rows"].values())
    assert kinds == expected
    assert len(scripts["run"].table({"tokenizer": results["tokenizer"]}).splitlines()) == 4


def test_readme_has_the_place_of_the_table(scripts: dict[str, ModuleType]) -> None:
    run, text = scripts["run"], (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text.count(run.START) == text.count(run.END) == 1
    assert text.index(run.START) < text.index(run.END)
    assert all(f"`{name}.py`" in text for name in run.NAMES)
