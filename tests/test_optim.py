"""Durations, schedules and parameter groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizerFast

from vlp.encoders.depth import places
from vlp.encoders.openclip import ModelOptions, build
from vlp.optim import OptimOptions, Span, adamw, described_groups, learning_rate, set_rate
from vlp.types import UserError

SPAN = Span(total_steps=1000, global_batch_size=50, num_samples=2000)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [(7, 7), ("7 steps", 7), ("1 step", 1), ("1e3 samples", 20), ("1001 samples", 21), ("0.5 epochs", 20), ("5%", 50)],
)
def test_durations(duration, steps):
    assert SPAN.steps(duration, "train.warmup") == steps


@pytest.mark.parametrize("duration", ["5 minutes", "x", "", "5", "1.2.3 samples", "-5 steps", -5])
def test_a_duration_that_is_none_names_its_key(duration):
    with pytest.raises(UserError, match=r"train\.warmup"):
        SPAN.steps(duration, "train.warmup")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"cooldown": 5}, "cooldown has no effect"),
        ({"schedule": "constant", "min_lr": 1e-5}, "min_lr has no effect"),
        ({"lr": 1e-3, "min_lr": 1e-2}, "exceeds lr"),
        ({"betas": (1.5, 0.9)}, "betas"),
    ],
)
def test_options_without_an_effect_or_a_sense_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        OptimOptions(**options)


def rate(step: int, **options: object) -> float:
    return learning_rate(OptimOptions(lr=1.0, warmup=100, **options), SPAN, step)


def test_warmup_rises_linearly_to_the_peak():
    assert [rate(step) for step in (0, 49, 99)] == pytest.approx([0.01, 0.5, 1.0])


def test_cosine_halves_in_the_middle_and_ends_at_the_minimum():
    assert rate(550) == pytest.approx(0.5)
    assert rate(1000, min_lr=0.1) == pytest.approx(0.1)
    assert 0 < rate(999) < 1e-5


def test_constant_stays():
    assert rate(999, schedule="constant") == 1.0


def test_wsd_is_flat_then_falls_linearly_over_the_cooldown():
    options = {"schedule": "wsd", "cooldown": "20%"}
    assert rate(799, **options) == 1.0
    assert rate(900, **options) == pytest.approx(0.5)
    assert rate(1000, **options) == 0.0


def test_no_warmup_starts_at_the_peak():
    assert learning_rate(OptimOptions(lr=1.0, warmup=0), SPAN, 0) == 1.0


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.ln_final = nn.LayerNorm(4)
        self.logit_scale = nn.Parameter(self.proj.weight.new_ones([]))


def test_only_matrices_decay():
    model = Towers()
    groups = adamw(model, OptimOptions(weight_decay=0.3)).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] == 0.3 for p in g["params"]}
    assert decayed == {id(model.proj.weight)}
    assert sum(len(g["params"]) for g in groups) == 5


def test_a_temperature_that_is_fixed_is_no_parameter_of_the_optimiser():
    model = Towers()
    model.logit_scale.requires_grad_(False)
    trained = [p for group in adamw(model, OptimOptions(temperature=0.07)).param_groups for p in group["params"]]
    assert all(p is not model.logit_scale for p in trained)
    assert len(trained) == 4


def test_a_temperature_may_be_as_low_as_the_clamp_allows_all_along():
    OptimOptions(temperature={"start": 1.0, "end": 0.01})
    OptimOptions(temperature=0.005, max_logit_scale=200)
    with pytest.raises(ValueError, match="raise one of them"):
        OptimOptions(temperature={"start": 1.0, "end": 0.0099})
    with pytest.raises(ValueError, match="raise one of them"):
        OptimOptions(temperature=0)


def test_a_model_without_trainable_parameters_is_refused():
    model = Towers().requires_grad_(False)
    with pytest.raises(UserError, match="lock_image"):
        adamw(model, OptimOptions())


# ---- Rates of towers and layers


def towers(tiny_model, kind: str, bert_directory) -> Any:
    configs = {
        "open_clip": tiny_model,
        "timm and BERT": {
            "embed_dim": 32,
            "vision_cfg": {"image_size": 32, "timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear"},
            "text_cfg": {"hf_model_name": str(bert_directory), "context_length": 16},
        },
    }
    return build(ModelOptions(config=configs[kind]), seed=0)


@pytest.fixture(scope="session")
def bert_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=5, max_position_embeddings=24, **sizes)).save_pretrained(directory)
    BertTokenizerFast(
        vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    ).save_pretrained(directory)
    return directory


def rates(model, **options: Any) -> dict[str, float]:
    """The multiple of the rate of each parameter that the optimiser has."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = adamw(model, OptimOptions(**options)).param_groups
    found = {names[p]: group["lr_scale"] for group in groups for p in group["params"]}
    assert len(found) == sum(p.requires_grad for p in model.parameters())
    return found


def test_layers_of_open_clips_towers_decay_from_the_projection_down(tiny_model, bert_directory):
    found = rates(towers(tiny_model, "open_clip", bert_directory), layer_decay=0.5)
    picture, text = "clip.visual.", "clip."
    expected = {
        **dict.fromkeys(
            (f"{picture}proj", f"{picture}ln_post.bias", f"{text}text_projection", f"{text}ln_final.weight"), 1
        ),
        f"{picture}transformer.resblocks.1.mlp.c_fc.bias": 0.5,
        f"{picture}transformer.resblocks.0.attn.in_proj_weight": 0.25,
        **dict.fromkeys((f"{picture}{name}" for name in ("conv1.weight", "class_embedding", "ln_pre.weight")), 0.125),
        f"{text}transformer.resblocks.0.ln_1.weight": 0.5,  # the text tower has one layer
        **dict.fromkeys((f"{text}token_embedding.weight", f"{text}positional_embedding"), 0.25),
        "clip.logit_scale": 1,
    }
    assert {name: found[name] for name in expected} == expected


def test_so_do_those_of_timm_and_transformers(tiny_model, bert_directory):
    model = towers(tiny_model, "timm and BERT", bert_directory)
    found = rates(model, layer_decay=0.5, lr_scale={"image": 0.1, "text": 2.0})
    expected = {
        "clip.visual.head.proj.weight": 0.1,
        "clip.visual.trunk.layer4.0.conv1.weight": 0.05,
        "clip.visual.trunk.layer1.0.bn1.bias": 0.1 * 0.5**4,
        "clip.visual.trunk.conv1.0.weight": 0.1 * 0.5**5,
        "clip.text.proj.0.weight": 2,
        "clip.text.transformer.encoder.layer.2.output.dense.weight": 1,
        "clip.text.transformer.embeddings.word_embeddings.weight": 2 * 0.5**4,
        "clip.logit_scale": 1,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_what_reduces_a_picture_between_two_stages_goes_with_the_upper_one():
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    found = {name: place.layer for name, place in places(build(ModelOptions(config=config), seed=0)).items()}
    trunk = "clip.visual.trunk."
    reduction = next(name for name in found if ".downsample." in name)
    stage = reduction.split(".downsample.")[0]
    assert found[reduction] == next(layer for name, layer in found.items() if name.startswith(f"{stage}.blocks.0."))
    assert found[next(name for name in found if name.startswith(f"{trunk}stem"))] == 0


def test_the_optimiser_moves_each_tower_at_its_own_rate(tiny_model, bert_directory):
    model = towers(tiny_model, "open_clip", bert_directory)
    optimizer = adamw(model, OptimOptions(lr=1.0, weight_decay=0.0, lr_scale={"image": 0.25}))
    before = {name: value.clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rate(optimizer, 0.01)
    optimizer.step()
    for name, value in model.named_parameters():  # Adam's first step is the rate in size
        step = (before[name] - value).abs().max().item()
        assert step == pytest.approx(0.0025 if name.startswith("clip.visual.") else 0.01, rel=1e-2), name


def test_the_groups_are_told_and_add_up(tiny_model, bert_directory):
    model = towers(tiny_model, "open_clip", bert_directory)
    lines = described_groups(model, OptimOptions(lr=1e-3, layer_decay=0.5, lr_scale={"image": 0.1}))
    total = sum(int(line.split(": ")[1].split(" ")[0].replace(",", "")) for line in lines)
    assert total == sum(p.numel() for p in model.parameters())
    assert next(line for line in lines if line.startswith("image, layer 1 of 2: ")).count("lr 2.50e-05") == 1
    assert next(line for line in lines if line.startswith("text, head: ")).count("lr 1.00e-03, weight decay 0.2") == 1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"lr_scale": {"image": 0.1}}, "train.lr_scale.image has no effect"),
        ({"layer_decay": 0.5}, "train.layer_decay has no effect"),
    ],
)
def test_a_rate_of_what_is_locked_is_refused(tiny_model, options, word):
    model = build(ModelOptions(config=tiny_model, lock_image=True, lock_text=True), seed=0)
    with pytest.raises(UserError, match=word):
        adamw(model, OptimOptions(**options))


def test_a_tower_without_layers_has_no_decay():
    with pytest.raises(UserError, match="the text tower has no layers"):
        adamw(Towers(), OptimOptions(layer_decay=0.5))


def test_a_rate_of_0_is_a_lock():
    with pytest.raises(ValueError, match="greater than 0"):
        OptimOptions(lr_scale={"image": 0})
