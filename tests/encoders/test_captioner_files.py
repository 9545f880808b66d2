"""Captioners on disk: open_clip's directories and ours, a head beside the model, further runs from both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlp.encoders.captioner import CaptionerOptions
from vlp.encoders.openclip import ModelOptions, build, load, outline, save_openclip_directory
from vlp.encoders.source import CAPTIONER_FILE, CONFIG_FILE, EMA_FILE, WEIGHTS_FILE
from vlp.encoders.two_tower import TwoTower
from vlp.types import UserError

KINDS = ["CoCa", "CoCa without class token", "head", "half on BERT"]


def told(captioners: Any, model: TwoTower) -> dict[str, Tensor]:
    """Features, and logits of the ids that are told."""
    text_NL, image_NCHW = captioners.texts(model), captioners.pictures()[0]
    with torch.no_grad():
        logits = captioners.logits(model, image_NCHW, text_NL)[model.special_tokens.told(text_NL)]
        return {"logits": logits, "text": model.encode_text(text_NL), "image": model.encode_image(image_NCHW)}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture
def saved(captioners: Any, tmp_path: Path) -> TwoTower:
    """A model with a head, in ``tmp_path / "model"`` with an average of its weights."""
    model = captioners.shaken("head")
    save_openclip_directory(model, tmp_path / "model")
    average = {p + n: 1.5 * v for p, module in model.averaged().items() for n, v in module.state_dict().items()}
    save_file(average, tmp_path / "model" / EMA_FILE)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_the_same(captioners: Any, kind: str, tmp_path: Path) -> None:
    model = captioners.shaken(kind)
    save_openclip_directory(model, tmp_path / "one")
    loaded = load(str(tmp_path / "one"))
    assert_same(told(captioners, model), told(captioners, loaded))
    save_openclip_directory(loaded, tmp_path / "two")
    for name in (WEIGHTS_FILE, CONFIG_FILE, *([CAPTIONER_FILE] if model.captioner is not None else [])):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert (tmp_path / "one" / CAPTIONER_FILE).exists() == (model.captioner is not None)
    text = json.loads((tmp_path / "one" / CONFIG_FILE).read_text())
    assert (text.get("captioner_cfg") is not None) == (model.captioner is not None)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_open_clip_loads_what_we_saved(captioners: Any, kind: str, tmp_path: Path) -> None:
    model = captioners.shaken(kind)
    save_openclip_directory(model, tmp_path)
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert (kind == "CoCa") == bool(model.openclip_config.get("correct_cls_mask"))
    if kind == "CoCa":
        clip.text.correct_cls_mask = True
    tokenizer, clip = open_clip.get_tokenizer(f"local-dir:{tmp_path}"), clip.eval()
    text_NL, image_NCHW = captioners.texts(model), captioners.pictures()[0]
    assert torch.equal(tokenizer(list(captioners.TEXTS)), text_NL)
    found = told(captioners, model)
    with torch.no_grad():
        image_ND = clip.encode_image(model.normalise(image_NCHW), normalize=False)
        torch.testing.assert_close(image_ND, found["image"])
        torch.testing.assert_close(clip.encode_text(text_NL, normalize=False), found["text"])
        if kind != "head":
            logits = clip(model.normalise(image_NCHW), text_NL)["logits"][model.special_tokens.told(text_NL)]
            torch.testing.assert_close(logits, found["logits"], rtol=1e-4, atol=1e-5)


def test_a_directory_of_open_clip_keeps_its_mask(captioners: Any, tiny_coca: dict, tmp_path: Path) -> None:
    """Its CoCas were trained with the class token a place off: they keep that, in further runs and when saved, too."""
    torch.manual_seed(0)
    clip = open_clip.CoCa(**{name: v for name, v in tiny_coca.items() if name != "custom_text"}).eval()
    with torch.no_grad():
        clip.text_decoder.text_projection.normal_(std=0.1)
    save_file(clip.state_dict(), tmp_path / WEIGHTS_FILE)
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"model_cfg": tiny_coca, "preprocess_cfg": {}}))
    made = ModelOptions(init=str(tmp_path))
    lone = ModelOptions(config=tiny_coca, init=str(tmp_path / WEIGHTS_FILE))
    for model in (load(str(tmp_path)), build(made, seed=0).eval(), build(lone, seed=0).eval()):
        assert not model.clip.text.correct_cls_mask
        found = told(captioners, model)
        text_NL, image_NCHW = captioners.texts(model), captioners.pictures()[0]
        with torch.no_grad():
            outputs = clip(model.normalise(image_NCHW), text_NL)
        torch.testing.assert_close(torch.nn.functional.normalize(found["text"]), outputs["text_features"])
        logits = outputs["logits"][model.special_tokens.told(text_NL)]
        torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-5)
        save_openclip_directory(model, tmp_path / "again")
        assert "correct_cls_mask" not in json.loads((tmp_path / "again" / CONFIG_FILE).read_text())
        assert_same(found, told(captioners, load(str(tmp_path / "again"))))


def test_weights_beside_their_configuration_keep_the_mask_that_it_names(
    captioners: Any, tiny_coca: dict, tmp_path: Path
) -> None:
    model = captioners.shaken("CoCa")
    save_openclip_directory(model, tmp_path)
    lone = ModelOptions(config=tiny_coca, init=str(tmp_path / WEIGHTS_FILE))
    assert_same(told(captioners, model), told(captioners, build(lone, seed=0).eval()))


# ---- Further runs


def heads_equal(one: TwoTower, other: TwoTower, factor: float = 1.0) -> bool:
    values = other.captioner.state_dict()
    return all(torch.equal(factor * value, values[name]) for name, value in one.captioner.state_dict().items())


def test_a_further_run_takes_the_head_of_its_init(saved: TwoTower, captioners: Any, tmp_path: Path) -> None:
    """Named again or not at all; as its average, like the towers."""
    for options in (None, captioners.HEAD):
        model = build(ModelOptions(init=str(tmp_path / "model"), captioner=options), seed=1)
        assert heads_equal(saved, model, 1.5)
        assert torch.equal(model.clip.visual.proj, 1.5 * saved.clip.visual.proj)
        assert all(p.requires_grad for p in model.captioner.parameters())
    assert heads_equal(saved, load(str(tmp_path / "model")), 1.5)
    (tmp_path / "model" / EMA_FILE).unlink()
    assert heads_equal(saved, build(ModelOptions(init=str(tmp_path / "model")), seed=1))


def test_other_options_are_refused_where_there_is_a_head(saved: TwoTower, captioners: Any, tmp_path: Path) -> None:
    """Trained weights do not go unsaid; the sentence tells how to begin with new ones."""
    other = CaptionerOptions(**{**captioners.HEAD.model_dump(), "layers": 1})
    further = ModelOptions(init=str(tmp_path / "model"), captioner=other)
    with pytest.raises(UserError, match=r"model\.captioner differs from the captioning head of .*captioner_cfg"):
        build(further, seed=1)
    path = tmp_path / "model" / CONFIG_FILE
    path.write_text(json.dumps({n: v for n, v in json.loads(path.read_text()).items() if n != "captioner_cfg"}))
    model = build(further, seed=1)
    assert len(model.captioner.decoder.resblocks) == model.openclip_config["captioner_cfg"]["layers"] == 1
    assert torch.equal(model.clip.visual.proj, 1.5 * saved.clip.visual.proj)
    assert not torch.equal(model.captioner.text.weight, 1.5 * saved.captioner.text.weight)


@pytest.mark.usefixtures("saved")
def test_a_run_without_captions_has_no_head_and_keeps_none(tmp_path: Path) -> None:
    model = build(ModelOptions(init=str(tmp_path / "model")), seed=1, needs=frozenset())
    assert model.captioner is None
    assert "captioner_cfg" not in model.openclip_config
    save_openclip_directory(model, tmp_path / "other")
    assert not (tmp_path / "other" / CAPTIONER_FILE).exists()


def test_an_outline_of_a_further_run_has_the_sizes_of_the_head(saved: TwoTower, tmp_path: Path) -> None:
    model = outline(ModelOptions(init=str(tmp_path / "model")))
    assert model.parameters_by_tower() == saved.parameters_by_tower()
    assert model.captioner.text.weight.is_meta


# ---- What is broken


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _other_shapes(path: Path) -> None:
    save_file({name: value[..., :1].contiguous() for name, value in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (Path.unlink, r"captioner\.safetensors is missing, the weights of the captioning head"),
        (_cut, r"captioner\.safetensors does not fit the captioning head"),
        (_other_shapes, r"captioner\.safetensors does not fit the captioning head: size mismatch"),
    ],
)
@pytest.mark.usefixtures("saved")
def test_broken_weights_of_a_head_are_named(tmp_path: Path, spoil: Any, sentence: str) -> None:
    spoil(tmp_path / "model" / CAPTIONER_FILE)
    for asked in (lambda: load(str(tmp_path / "model")), lambda: build(ModelOptions(init=str(tmp_path / "model")), 0)):
        with pytest.raises(UserError, match=sentence) as raised:
            asked()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ({"layers": 0}, r"captioner_cfg.*layers"),
        ({"deep": 3}, r"captioner_cfg.*deep"),
        ("two", r"captioner_cfg"),
    ],
)
@pytest.mark.usefixtures("saved")
def test_a_broken_description_of_a_head_is_named(tmp_path: Path, stored: Any, sentence: str) -> None:
    path = tmp_path / "model" / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"captioner_cfg": stored}))
    with pytest.raises(UserError, match=sentence) as raised:
        load(str(tmp_path / "model"))
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "model") in str(raised.value)


def test_an_average_without_the_head_is_named(saved: TwoTower, tmp_path: Path) -> None:
    save_file(saved.clip.state_dict(), tmp_path / "model" / EMA_FILE)
    with pytest.raises(UserError, match=r"ema\.safetensors does not fit the model"):
        load(str(tmp_path / "model"))


# ---- From a hub


@pytest.mark.parametrize("kind", ["CoCa", "head"])
def test_a_hub_gives_head_and_mask(captioners: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = captioners.shaken(kind)
    cached = tmp_path / "models--someone--model"
    save_openclip_directory(model, cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert_same(told(captioners, model), told(captioners, load("hf-hub:someone/model")))
