"""Training as a user runs it: resume to the bit, signals, several processes, bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import recipe, trainer
from vlp.inspection import inspect
from vlp.track import read_metrics
from vlp.trainer import train
from vlp.types import UserError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(ScenesOptions(out=out, num_train=96, num_eval=24, samples_per_shard=32))
    return out


@pytest.fixture
def recipe_file(scenes: Path, tmp_path: Path, tiny_model: dict[str, Any]) -> Path:
    tree = {
        "name": "test",
        "run_dir": str(tmp_path / "run"),
        "data": {"train": str(scenes / "train"), "workers": 1},
        "model": {"config": tiny_model},
        "objectives": [{"name": "infonce"}],
        "train": {"steps": 8, "global_batch_size": 16, "warmup": 2, "ema_decay": 0.5},
        "evaluate": {"sets": [str(scenes / "eval" / name) for name in ("retrieval", "colour", "swaps")]},
        "checkpoint": {"every": 3},
        "track": {"every": 1, "tensorboard": False},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(path: Path, *overrides: str) -> Path:
    return train(recipe.load(str(path), overrides)).run_dir


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    latest = run_dir / "checkpoints" / "latest"
    names = ("open_clip_model", "ema", "optimizer")
    return {f"{n}:{k}": v for n in names for k, v in load_file(latest / f"{n}.safetensors").items()}


def losses(run_dir: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run_dir / "metrics.jsonl") if "train/lr" in row]


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def command(path: Path, *overrides: str, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, "-m", "vlp", "train", str(path), *overrides]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_a_run_leaves_what_the_readme_says(recipe_file, scenes):
    run_dir = run(recipe_file)
    rows = read_metrics(run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/lr" in row] == list(range(1, 9))
    assert all("train/loss" in row for row in rows)
    assert all(row["samples"] == row["step"] * 16 for row in rows)
    assert {"val/image_to_text_R@1", "val/retrieval/text_to_image_R@5", "val/colour-zeroshot-val-top1"} <= rows[
        -1
    ].keys()
    assert {path.stem for path in (run_dir / "evaluation").glob("*.json")} == {"retrieval", "colour", "swaps"}
    result = json.loads((run_dir / "evaluation" / "retrieval.json").read_text())
    assert {"image_retrieval_recall@1", "text_retrieval_recall@5"} <= result["metrics"].keys()
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == [
        "latest",
        "step-0000003",
        "step-0000006",
        "step-0000008",
    ]
    assert recipe.load(str(run_dir / "recipe.yaml")) == recipe.load(str(recipe_file))


def test_the_loss_starts_at_ln_n_and_falls(recipe_file):
    found = losses(run(recipe_file, "train.steps=40", "train.lr=2e-3", "evaluate.sets=[]"))
    assert found[0] == pytest.approx(2.7726, abs=0.5)
    assert sum(found[-5:]) < 0.9 * sum(found[:5])


def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_bit(recipe_file, tmp_path):
    whole = run(recipe_file, f"run_dir={tmp_path / 'whole'}")
    cut = tmp_path / "cut"
    run(recipe_file, f"run_dir={cut}")
    # What a kill leaves behind: an older checkpoint, rows beyond it, a half-written checkpoint.
    for step in (6, 8):
        subprocess.run(["rm", "-r", str(cut / "checkpoints" / f"step-{step:07d}")], check=True)
    (cut / "checkpoints" / "latest").unlink()
    (cut / "checkpoints" / ".step-0000006.partial").mkdir()
    run(recipe_file, f"run_dir={cut}")
    assert_same_run(whole, cut)


def test_cached_micro_batches_train_the_same(recipe_file, tmp_path):
    plain = losses(run(recipe_file, f"run_dir={tmp_path / 'plain'}"))
    cached = losses(run(recipe_file, f"run_dir={tmp_path / 'cached'}", "train.micro_batch_size=5"))
    assert cached == pytest.approx(plain, rel=1e-5)


TRIPLE = ("objectives=[{name: triple, queue_size: 48, momentum: 0.8}]", "evaluate.sets=[]")


def test_cached_micro_batches_train_the_same_with_a_twin_and_a_queue(recipe_file, tmp_path):
    """To the weights: those of the model, of the average and of the twin, and what is queued."""
    plain = run(recipe_file, *TRIPLE, f"run_dir={tmp_path / 'plain'}")
    cached = run(recipe_file, *TRIPLE, f"run_dir={tmp_path / 'cached'}", "train.micro_batch_size=5")
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-5)
    for name in ("open_clip_model", "ema", "momentum"):
        a, b = (load_file(each / "checkpoints" / "latest" / f"{name}.safetensors") for each in (plain, cached))
        assert a.keys() == b.keys()
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, rtol=1e-3, atol=2e-4, msg=lambda m, k=key: f"{k}: {m}")
    rows = [row for row in read_metrics(plain / "metrics.jsonl") if "train/lr" in row]
    for row in rows:
        parts = [row[f"train/{term}_loss"] for term in ("cma", "imc", "lmi")]
        assert row["train/loss"] == pytest.approx(sum(parts) / 3, rel=1e-6)
    # An epoch has six steps: alpha arrives in the sixth. Scenes always say something.
    assert [row["train/alpha"] for row in rows] == pytest.approx([0.4 * min(1, i / 5) for i in range(8)])
    assert {row["train/share_without_words"] for row in rows} == {0.0}


def test_a_tower_without_tokens_is_refused_before_training(recipe_file):
    resnet = "model.config.vision_cfg={layers: [1, 1, 1, 1], width: 8, head_width: 8, image_size: 64}"
    with pytest.raises(UserError, match="ModifiedResNet gives no patch tokens: choose a ViT"):
        run(recipe_file, *TRIPLE, resnet)
    assert not list(Path(recipe.load(str(recipe_file)).run_dir).glob("metrics.jsonl"))


@pytest.mark.slow
def test_batch_norms_train_with_a_twin_on_two_processes_as_on_one(recipe_file, tmp_path):
    tower = "model.config.vision_cfg={image_size: 64, timm_model_name: resnet10t, timm_pool: '', timm_proj: linear}"
    overrides = (*TRIPLE, tower, "train.steps=4")
    one = losses(run(recipe_file, *overrides, f"run_dir={tmp_path / 'one'}"))
    two = tmp_path / "two"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    subprocess.run(
        command(recipe_file, *overrides, f"run_dir={two}", launcher=launcher),
        env=ENVIRONMENT,
        capture_output=True,
        check=True,
    )
    assert losses(two) == pytest.approx(one, rel=1e-4)


def test_bf16_checkpointed_activations_and_siglip_train_like_fp32(recipe_file, tmp_path):
    siglip = ("objectives.0.name=siglip", "evaluate.sets=[]")
    plain = losses(run(recipe_file, *siglip, f"run_dir={tmp_path / 'plain'}"))
    checkpointed = run(recipe_file, *siglip, f"run_dir={tmp_path / 'less'}", "train.gradient_checkpointing=full")
    assert losses(checkpointed) == pytest.approx(plain, rel=1e-5)
    AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate keeps the first precision of a process
    half = losses(run(recipe_file, *siglip, f"run_dir={tmp_path / 'half'}", "train.precision=bf16"))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert half == pytest.approx(plain, rel=2e-2)
    assert half != plain


def test_dropout_is_replayed_after_a_resume(recipe_file, tmp_path):
    dropout = "model.config.vision_cfg.patch_dropout=0.5"
    whole = run(recipe_file, f"run_dir={tmp_path / 'whole'}", dropout)
    part = tmp_path / "part"
    run(recipe_file, f"run_dir={part}", dropout)
    subprocess.run(["rm", "-r", str(part / "checkpoints" / "step-0000008")], check=True)
    (part / "checkpoints" / "latest").unlink()
    run(recipe_file, f"run_dir={part}", dropout)
    assert_same_run(whole, part)


@pytest.mark.slow
def test_kill_9_and_sigterm_then_the_same_command_goes_on(recipe_file, tmp_path):
    long = ("train.steps=60", "evaluate.sets=[]", "checkpoint.every=4", "checkpoint.keep=30")
    whole = run(recipe_file, *long, f"run_dir={tmp_path / 'whole'}")
    cut = tmp_path / "cut"
    arguments = command(recipe_file, *long, f"run_dir={cut}")

    def start_and_send(number: int, after_step: int) -> int:
        process = subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        deadline = time.time() + 90
        while time.time() < deadline and process.poll() is None:
            done = read_metrics(cut / "metrics.jsonl") if (cut / "metrics.jsonl").exists() else []
            if done and done[-1]["step"] >= after_step:
                process.send_signal(number)
                break
            time.sleep(0.01)
        _, errors = process.communicate(timeout=90)
        assert number == signal.SIGKILL or "saved; run the same command again" in errors, errors
        return process.returncode

    assert start_and_send(signal.SIGKILL, 6) == -signal.SIGKILL
    assert start_and_send(signal.SIGTERM, 14) == 0
    assert start_and_send(signal.SIGINT, 22) == 0
    finished = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "going on from step" in finished.stderr
    assert_same_run(whole, cut)


@pytest.mark.slow
def test_a_signal_at_a_step_with_an_evaluation_loses_no_row(recipe_file, tmp_path, monkeypatch):
    overrides = ("evaluate.every=2", "train.steps=4", "data.workers=0")
    whole = read_metrics(run(recipe_file, *overrides, f"run_dir={tmp_path / 'whole'}") / "metrics.jsonl")
    update = trainer._update

    def interrupted(state, batch, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(state, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_update", interrupted)
        cut = run(recipe_file, *overrides, f"run_dir={tmp_path / 'cut'}")
    assert max(row["step"] for row in read_metrics(cut / "metrics.jsonl")) == 2
    run(recipe_file, *overrides, f"run_dir={cut}")
    rows = read_metrics(cut / "metrics.jsonl")
    assert [(row["step"], row.keys()) for row in rows] == [(row["step"], row.keys()) for row in whole]


def test_the_evaluation_of_each_set_is_progress_for_the_watchdog(recipe_file, monkeypatch):
    began = []
    monkeypatch.setattr(trainer.Watchdog, "at", lambda _, step, phase: began.append((step, phase)))
    run(recipe_file, "train.steps=1", "train.warmup=1")
    assert began.count((1, "evaluation")) >= 3  # sets


def test_two_processes_train_like_one(recipe_file, tmp_path):
    one = losses(run(recipe_file, f"run_dir={tmp_path / 'one'}"))
    two = tmp_path / "two"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    subprocess.run(
        command(recipe_file, f"run_dir={two}", launcher=launcher), env=ENVIRONMENT, capture_output=True, check=True
    )
    assert losses(two) == pytest.approx(one, rel=1e-4)


def test_bad_samples_are_counted_named_and_kept_over_a_resume(recipe_file, scenes, tmp_path, capfd):
    spoilt = tmp_path / "spoilt"
    subprocess.run(["cp", "-r", str(scenes / "train"), str(spoilt)], check=True)
    with tarfile.open(spoilt / "00000.tar") as tar:
        picture = next(member for member in tar.getmembers() if member.name.endswith(".png"))
    with (spoilt / "00000.tar").open("r+b") as file:
        file.seek(picture.offset_data)
        file.write(b"spoilt" * 4)
    spoilt_run = [f"data.train={spoilt}", "data.max_bad_fraction=0.5", "evaluate.sets=[]", "train.steps=12"]
    run_dir = run(recipe_file, *spoilt_run)
    state = json.loads((run_dir / "checkpoints" / "latest" / "state.json").read_text())
    assert state["bad_samples"]["kinds"] == {"undecodable picture": 2}  # 12 x 16 draws = two epochs of 96
    assert "skipped 2 x undecodable picture, such as " in capfd.readouterr().err
    subprocess.run(["rm", "-r", str(run_dir / "checkpoints" / "step-0000012")], check=True)
    (run_dir / "checkpoints" / "latest").unlink()
    run(recipe_file, *spoilt_run)
    assert json.loads((run_dir / "checkpoints" / "latest" / "state.json").read_text()) == state
    with pytest.raises(UserError, match=r"data\.max_bad_fraction"):
        run(recipe_file, f"data.train={spoilt}", "data.max_bad_fraction=0.001", f"run_dir={tmp_path / 'strict'}")


@pytest.mark.slow
def test_accelerate_launch_starts_one_process_and_refuses_to_play_several(recipe_file):
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_machines",
        "1",
        "--dynamo_backend",
        "no",
    ]
    training = ["--mixed_precision", "no", "-m", "vlp", "train", str(recipe_file), "evaluate.sets=[]"]
    one = subprocess.run([*launch, "--num_processes", "1", *training], env=ENVIRONMENT, capture_output=True, text=True)
    assert one.returncode == 0, one.stderr
    several = subprocess.run(
        [*launch, "--num_processes", "2", *training], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert several.returncode != 0
    assert "use `torchrun" in several.stderr


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.train=nowhere"], "nowhere"),
        (["train.global_batch_size=97"], "exceeds the data set of 96 samples"),
        (["model.name=ViT-B-33", "model.config=null"], "ViT-B-3"),
        (["evaluate.sets=[nowhere]"], "nowhere"),
        (["train.precision=fp16"], "fp16 needs a CUDA device"),
        (["train.lr=nan"], r"train\.lr"),
        (["train.lr=1e30"], "the loss is nan at step"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the sentences are those of a machine without a GPU")
def test_what_cannot_work_is_said_in_one_sentence(recipe_file, overrides, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        run(recipe_file, *overrides)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        ("{name: triple, terms: [cma], queue_size: 96}", "exceed the data set of 96 samples.*write at most 80$"),
        ("{name: distill, teacher: nowhere}", "the teacher cannot be had: no model 'nowhere'"),
    ],
)
def test_what_an_objective_cannot_have_is_said_before_the_first_step(recipe_file, objective, sentence):
    loaded = recipe.load(str(recipe_file), [f"objectives=[{objective}]"])
    for command in (train, inspect):
        with pytest.raises(UserError, match=sentence):
            command(loaded)
    assert not (Path(loaded.run_dir) / "recipe.yaml").exists()


def test_another_recipe_does_not_go_on_with_a_run(recipe_file):
    run(recipe_file, "train.steps=2")
    with pytest.raises(UserError, match=r"train\.lr"):
        run(recipe_file, "train.steps=2", "train.lr=0.1")
    run(recipe_file, "train.steps=2", "track.every=2", "data.workers=0")  # changes nothing that is computed


def test_a_run_from_before_an_option_existed_goes_on(recipe_file):
    few = ("train.steps=2", "evaluate.sets=[]")
    latest = run(recipe_file, *few) / "checkpoints" / "latest"
    tree = yaml.safe_load((latest / "recipe.yaml").read_text())
    del tree["train"]["eps"]
    (latest / "recipe.yaml").write_text(yaml.safe_dump(tree))
    (latest / "checksums.json").unlink()
    run(recipe_file, *few)
    with pytest.raises(UserError, match=r"different: train\.eps\)"):
        run(recipe_file, *few, "train.eps=1e-5")


def test_a_run_that_was_moved_goes_on_and_a_stored_recipe_that_is_broken_is_named(recipe_file, tmp_path):
    few = ("train.steps=2", "evaluate.sets=[]")
    moved = run(recipe_file, *few).rename(tmp_path / "moved")
    run(recipe_file, *few, f"run_dir={moved}")
    latest = moved / "checkpoints" / "latest"
    (latest / "recipe.yaml").write_text("{")
    (latest / "checksums.json").unlink()  # it would be known as damaged, and not be used
    with pytest.raises(UserError, match=r"recipe\.yaml: not valid YAML"):
        run(recipe_file, *few, f"run_dir={moved}")


def test_a_run_does_not_go_on_with_more_or_fewer_samples(recipe_file, scenes, tmp_path):
    shards = shutil.copytree(scenes / "train", tmp_path / "shards")
    overrides = ("train.steps=2", "evaluate.sets=[]", f"data.train={shards}")
    run(recipe_file, *overrides)
    (shards / "00002.tar").unlink()
    with pytest.raises(UserError, match=r"data\.train has 64 samples now, but 96 when this run was saved"):
        run(recipe_file, *overrides)


def test_weights_that_diverge_with_the_last_update_are_not_saved(recipe_file):
    diverge = ["train.steps=1", "train.lr=3e38", "train.warmup=0", "train.weight_decay=1e30", "track.every=1"]
    with pytest.raises(UserError, match="not finite at step 1"):
        run(recipe_file, *diverge)
    assert not list(Path(recipe.load(str(recipe_file)).run_dir).glob("checkpoints/step-*"))


def test_objective_names_are_checked_before_anything_is_loaded(recipe_file):
    with pytest.raises(UserError, match="unknown objective"):
        run(recipe_file, "objectives.0.name=contrastive", "data.train=nowhere")
