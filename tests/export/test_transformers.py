"""vlp export --to transformers: the same model by AutoModel and AutoProcessor, or a sentence that names the part."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from vlp.encoders.captioner import CaptionerOptions
from vlp.encoders.openclip import ModelOptions, build, load, save_openclip_directory
from vlp.export import export
from vlp.export.formats import transformers as module
from vlp.export.formats.base import TEXTS, DiffersError
from vlp.types import UserError

_helper = Path(__file__).parents[1] / "transformers_models.py"
_spec = importlib.util.spec_from_file_location("transformers_models", _helper)
assert _spec is not None
assert _spec.loader is not None
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)


def saved(directory: Path, config: dict[str, Any], **options: Any) -> Path:
    """A checkpoint of random weights, none of them 0 or 1."""
    model = build(ModelOptions(config=config, **options), seed=0)
    models.shaken(model.clip)
    save_openclip_directory(model, directory)
    return directory


def with_towers(config: dict[str, Any], vision: dict[str, Any], text: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        **config,
        **more,
        "vision_cfg": {**config["vision_cfg"], **vision},
        "text_cfg": {**config["text_cfg"], **text},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"custom_text": True, "quick_gelu": True, "nonscalar_logit_scale": True, "vision": {"patch_dropout": 0.5}},
        {
            "vision": {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}, "mlp_ratio": 3.1},
            "text": {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}, "mlp_ratio": 2.7},
        },
    ],
)
def test_a_clip_of_every_shape(tiny_model: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    more = {name: value for name, value in changes.items() if name not in ("vision", "text")}
    config = with_towers(tiny_model, changes.get("vision", {}), changes.get("text", {}), **more)
    summary = export(str(saved(tmp_path / "model", config)), tmp_path / "out", to="transformers")
    assert summary["max_abs_difference"] <= 1e-6
    assert summary["max_pixel_levels"] <= 2
    assert summary["max_cosine_distance"] <= 1e-3
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "README.md"} <= written
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "clip"
    _, report = AutoModel.from_pretrained(str(tmp_path / "out"), output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_in_and_out_again_gives_the_same_weights(kind: str, tmp_path: Path) -> None:
    """The table of names is read both ways."""
    directory = tmp_path / "model"
    if kind == "clip":
        models.write_clip(directory)
    else:
        models.write_siglip(directory, gemma=kind == "siglip2")
    summary = export(str(directory), tmp_path / "out", to="transformers")
    assert "left_out" not in summary
    one, two = (load_file(path / "model.safetensors") for path in (directory, tmp_path / "out"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    was, now = (json.loads((path / "config.json").read_text()) for path in (directory, tmp_path / "out"))
    for tower in ("text_config", "vision_config"):
        ignored = ("projection_dim", "bos_token_id", "eos_token_id", "pad_token_id")
        assert {k: v for k, v in was[tower].items() if k not in ignored} == {
            k: v for k, v in now[tower].items() if k not in ignored
        }
    one, two = (AutoTokenizer.from_pretrained(str(path)) for path in (directory, tmp_path / "out"))
    assert one(TEXTS).input_ids == two(TEXTS).input_ids


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_usage_in_the_card_gives_the_model_s_features(
    kind: str, tiny_model: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "siglip":
        models.write_siglip(tmp_path / "model")
    else:
        saved(tmp_path / "model", tiny_model)
    export(str(tmp_path / "model"), tmp_path / "out", to="transformers")
    shutil.move(tmp_path / "out", tmp_path / "moved")
    card = (tmp_path / "moved" / "README.md").read_text()
    picture = Image.new("RGB", (40, 50), "red")
    picture.save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(card.split("```python")[1].split("```")[0].replace("path/to/this/directory", str(tmp_path / "moved")), names)
    model = load(str(tmp_path / "model"))
    text_ND = model.encode_text(model.tokenizer(names["texts"]))
    torch.testing.assert_close(
        names["text_features"], torch.nn.functional.normalize(text_ND, dim=-1), atol=1e-5, rtol=0
    )
    image_ND = model.encode_image(model.eval_transform(names["picture"])[None])
    cosine = torch.nn.functional.cosine_similarity(names["image_features"], image_ND)
    assert cosine.min() > 0.999


def test_squashed_pictures_and_what_is_left_out(tiny_model: dict[str, Any], tmp_path: Path) -> None:
    picture = {"resize_mode": "squash", "interpolation": "bilinear", "mean": (0.5, 0.5, 0.5)}
    saved(
        tmp_path / "model",
        tiny_model,
        picture=picture,
        init_logit_bias=-10.0,
        captioner=CaptionerOptions(layers=1, width=16, heads=2),
    )
    summary = export(str(tmp_path / "model"), tmp_path / "out", to="transformers")
    assert summary["left_out"][0].startswith("CLIPModel has no bias of the logits: add -10")
    assert summary["left_out"][1].startswith("The captioning head is left out")
    assert summary["left_out"][0] in (tmp_path / "out" / "README.md").read_text()
    again = load(str(tmp_path / "out"))
    assert again.picture_format == load(str(tmp_path / "model")).picture_format


TIMM = {"timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear"}


@pytest.mark.parametrize(
    ("vision", "text", "more", "sentence"),
    [
        (TIMM, {}, {}, "an image tower of the kind ResNet is neither"),
        ({"attentional_pool": True, "attn_pooler_heads": 2}, {}, {}, "an attentional pool"),
        ({"pool_type": "avg"}, {}, {}, "pooled by 'avg'"),
        ({"no_ln_pre": True}, {}, {}, "no_ln_pre"),
        ({"ls_init_value": 0.1}, {}, {}, "a scale of their layers"),
        ({"qk_norm": True}, {}, {}, "blocks of another kind"),
        ({"image_size": [32, 40]}, {}, {}, "no squares"),
        ({}, {"no_causal_mask": True}, {"custom_text": True}, "a text tower that is not causal"),
        ({}, {"embed_cls": True}, {"custom_text": True}, "a class token"),
        ({}, {"proj_bias": True}, {}, "a projection of texts with a bias"),
        ({}, {"pool_type": "last"}, {}, "texts pooled by 'last'"),
        ({}, {"tokenizer_kwargs": {"clean": "canonicalize"}}, {}, "texts are cleaned by 'canonicalize'"),
    ],
)
def test_what_clip_model_lacks_is_named(
    tiny_model: dict[str, Any], vision: Any, text: Any, more: Any, sentence: str
) -> None:
    model = build(ModelOptions(config=with_towers(tiny_model, vision, text, **more)), seed=0)
    with pytest.raises(UserError, match=f"--to transformers: .*{sentence}") as raised:
        module.check(model)
    assert "\n" not in str(raised.value)


def test_other_models_that_it_lacks(tiny_model: dict[str, Any], tiny_coca: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path / "coca", tiny_coca)
    with pytest.raises(UserError, match="a CoCa is neither"):
        export(str(tmp_path / "coca"), tmp_path / "out", to="transformers")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="pictures are padded"):
        module.check(build(ModelOptions(config=tiny_model, picture={"resize_mode": "longest"}), seed=0))
    models.write_siglip(tmp_path / "siglip")
    model = load(str(tmp_path / "siglip"))
    model.openclip_config.pop("text_cleaning")
    model.openclip_config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    assert isinstance(model.tokenizer, HFTokenizer)
    with pytest.raises(UserError, match="texts are cleaned by 'canonicalize'"):
        module.check(model)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: _scale(d), "features as transformers loads them differ"),
        (lambda d: _edit(d, "preprocessor_config.json", image_mean=[0.1, 0.1, 0.1]), "pixels in levels of 255 differ"),
        (lambda d: _edit(d, "preprocessor_config.json", resample=0), "pixels in levels of 255 differ"),
        (lambda d: _swap_words(d), "other token ids"),
        (lambda d: _shift(d), "features as transformers loads them differ by 1"),
    ],
)
def test_an_export_that_differs_is_removed(
    tiny_model: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, message: str
) -> None:
    saved(tmp_path / "model", tiny_model)
    written = module.write

    def spoilt(model: Any, directory: Path, final: Path) -> None:
        written(model, directory, final)
        spoil(directory)

    monkeypatch.setattr(module, "write", spoilt)
    with pytest.raises(DiffersError, match=message):
        export(str(tmp_path / "model"), tmp_path / "out", to="transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def _scale(directory: Path) -> None:
    values = load_file(directory / "model.safetensors")
    values["visual_projection.weight"][0] *= 1.01
    save_file(values, directory / "model.safetensors", metadata={"format": "pt"})


def _shift(directory: Path) -> None:
    values = load_file(directory / "model.safetensors")
    values["logit_scale"] += 1
    save_file(values, directory / "model.safetensors", metadata={"format": "pt"})


def _swap_words(directory: Path) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["red</w>"], vocabulary["blue</w>"] = vocabulary["blue</w>"], vocabulary["red</w>"]
    path.write_text(json.dumps(tokenizer))


def _edit(directory: Path, name: str, **changes: Any) -> None:
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
