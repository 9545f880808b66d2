"""Training that tells captions: resumed to the bit, in micro-batches, further runs, and mistakes in one sentence."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import cli, recipe
from vlp.encoders.openclip import load
from vlp.track import read_metrics
from vlp.trainer import train

CAPTIONING = {"name": "captioning", "weight": 2, "label_smoothing": 0.1}
HEAD = {"layers": 1, "width": 16, "heads": 2, "queries": 4}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(ScenesOptions(out=out, num_train=96, num_eval=24, samples_per_shard=32))
    return out


@pytest.fixture
def trained(scenes: Path, tmp_path: Path, tiny_model: dict[str, Any], tiny_coca: dict[str, Any]) -> Any:
    """``trained(kind, name, *overrides)``: the directory of a run of that name, with a CoCa or a head."""

    def run(kind: str, name: str, *overrides: str) -> Path:
        return train(recipe.load(str(written(kind)), [f"run_dir={tmp_path / name}", *overrides])).run_dir

    def written(kind: str) -> Path:
        tree = {
            "name": "test",
            "data": {"train": str(scenes / "train"), "workers": 0},
            "model": {"config": tiny_coca} if kind == "CoCa" else {"config": tiny_model, "captioner": HEAD},
            "objectives": [{"name": "infonce"}, CAPTIONING],
            "train": {"steps": 8, "global_batch_size": 16, "warmup": 2, "ema_decay": 0.5, "lr": 1e-2},
            "checkpoint": {"every": 3},
            "track": {"every": 1, "tensorboard": False},
        }
        path = tmp_path / f"{kind}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    run.written = written  # type: ignore[attr-defined]
    return run


def figures(run_dir: Path, name: str = "loss") -> list[float]:
    return [row[f"train/{name}"] for row in read_metrics(run_dir / "metrics.jsonl") if "train/lr" in row]


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    latest = run_dir / "checkpoints" / "latest"
    return {f"{p.stem}:{name}": v for p in latest.glob("*.safetensors") for name, v in load_file(p).items()}


@pytest.mark.parametrize("kind", ["CoCa", "head"])
def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_bit(trained: Any, kind: str) -> None:
    """With dropout of patches; weights, average and optimiser of the captioner among them."""
    dropout = "model.config.vision_cfg.patch_dropout=0.5"
    whole, cut = (trained(kind, name, dropout) for name in ("whole", "cut"))
    for step in (6, 8):
        shutil.rmtree(cut / "checkpoints" / f"step-{step:07d}")
    (cut / "checkpoints" / "latest").unlink()
    trained(kind, "cut", dropout)
    assert figures(whole) == figures(cut)
    assert figures(whole, "captioning_loss") == figures(cut, "captioning_loss")
    a, b = tensors(whole), tensors(cut)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    if kind == "head":
        expected = {f"{kind}:{prefix}" for kind, prefix in (("captioner", ""), ("ema", "captioner."))}
        assert all(any(name.startswith(start + "decoder.") for name in a) for start in expected)
        assert any(name.startswith("optimizer:captioner.decoder.") for name in a)
    assert figures(whole, "captioning_loss")[0] == pytest.approx(math.log(49408), abs=0.3)
    assert figures(whole, "captioning_loss")[-1] < 10


@pytest.mark.parametrize("kind", ["CoCa", "head"])
def test_cached_micro_batches_train_the_same(trained: Any, kind: str) -> None:
    short = ("train.steps=4", "train.ema_decay=null")
    plain, cached = trained(kind, "plain", *short), trained(kind, "cached", *short, "train.micro_batch_size=5")
    for name in ("loss", "captioning_loss", "contrastive_loss"):
        assert figures(cached, name) == pytest.approx(figures(plain, name), rel=1e-5), name


def test_bf16_and_checkpointed_activations_train_like_fp32(trained: Any) -> None:
    short = ("train.steps=4", "train.ema_decay=null")
    plain = figures(trained("head", "plain", *short))
    assert figures(trained("head", "less", *short, "train.gradient_checkpointing=full")) == pytest.approx(
        plain, rel=1e-5
    )
    AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate keeps the first precision of a process
    half = figures(trained("head", "half", *short, "train.precision=bf16"))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert half == pytest.approx(plain, rel=2e-2)
    assert half != plain


def test_a_further_run_goes_on_with_the_head_and_leaves_locked_towers(trained: Any) -> None:
    """Captioning alone, of the average of the first run, whose head the recipe need not name."""
    first = trained("head", "first")
    alone = [{"name": "captioning"}]
    overrides = ("model.config=null", "model.captioner=null", "model.lock_image=true", "model.lock_text=true")
    second = trained("head", "second", f"model.init={first}", f"objectives={alone}", *overrides)
    before, after = load(str(first)), load(str(second))
    assert all(torch.equal(value, after.clip.state_dict()[name]) for name, value in before.clip.state_dict().items())
    assert not torch.equal(before.captioner.text.weight, after.captioner.text.weight)
    # The average lags behind the last weights, but not as far as a new head.
    assert figures(second)[0] == pytest.approx(figures(first, "captioning_loss")[-1], abs=0.8)
    assert figures(second)[0] < 10


@pytest.mark.parametrize("command", ["train", "inspect"])
@pytest.mark.parametrize(
    ("kind", "overrides", "sentence"),
    [
        ("head", ["objectives=[{name: infonce}]"], "model.captioner has no effect without an objective that uses it"),
        ("CoCa", ["model.captioner={layers: 1}"], "model.captioner has no effect on a CoCa"),
        ("head", ["model.captioner=null"], "add model.captioner, such as {layers: 2}, or choose a CoCa"),
        ("head", ["model.captioner.heads=3"], "model.captioner: width 16 is no multiple of heads 3"),
        ("head", ["model.captioner.deep=3"], "unknown key 'model.captioner.deep'"),
        (
            "head",
            ["objectives=[{name: captioning, label_smoothing: 0.1}, {name: captioning}]"],
            "captioning has label_smoothing 0.1, captioning has 0.0: give both the same",
        ),
        ("head", ["model.config.text_cfg.no_causal_mask=true", "model.config.custom_text=true"], "sees the words"),
        ("CoCa", ["model.config.multimodal_cfg.width=64"], "the parts of this CoCa do not fit each other"),
        ("CoCa", ["model.config.vision_cfg.attentional_pool=cascade"], "is unfinished in open_clip"),
    ],
)
def test_mistakes_are_one_sentence(
    trained: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    kind: str,
    overrides: list[str],
    sentence: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, str(trained.written(kind)), f"run_dir={tmp_path / 'run'}", *overrides])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("vlp: ")
    assert sentence in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("kind", ["CoCa", "head"])
def test_inspect_counts_the_captioner(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    cli.main(["inspect", str(trained.written(kind)), f"run_dir={tmp_path / 'run'}"])
    lines = capsys.readouterr().out.splitlines()
    [counted] = [line.split()[-1] for line in lines if line.startswith("parameters") and "captioner" in line]
    model = load(str(trained(kind, "run", "train.steps=1", "train.warmup=0")))
    assert counted == f"{model.parameters_by_tower()['captioner']:,}"
    assert any(line.startswith("needs") and "captions" in line for line in lines)
