"""Runs whose disk fills up, and runs that go on where only the copies are left."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import recipe, trainer
from vlp.checkpoint import checksums
from vlp.types import UserError

SMALL = {  # 19 MB with its moments
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(ScenesOptions(out=out, num_train=32, num_eval=8, samples_per_shard=32))
    return out / "train"


def train(scenes: Path, run_dir: Path, **checkpoint: Any) -> dict[str, torch.Tensor]:
    """Six steps; the last weights and moments."""
    tree = {
        "name": "test",
        "run_dir": str(run_dir),
        "data": {"train": str(scenes), "workers": 0},
        "model": {"config": SMALL},
        "objectives": [{"name": "infonce"}],
        "train": {"steps": 6, "global_batch_size": 8, "warmup": 1},
        "checkpoint": {"every": 1, **checkpoint},
        "track": {"every": 6, "tensorboard": False},
    }
    assert trainer.train(recipe.validate(tree, "test")).finished
    files = sorted((run_dir / "checkpoints" / "latest").glob("*.safetensors"))
    return {f"{path.stem}/{name}": value for path in files for name, value in load_file(path).items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_new_machine_goes_on_from_the_copies(scenes, tmp_path, capsys):
    places = {"copy_to": str(tmp_path / "copies"), "keep": 9}
    whole = train(scenes, tmp_path / "run", **places)
    copies = tmp_path / "copies" / "run" / "checkpoints"
    oldest, *others = sorted(copies.glob("step-*"))
    for newer in others:
        shutil.rmtree(newer)
    shutil.rmtree(tmp_path / "run")
    capsys.readouterr()
    assert_same(train(scenes, tmp_path / "run", **places), whole)
    said = capsys.readouterr().err
    assert f"fetching {oldest.name} from {copies}\n" in said
    assert f"going on from step {oldest.name[-1]}\n" in said
    assert (copies / "step-0000006" / "checksums.json").exists()


def test_the_copies_of_another_recipe_are_refused(scenes, tmp_path):
    places = {"copy_to": str(tmp_path / "copies"), "every": 6}
    train(scenes, tmp_path / "run", **places)
    stored = tmp_path / "copies" / "run" / "checkpoints" / "step-0000006"
    shutil.rmtree(tmp_path / "run")
    (stored / "checksums.json").unlink()
    (stored / "recipe.yaml").write_text((stored / "recipe.yaml").read_text().replace("seed: 0", "seed: 1"))
    checksums.write(stored)
    with pytest.raises(UserError, match=r"holds a run of another recipe \(different: seed\)"):
        train(scenes, tmp_path / "run", **places)


def test_a_full_disk_ends_the_run_and_with_more_room_it_goes_on(scenes, tmp_path, small_disk, capsys):
    whole = train(scenes, tmp_path / "whole")
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"step-0000003 cannot be written .*No space left on device"):
        train(scenes, small_disk / "run")
    capsys.readouterr()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert_same(train(scenes, small_disk / "run"), whole)
    assert "going on from step 2\n" in capsys.readouterr().err
