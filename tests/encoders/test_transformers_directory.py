"""Directories of transformers as MODEL: the same pixels, ids, features and logits, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoProcessor

from vlp.encoders.openclip import ModelOptions, build, load, save_openclip_directory
from vlp.types import UserError

_helper = Path(__file__).parents[1] / "transformers_models.py"
_spec = importlib.util.spec_from_file_location("transformers_models", _helper)
assert _spec is not None
assert _spec.loader is not None
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)


def write(kind: str, directory: Path) -> Any:
    if kind == "clip":
        return models.write_clip(directory)
    return models.write_siglip(directory, gemma=kind == "siglip2")


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_all_is_as_in_transformers(kind: str, tmp_path: Path) -> None:
    theirs = write(kind, tmp_path / "model")
    ours = load(str(tmp_path / "model"))
    processor = AutoProcessor.from_pretrained(str(tmp_path / "model"))
    length = ours.tokenizer.context_length
    text_NL = processor.tokenizer(
        models.TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    assert torch.equal(ours.tokenizer(models.TEXTS), text_NL)
    assert text_NL.shape == (5, length)

    image_NCHW = torch.stack([ours.eval_transform(picture) for picture in models.pictures()])
    pixels_NCHW = processor.image_processor(models.pictures(), return_tensors="pt").pixel_values
    by_pillow = AutoImageProcessor.from_pretrained(str(tmp_path / "model"), use_fast=False)
    exact = torch.tensor(np.stack(by_pillow(models.pictures(), return_tensors="np")["pixel_values"]))
    torch.testing.assert_close(ours.normalise(image_NCHW), exact, atol=1e-6, rtol=0)
    levels = ((pixels_NCHW - exact) * ours.std_C11 * 255).abs()
    assert levels.max() < 2.01, "torchvision and Pillow round differently"
    assert (levels > 0.5).float().mean() < 0.05

    with torch.no_grad():
        outputs = theirs(input_ids=text_NL, pixel_values=ours.normalise(image_NCHW))
        pairs = [
            (ours.encode_image(image_NCHW), models.features(theirs.get_image_features(ours.normalise(image_NCHW)))),
            (ours.encode_text(text_NL), models.features(theirs.get_text_features(text_NL))),
            (logits(ours, image_NCHW, text_NL), outputs.logits_per_image),
        ]
    for one, other in pairs:
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def logits(model: Any, image_NCHW: torch.Tensor, text_NL: torch.Tensor) -> torch.Tensor:
    image_ND, text_ND = (
        torch.nn.functional.normalize(x, dim=-1) for x in (model.encode_image(image_NCHW), model.encode_text(text_NL))
    )
    bias = 0 if model.clip.logit_bias is None else model.clip.logit_bias
    return model.logit_scale.exp() * image_ND @ text_ND.T + bias


# ---- What is refused


@pytest.mark.parametrize(
    ("text", "vision", "sentence"),
    [
        ({"hidden_act": "relu"}, {}, r"text_config\.hidden_act 'relu', where open_clip has quick_gelu"),
        ({"hidden_act": "gelu"}, {}, r"hidden_act 'quick_gelu' and 'gelu', where open_clip has one"),
        ({"attention_dropout": 0.1}, {}, r"text_config\.attention_dropout 0\.1"),
        ({}, {"num_channels": 1}, r"vision_config\.num_channels 1"),
        ({"eos_token_id": [1, 2]}, {}, r"eos_token_id \[1, 2\]"),
    ],
)
def test_an_architecture_that_open_clip_lacks(text: Any, vision: Any, sentence: str, tmp_path: Path) -> None:
    models.write_clip(tmp_path / "model")
    models.clip_config(text, vision).save_pretrained(tmp_path / "model")
    refused(tmp_path / "model", sentence)


@pytest.mark.parametrize(
    ("text", "vision", "sentence"),
    [
        ({}, {"vision_use_head": False}, "vision_use_head false"),
        ({"projection_size": 24}, {}, "projection_size 24, but features of pictures have 48"),
        ({}, {"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05, where timm has 1e-06"),
        ({"hidden_act": "quick_gelu"}, {}, "quick_gelu, which timm's towers do not have"),
    ],
)
def test_a_siglip_that_open_clip_lacks(text: Any, vision: Any, sentence: str, tmp_path: Path) -> None:
    models.write_siglip(tmp_path / "model")
    models.siglip_config(text, vision).save_pretrained(tmp_path / "model")
    refused(tmp_path / "model", sentence)


@pytest.mark.parametrize(
    ("processor", "sentence"),
    [
        ({"size": {"shortest_edge": 40}}, r"crop_size .*where open_clip crops to the size it resized to \(40\)"),
        ({"do_center_crop": False}, "where open_clip crops"),
        ({"resample": 1}, "resample 1, where open_clip knows 2 .bilinear. and 3"),
        ({"rescale_factor": 1 / 127.5}, "where open_clip divides by 255"),
        ({"do_resize": False}, "do_resize False"),
        ({"size": {"height": 32, "width": 24}, "do_center_crop": False}, "takes squares"),
        ({"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}, "the image tower takes 32 pixels"),
    ],
)
def test_pictures_that_open_clip_cannot_make(processor: Any, sentence: str, tmp_path: Path) -> None:
    models.write_clip(tmp_path / "model", **processor)
    refused(tmp_path / "model", sentence)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("siglip2", "of the type 'siglip2', whose pictures keep their shape"),
        ("clip_vision_model", "an image tower alone"),
        ("blip", "of the type 'blip', where vlp reads clip and siglip"),
    ],
)
def test_other_kinds_of_models(kind: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    refused(tmp_path, sentence)


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    models.write_clip(directory)
    values = load_file(directory / "model.safetensors")
    save_file({**values, "visual_projection.bias": torch.zeros(24)}, directory / "model.safetensors")
    refused(directory, r"model\.safetensors does not fit the model: visual_projection\.bias has no place")
    save_file({n: v for n, v in values.items() if n != "logit_scale"}, directory / "model.safetensors")
    refused(directory, "logit_scale is missing")
    save_file({**values, "logit_scale": torch.zeros(2)}, directory / "model.safetensors")
    refused(directory, r"logit_scale has the shape \(2,\)")
    (directory / "model.safetensors").write_bytes(b"no")
    refused(directory, r"model\.safetensors cannot be read")
    (directory / "model.safetensors").unlink()
    refused(directory, r"has config\.json but no weights")
    (directory / "preprocessor_config.json").unlink()
    torch.save(values, directory / "pytorch_model.bin")
    refused(directory, r"no preprocessor_config\.json, so how its pictures become pixels is not known")


# ---- Files


def test_older_files_in_half_precision_and_in_parts(tmp_path: Path) -> None:
    """pytorch_model.bin in fp16 with position_ids, and safetensors in parts with an index, in bf16."""
    directory = tmp_path / "model"
    models.write_clip(directory)
    values = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    halves = {name: value.half() for name, value in values.items()}
    torch.save(
        {**halves, "text_model.embeddings.position_ids": torch.arange(16)[None]}, directory / "pytorch_model.bin"
    )
    model = load(str(directory))
    assert all(value.dtype == torch.float32 for value in model.clip.state_dict().values())
    assert torch.equal(model.clip.visual.class_embedding, halves["vision_model.embeddings.class_embedding"].float())
    names = sorted(values)
    weight_map = {}
    for part, chosen in enumerate((names[:20], names[20:])):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        save_file({name: values[name].bfloat16() for name in chosen}, directory / file)
        weight_map |= dict.fromkeys(chosen, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model = load(str(directory))
    expected = values["vision_model.embeddings.class_embedding"].bfloat16().float()
    assert torch.equal(model.clip.visual.class_embedding, expected)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    refused(directory, "does not lie beside it")


class _Spy:
    ran = False

    def __reduce__(self) -> Any:
        return setattr, (_Spy, "ran", True)


def test_nothing_is_executed(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    models.write_clip(directory)
    torch.save({"logit_scale": _Spy()}, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    refused(directory, r"pytorch_model\.bin cannot be read")
    assert not _Spy.ran
    models.write_clip(directory)
    (directory / "tokenizer_own.py").write_text("raise SystemExit('executed')\n")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenizer_own.OwnTokenizer", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config | own))
    refused(directory, "the tokenizer .* cannot be had")
    model = tmp_path / "openclip"
    models.write_clip(tmp_path / "plain")
    save_openclip_directory(load(str(tmp_path / "plain")), model)
    config = json.loads((model / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (model / "open_clip_config.json").write_text(json.dumps(config))
    refused(model, "trust_remote_code would run code")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_recipe_goes_on_from_it_and_its_checkpoint_is_the_same_model(kind: str, tmp_path: Path) -> None:
    """Texts stay as they are, HTML entities and all, and timm finds the tower that no name describes."""
    write(kind, tmp_path / "model")
    model = build(ModelOptions(init=str(tmp_path / "model")), seed=0).eval()
    save_openclip_directory(model, tmp_path / "checkpoint")
    (tmp_path / "checkpoint").rename(tmp_path / "moved")
    again = load(str(tmp_path / "moved"))
    texts = [*models.TEXTS, "one &amp; two"]
    assert torch.equal(model.tokenizer(texts), again.tokenizer(texts))
    assert again.picture_format == model.picture_format
    image_NCHW = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(model.encode_image(image_NCHW), again.encode_image(image_NCHW))
    assert torch.equal(model.encode_text(model.tokenizer(texts)), again.encode_text(model.tokenizer(texts)))
    with pytest.raises(UserError, match=r"brings its architecture: remove model\.name"):
        build(ModelOptions(init=str(tmp_path / "model"), name="ViT-B-32"), seed=0)


def refused(directory: Path, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        load(str(directory))
    assert "\n" not in str(raised.value)


def test_without_its_vocabulary_no_ids_are_made_up(tmp_path: Path) -> None:
    """transformers would make a tokenizer that knows no word, without a word about it."""
    models.write_clip(tmp_path / "model")
    (tmp_path / "model" / "merges.txt").unlink()
    refused(tmp_path / "model", "has no vocabulary of a tokenizer")
    (tmp_path / "model" / "vocab.json").unlink()
    refused(tmp_path / "model", "has no vocabulary of a tokenizer")


def test_code_of_a_text_tower_is_not_even_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on the terminal whether to run what an unknown kind brings along."""
    models.write_clip(tmp_path / "plain")
    save_openclip_directory(load(str(tmp_path / "plain")), tmp_path / "model")
    file = tmp_path / "model" / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"] = {"hf_model_name": "elsewhere/tower", "context_length": 16}
    file.write_text(json.dumps(config))
    tower = tmp_path / "model" / "text_tower"
    tower.mkdir()
    (tower / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}')
    (tower / "evil.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w').close()")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    refused(tmp_path / "model", "does not know text towers of the kind 'evil'")
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": ["clip"]}, "transformers model of the type"),
        ({"vision_config": {"hidden_size": 0}}, "no divisor of hidden_size 0"),
        ({"vision_config": {"patch_size": 0}}, "patch_size 0, where one number from 1 on"),
    ],
)
def test_nonsense_in_a_configuration_is_a_sentence(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    models.write_clip(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(config))
    refused(tmp_path / "model", sentence)


@pytest.mark.parametrize(
    ("key", "value"), [("resample", [3]), ("rescale_factor", "a"), ("image_mean", "x"), ("image_std", [0, 0, 0])]
)
def test_nonsense_about_pictures_is_a_sentence(key: str, value: Any, tmp_path: Path) -> None:
    models.write_clip(tmp_path / "model")
    file = tmp_path / "model" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    refused(tmp_path / "model", "cannot be used|std .* is none that open_clip can use")


@pytest.mark.parametrize("named", [[1], "x", {}, {"a": 5}, {"a": ""}, {"a": ".."}, {"a": None, "b": "part"}])
def test_an_index_that_names_no_files(named: Any, tmp_path: Path) -> None:
    models.write_clip(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "part")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    refused(tmp_path / "model", "no 'weight_map'|does not lie beside it")


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"logit_scale": 3.0}])
def test_a_pickle_of_something_else(content: Any, tmp_path: Path) -> None:
    models.write_clip(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(content, tmp_path / "model" / "pytorch_model.bin")
    refused(tmp_path / "model", "something else than tensors by name")


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    models.write_clip(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file({name: value.to(torch.int8) for name, value in load_file(file).items()}, file, {"format": "pt"})
    refused(tmp_path / "model", "torch.int8 in .*quantised")
