"""The towers: the same features as open_clip, uint8 in, locks and clamp."""

from __future__ import annotations

import math

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from vlp.encoders.openclip import ModelOptions, build

TEXTS = ["a red circle left of a blue square", "", "word " * 40]


@pytest.fixture
def image_NCHW():
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def openclip_twin(model, kind=open_clip.CLIP):
    """open_clip's own model with the same weights."""
    twin = kind(**{k: v for k, v in model.openclip_config["model_cfg"].items() if k != "custom_text"})
    twin.load_state_dict(model.clip.state_dict())
    return twin.eval()


def test_features_equal_those_of_openclip(features_of, tiny_model, image_NCHW):
    model = build(ModelOptions(config=tiny_model), seed=0).eval()
    twin = openclip_twin(model)
    float_NCHW = (image_NCHW.float() / 255 - model.mean_C11) / model.std_C11
    image_ND, text_ND, logit_scale, logit_bias = features_of(model, image_NCHW, TEXTS)
    torch.testing.assert_close(image_ND, twin.encode_image(float_NCHW), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(text_ND, twin.encode_text(open_clip.tokenize(TEXTS, 16)), rtol=0, atol=0)
    assert logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert logit_bias.item() == 0
    assert not torch.allclose(image_ND.norm(dim=1), torch.ones(3), atol=1e-2), "features must not be normalised"


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_pixels_equal_those_of_openclip_to_the_bit(tiny_model, resize_mode):
    picture = {
        "resize_mode": resize_mode,
        "interpolation": "bilinear",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
    }
    model = build(ModelOptions(config=tiny_model, picture=picture), seed=0)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    expected = image_transform_v2(PreprocessCfg(size=32, **picture), is_train=False)(image)
    assert torch.equal(model.normalise(model.eval_transform(image)[None])[0], expected)


@pytest.mark.parametrize(
    ("vision", "layout"),
    [
        ({}, torch.contiguous_format),
        ({"layers": [1, 1, 1, 1], "width": 32, "patch_size": None}, torch.channels_last),
        ({"timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear"}, torch.channels_last),
    ],
)
def test_convolutions_see_pictures_channels_last(tiny_model, image_NCHW, vision, layout):
    config = {**tiny_model["vision_cfg"], **vision}
    model = build(ModelOptions(config={**tiny_model, "vision_cfg": config}), seed=0).eval()
    seen = []
    first = next(module for module in model.clip.visual.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=layout)))
    with torch.no_grad():
        found = model.encode_image(image_NCHW)
        assert seen == [True]
        expected = model.clip.encode_image(model.normalise(image_NCHW), normalize=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_uint8_batch_is_left_as_it_was(tiny_model, image_NCHW):
    model = build(ModelOptions(config=tiny_model), seed=0)
    before = image_NCHW.clone()
    model.encode_image(image_NCHW)
    assert torch.equal(image_NCHW, before)


def test_bias_is_a_parameter_and_every_parameter_gets_a_gradient(features_of, tiny_model, image_NCHW):
    model = build(ModelOptions(config=tiny_model, init_logit_scale=math.log(10), init_logit_bias=-10), seed=0)
    image_ND, text_ND, logit_scale, logit_bias = features_of(model, image_NCHW, TEXTS)
    assert (logit_scale.item(), logit_bias.item()) == (pytest.approx(math.log(10)), -10)
    (image_ND @ text_ND.T * logit_scale.exp() + logit_bias).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_autocast_decides_the_dtype_of_features_only(features_of, tiny_model, image_NCHW):
    model = build(ModelOptions(config=tiny_model), seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        image_ND, text_ND, logit_scale, _ = features_of(model, image_NCHW, TEXTS)
    assert (image_ND.dtype, text_ND.dtype, logit_scale.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )


@pytest.mark.parametrize(("value", "expected"), [(-1.0, 0.0), (2.0, 2.0), (9.0, math.log(100))])
def test_clamp_holds_both_ends(tiny_model, value, expected):
    model = build(ModelOptions(config=tiny_model, init_logit_scale=value), seed=0)
    parameter = model.clip.logit_scale
    model.clamp_logit_scale(100)
    assert model.clip.logit_scale is parameter
    assert parameter.item() == pytest.approx(expected)


def test_normalisation_is_not_part_of_the_weights(tiny_model):
    model = build(ModelOptions(config=tiny_model), seed=0)
    assert [name for name in model.state_dict() if not name.startswith("clip.")] == []
    assert model.device == torch.device("cpu")


def test_parameters_by_tower_add_up(tiny_model):
    model = build(ModelOptions(config=tiny_model, init_logit_bias=0.0, lock_image=True), seed=0)
    counts = model.parameters_by_tower()
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert counts["image"] == sum(p.numel() for p in model.clip.visual.parameters())
    assert counts["other"] == 2
    assert model.parameters_by_tower(trainable_only=True) == {**counts, "image": 0}
