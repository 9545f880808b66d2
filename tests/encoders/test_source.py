"""MODEL references: what is found, what is preferred, and what is said when nothing is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from vlp.encoders import hub, source
from vlp.encoders.openclip import ModelOptions, build, load, save_openclip_directory
from vlp.encoders.source import CONFIG_FILE
from vlp.types import UserError


@pytest.fixture
def run(tiny_model, tmp_path):
    """A run with two checkpoints, the second the latest."""
    for step in (100, 200):
        model = build(ModelOptions(config=tiny_model), seed=step)
        save_openclip_directory(model, tmp_path / "run" / "checkpoints" / f"step-{step:07d}")
    (tmp_path / "run" / "checkpoints" / "latest").symlink_to("step-0000200")
    return tmp_path / "run"


def projection(reference) -> torch.Tensor:
    return load(str(reference)).clip.visual.proj


def test_run_means_its_latest_checkpoint(run):
    checkpoints = run / "checkpoints"
    newest = projection(checkpoints / "step-0000200")
    assert torch.equal(projection(run), newest)
    assert torch.equal(projection(f"local-dir:{checkpoints / 'step-0000200'}"), newest)
    assert not torch.equal(projection(checkpoints / "step-0000100"), newest)
    (checkpoints / "latest").unlink()
    assert torch.equal(projection(run), newest)
    (checkpoints / "latest").symlink_to("step-0000300")  # one that was removed
    assert torch.equal(projection(run), newest)


def test_a_configuration_without_towers_is_named(run):
    directory = run / "checkpoints" / "step-0000200"
    (directory / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {}}}')
    with pytest.raises(UserError, match=r"open_clip_config\.json has no 'model_cfg\.text_cfg'"):
        load(str(directory))


def test_average_is_preferred_and_said(run):
    directory = run / "checkpoints" / "step-0000200"
    model = load(str(directory))
    average = {
        name: value + 1 if value.is_floating_point() else value for name, value in model.clip.state_dict().items()
    }
    save_file({n: v.contiguous() for n, v in average.items()}, directory / "ema.safetensors")
    averaged = load(str(run))
    assert (model.weights, averaged.weights) == ("model", "ema")
    assert torch.equal(averaged.clip.visual.proj, model.clip.visual.proj + 1)


def test_average_of_another_model_is_refused(run):
    save_file({"visual.proj": torch.zeros(2, 2)}, run / "checkpoints" / "step-0000200" / "ema.safetensors")
    with pytest.raises(UserError, match=r"ema\.safetensors does not fit"):
        load(str(run))


def test_run_without_checkpoint(run):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint yet"):
        load(str(run))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("ViT-B-33:openai", "no model 'ViT-B-33:openai'.*did you mean ViT-B-32"),
        ("ViT-B-32:opena", "no tag of ViT-B-32, did you mean 'openai'"),
        ("ViT-B-32", "random weights.*such as ViT-B-32:"),
        ("runs/nothing-here", "no model 'runs/nothing-here': it is no directory"),
        ("local-dir:runs/nothing-here", "no directory runs/nothing-here"),
    ],
)
def test_nothing_there(reference, message):
    with pytest.raises(UserError, match=message):
        load(reference)


def test_unknown_names_in_a_recipe_name_the_nearest():
    with pytest.raises(UserError, match="no model 'ViT-B-33', did you mean ViT-B-32"):
        build(ModelOptions(name="ViT-B-33"), seed=0)
    with pytest.raises(UserError, match=r"a tag needs model\.name"):
        build(ModelOptions(init="openai"), seed=0)


def test_directory_without_model(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        load(str(tmp_path))
    (tmp_path / source.CONFIG_FILE).write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load(str(tmp_path))
    (tmp_path / source.CONFIG_FILE).write_text("{}")
    with pytest.raises(UserError, match="model_cfg"):
        load(str(tmp_path))
    (tmp_path / source.CONFIG_FILE).write_text('{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}')
    with pytest.raises(UserError, match="no weights"):
        load(str(tmp_path))


@pytest.mark.parametrize("reference", ["hf-hub:nobody/nothing", "ViT-B-32:openai"])
def test_hub_out_of_reach_is_one_sentence(reference, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"{reference} cannot be downloaded"):
        source.of_reference(reference)


def test_tag_decides_the_activation(monkeypatch):
    """OpenAI's weights were trained with QuickGELU, which open_clip's configuration of the name does not say."""
    monkeypatch.setattr(hub.Snapshot, "require", lambda _, *names: Path("weights.safetensors"))
    found = source.of_reference("ViT-B-32:openai")
    assert found.model_cfg["quick_gelu"]
    assert not source.of_reference("ViT-B-32:laion2b_s34b_b79k").model_cfg["quick_gelu"]


def test_a_lone_file_with_its_architecture(tiny_model, tmp_path, monkeypatch):
    """As open_clip's own ``pretrained`` path; pictures as a configuration beside it says, else open_clip's default."""
    model = build(ModelOptions(config=tiny_model, picture={"interpolation": "bilinear"}), seed=0).eval()
    save_openclip_directory(model, tmp_path / "model")
    monkeypatch.setattr(source, "named_config", lambda name: model.openclip_config["model_cfg"])
    file = tmp_path / "model" / "open_clip_model.safetensors"
    loaded = load(f"ViT-B-32:{file}")
    assert torch.equal(loaded.clip.visual.proj, model.clip.visual.proj)
    assert loaded.picture_format.interpolation == "bilinear"
    alone = shutil.copy(file, tmp_path / "alone.safetensors")
    assert load(f"ViT-B-32:{alone}").picture_format.interpolation == "bicubic"
    with pytest.raises(UserError, match=r"alone\.safetensors is a lone file: name its architecture.*ViT-B-32:"):
        load(str(alone))
    with pytest.raises(UserError, match=r"config\.json is no weights file"):
        load(f"ViT-B-32:{tmp_path / 'model' / source.CONFIG_FILE}")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("preprocess_cfg", [1], "preprocess_cfg cannot be used"),
        ("preprocess_cfg", {"mean": [0.5]}, r"preprocess_cfg.mean \[0.5\] is none"),
        ("preprocess_cfg", {"std": [0, 0, 0]}, "preprocess_cfg.std"),
        ("preprocess_cfg", {"std": "abc"}, "preprocess_cfg cannot be used"),
        ("preprocess_cfg", {"interpolation": "cubic"}, "preprocess_cfg.interpolation 'cubic'"),
        ("preprocess_cfg", {"resize_mode": "stretch"}, "preprocess_cfg.resize_mode 'stretch'"),
        ("preprocess_cfg", {"mode": "L"}, "preprocess_cfg.mode 'L'"),
        ("text_cleaning", "much", "text_cleaning 'much'"),
    ],
)
def test_what_pictures_and_texts_cannot_go_through_is_refused_before_they_come(run, key, value, sentence):
    file = run / "checkpoints" / "step-0000200" / CONFIG_FILE
    config = json.loads(file.read_text())
    config[key] = {**config[key], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=sentence):
        load(str(run))


@pytest.mark.parametrize(
    ("tower", "change", "sentence"),
    [
        ("vision_cfg", {"patch_size": 0}, "open_clip cannot build"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "evil"}}, "makes no tokenizer of open_clip"),
        ("text_cfg", {"tokenizer_kwargs": [1]}, "tokenizer_kwargs wants a mapping"),
        ("text_cfg", {"hf_tokenizer_name": 5}, "hf_tokenizer_name a name"),
    ],
)
def test_nonsense_about_a_tower_is_a_sentence(run, tower, change, sentence):
    file = run / "checkpoints" / "step-0000200" / CONFIG_FILE
    config = json.loads(file.read_text())
    config["model_cfg"][tower] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=sentence):
        load(str(run))
