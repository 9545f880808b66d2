"""NegCLIP as a user trains it: a layer of hard captions, neighbours beside each sample, on one process and on two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import cli, recipe
from vlp.data.index import open_shard
from vlp.data.layers import LayerWriter
from vlp.data.shards import find_shards, stem
from vlp.inspection import inspect
from vlp.track import read_metrics
from vlp.trainer import train
from vlp.types import UserError

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with hard captions, each of which has the next sample of its shard for a neighbour."""
    out = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(ScenesOptions(out=out, num_train=96, num_eval=24, samples_per_shard=32))
    cli.main(["data", "negatives", str(out / "train"), "--generator", "scenes", "--workers", "1"])
    for path in find_shards(str(out / "train")):
        shard, _ = open_shard(path)
        keys = [shard.key(row) for row in range(len(shard))]
        after = [[f"{stem(path)}/{key}"] for key in [*keys[1:], keys[0]]]
        LayerWriter(None, "near", {}, {"neighbours": "texts"}).write(shard, keys, {"neighbours": after})
    return out


@pytest.fixture
def recipe_file(scenes: Path, tmp_path: Path, tiny_model: dict[str, Any]) -> Path:
    hard = [{"source": "layer.negatives.negatives"}]
    tree = {
        "name": "test",
        "run_dir": str(tmp_path / "run"),
        "data": {"train": str(scenes / "train"), "workers": 1, "hard_captions": hard, "neighbours": "layer.near"},
        "model": {"config": tiny_model},
        "objectives": [{"name": "infonce", "duplicates": "masked"}, {"name": "hard_negatives", "number": 2}],
        "train": {"steps": 6, "global_batch_size": 8, "warmup": 2},
        "evaluate": {"sets": [str(scenes / "eval" / name) for name in ("swaps", "twins")]},
        "checkpoint": {"every": 3},
        "track": {"every": 1, "tensorboard": False},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def losses(path: Path, *overrides: str) -> list[float]:
    run = train(recipe.load(str(path), overrides)).run_dir
    return [row["train/loss"] for row in read_metrics(run / "metrics.jsonl") if "train/lr" in row]


def test_two_processes_train_like_one_and_the_log_tells_how_hard_it_is(recipe_file: Path, tmp_path: Path) -> None:
    one = losses(recipe_file, f"run_dir={tmp_path / 'one'}")
    rows = read_metrics(tmp_path / "one" / "metrics.jsonl")
    assert {row["train/hard_caption_share"] for row in rows if "train/lr" in row} == {1.0}
    assert all(0 <= row["train/hard_caption_errors"] <= 1 for row in rows if "train/lr" in row)
    assert [row["samples"] for row in rows if "train/lr" in row] == [8, 16, 24, 32, 40, 48], "neighbours do not count"
    assert {"val/swaps/swap_relation_accuracy", "val/twins/group_score"} <= rows[-1].keys()
    two = tmp_path / "two"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launch, "-m", "vlp", "train", str(recipe_file), f"run_dir={two}"]
    subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True)
    of_two = [row["train/loss"] for row in read_metrics(two / "metrics.jsonl") if "train/lr" in row]
    assert of_two == pytest.approx(one, rel=1e-4)


def test_micro_batches_of_pictures_and_neighbours_train_the_same(recipe_file: Path, tmp_path: Path) -> None:
    plain = losses(recipe_file, f"run_dir={tmp_path / 'plain'}")
    cached = losses(recipe_file, f"run_dir={tmp_path / 'cached'}", "train.micro_batch_size=5")
    assert cached == pytest.approx(plain, rel=1e-5)
    assert "global batch  8 and as many neighbours: 16 rows" in inspect(recipe.load(str(recipe_file)))


def test_what_lacks_the_other_half_is_refused(recipe_file: Path) -> None:
    with pytest.raises(UserError, match=r"'hard_negatives' needs hard_texts.*set data\.hard_captions") as raised:
        losses(recipe_file, "data.hard_captions=[]")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"data\.hard_captions has no effect without an objective that uses it"):
        losses(recipe_file, "objectives=[{name: infonce}]")
    with pytest.raises(UserError, match=r"'hard_negatives' needs logit_bias.*model\.init_logit_bias"):
        losses(recipe_file, "objectives=[{name: infonce}, {name: hard_negatives, form: sigmoid}]")
