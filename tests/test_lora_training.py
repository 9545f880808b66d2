"""A run with LoRA: it goes on to the bit from what it saved, and only beside the weights that it began with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import recipe
from vlp.encoders.openclip import ModelOptions, build, load, save_openclip_directory
from vlp.export import export
from vlp.inspection import inspect
from vlp.track import read_metrics
from vlp.trainer import train
from vlp.types import UserError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(ScenesOptions(out=out, num_train=64, num_eval=16))
    return out


@pytest.fixture
def recipe_file(scenes: Path, tmp_path: Path, tiny_model: dict[str, Any]) -> Path:
    save_openclip_directory(build(ModelOptions(config=tiny_model), 0), tmp_path / "base")
    tree = {
        "name": "test",
        "run_dir": str(tmp_path / "run"),
        "data": {"train": str(scenes / "train"), "workers": 0},
        "model": {"init": str(tmp_path / "base"), "lora": {"rank": 4}},
        "objectives": [{"name": "infonce"}],
        "train": {"steps": 8, "global_batch_size": 16, "warmup": 2, "micro_batch_size": 8, "precision": "bf16"},
        "evaluate": {"sets": [str(scenes / "eval" / "retrieval")]},
        "checkpoint": {"every": 4, "keep": 9},
        "track": {"every": 1, "tensorboard": False},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(path: Path, *overrides: str) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return train(recipe.load(str(path), overrides)).run_dir
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def files(run_dir: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in (run_dir / "checkpoints/step-0000008").glob("*.safetensors")}


def losses(run_dir: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run_dir / "metrics.jsonl") if "train/lr" in row]


def test_a_run_goes_on_to_the_bit_and_is_a_model_like_any_other(recipe_file: Path, tmp_path: Path) -> None:
    whole = run(recipe_file)
    saved = files(whole)
    assert saved.keys() == {"open_clip_model.safetensors", "lora.safetensors", "optimizer.safetensors"}
    base = load_file(tmp_path / "base/open_clip_model.safetensors")
    merged = saved["open_clip_model.safetensors"]
    assert merged.keys() == base.keys()
    changed = {name for name, value in merged.items() if not torch.equal(value, base[name])}
    assert changed == {name.removesuffix("/A") for name in saved["lora.safetensors"] if name.endswith("/A")} | {
        "logit_scale"
    }

    cut = tmp_path / "cut"
    shutil.copytree(whole, cut, symlinks=True)
    shutil.rmtree(cut / "checkpoints/step-0000008")
    run(recipe_file, f"run_dir={cut}")
    for name, tensors in files(cut).items():
        assert all(torch.equal(value, saved[name][key]) for key, value in tensors.items()), name
    assert losses(cut) == losses(whole)

    assert load(str(whole)).clip.state_dict().keys() == base.keys()
    assert export(str(whole), tmp_path / "export")["max_abs_difference"] < 1e-5


def test_another_base_is_refused(recipe_file: Path, tmp_path: Path, tiny_model: dict[str, Any]) -> None:
    run(recipe_file, "train.steps=4", "train.warmup=1")
    save_openclip_directory(build(ModelOptions(config=tiny_model), 1), tmp_path / "base")
    with pytest.raises(UserError, match=r"model\.init: these are not the weights that the run of .* began with"):
        run(recipe_file, "train.steps=4", "train.warmup=1")


def test_it_is_told_before_anything_is_trained(recipe_file: Path) -> None:
    said = inspect(recipe.load(str(recipe_file)))
    assert "lora          rank 4 beside 12 weights (8 of the image tower, 4 of the text tower; 0 others" in said
    assert "optimiser     image: 8,192 parameters" in said


@pytest.mark.parametrize(
    "override",
    ["train.ema_decay=0.9", "objectives=[{name: triple, queue_size: 16}]", "model.lock_text=true"],
)
def test_what_does_not_go_with_it_is_refused(override: str, recipe_file: Path) -> None:
    with pytest.raises(UserError, match="lora"):
        recipe.load(str(recipe_file), [override])
