"""Shapes that the towers cannot take are refused before a run; what passes can be trained with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlp.durations import Span
from vlp.encoders import shape_check
from vlp.encoders.captioner import CaptionerOptions
from vlp.encoders.openclip import ModelOptions, build, outline
from vlp.encoders.two_tower import CaptionCounts, TwoTower
from vlp.encoders.vision import PatchDropout
from vlp.shapes import ShapeOptions, shape_at
from vlp.types import UserError

SPAN = Span(total_steps=10, global_batch_size=8, num_samples=80)
PHASES = {"image_size": {"start": 16, "end": 32, "after": 8}, "text_length": {"start": 6, "end": 16, "after": 8}}
SIGLIP = {"no_causal_mask": True, "pool_type": "last"}


def timm(name: str, **options: Any) -> dict[str, Any]:
    return {"image_size": 32, "timm_model_name": name, "timm_proj": "linear", **options}


VISION: dict[str, dict[str, Any]] = {
    "attentional": {"attentional_pool": True, "attn_pooler_queries": 9, "attn_pooler_heads": 2},
    "timm-map": timm("resnet10t", timm_pool=""),
    "timm-rot": timm("resnet10t", timm_pool="rot_attn", timm_proj=""),
    "convnext": {**timm("convnext_atto", timm_pool=""), "image_size": 64},
}
TEXT: dict[str, dict[str, Any]] = {
    "clip": {},
    "custom": {"custom_text": True},
    "eos": {"custom_text": True, "text_cfg": {"pool_type": "eos", "eos_id": 49407}},
    "class-token": {"custom_text": True, "text_cfg": {"embed_cls": True}},
    "siglip": {"custom_text": True, "text_cfg": SIGLIP},
}


def options(**given: Any) -> ShapeOptions:
    return ShapeOptions.model_validate(given)


def config(tiny_model: dict[str, Any], vision: str = "", text: str = "clip") -> dict[str, Any]:
    found = VISION.get(vision, {})
    parts = {**TEXT[text]}
    return {
        **tiny_model,
        **parts,
        "vision_cfg": found if "timm_model_name" in found else {**tiny_model["vision_cfg"], **found},
        "text_cfg": {**tiny_model["text_cfg"], **parts.get("text_cfg", {})},
    }


def outputs(model: TwoTower, shape: Any, **options: Any) -> dict[str, torch.Tensor]:
    image = torch.randint(0, 256, (1, 3, 3, *shape.size), dtype=torch.uint8)
    tokenizer: Any = model.tokenizer
    text = tokenizer(["a red circle left of a blue square", "red", ""], shape.text_length)
    return model(image, text[None], frozenset({"text_tokens"}), **options)


@pytest.mark.parametrize(("vision", "text"), [*((v, "clip") for v in VISION), *(("", t) for t in TEXT)])
def test_what_passes_gives_features_and_gradients(tiny_model: dict[str, Any], vision: str, text: str) -> None:
    made = ModelOptions(config=config(tiny_model, vision, text))
    model = build(made, seed=0).eval()
    full = shape_check.full_shape(model)
    side = full.size[0]
    phases = options(**{**PHASES, "image_size": {"start": side // 2, "end": side, "after": 8}})
    for one in (model, outline(made)):
        shape_check.check(one, phases, SPAN, frozenset({"text_tokens"}))
    shape = shape_at(phases, SPAN, 0, full)
    assert shape == ((side // 2, side // 2), 6, 0.0)
    found = outputs(model, shape)
    assert found["text_tokens"].shape[:2] == found["text_mask"].shape == (3, 6)
    for name in ("image", "text"):
        assert found[name].std() > 1e-3
        found[name].sum().backward(retain_graph=True)
    assert not model.training, "it is as it was"


def test_a_tower_of_transformers_takes_texts_of_any_length(bert_model: dict[str, Any]) -> None:
    made = ModelOptions(config=bert_model)
    for model in (build(made, seed=0), outline(made)):
        shape_check.check(model, options(text_length=6), SPAN, frozenset({"text_tokens"}))


@pytest.mark.parametrize(
    ("vision", "sentence"),
    [
        ({"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}, r"\(ModifiedResNet\) takes no pict"),
        ({**timm("vit_tiny_patch16_224"), "image_size": 224}, r"\(VisionTransformer\) takes no pictures of 32 x 32"),
        ({**timm("swin_s3_tiny_224", timm_pool=""), "image_size": 224}, r"\(SwinTransformer\) takes no pictures of"),
    ],
)
def test_towers_of_one_size_are_refused(tiny_model: dict[str, Any], vision: dict[str, Any], sentence: str) -> None:
    made = ModelOptions(config={**tiny_model, "vision_cfg": vision})
    for model in (build(made, seed=0), outline(made)):
        with pytest.raises(
            UserError, match=rf"^train.image_size: this image tower {sentence}.*: raise or remove it"
        ) as raised:
            shape_check.check(model, options(image_size=32), SPAN)
        assert "\n" not in str(raised.value)
        assert model.training


def test_a_head_that_counts_the_places_of_a_map_is_refused(tiny_model: dict[str, Any]) -> None:
    """With pictures of another size there are others."""
    vision = {**timm("resnet10t", timm_pool=""), "image_size": 64}
    head = CaptionerOptions(layers=1, width=16, heads=2, queries=4)
    model = build(ModelOptions(config={**tiny_model, "vision_cfg": vision}, captioner=head), seed=0)
    shape_check.check(model, options(image_size=32), SPAN, frozenset({"image_tokens"}))
    with pytest.raises(UserError, match=r"^train.image_size: model.captioner counts the places of this tower's map"):
        shape_check.check(model, options(image_size=32), SPAN, frozenset({"captions"}))


@pytest.mark.parametrize("text", ["siglip", "class-token"])
def test_towers_that_see_their_padding_must_end_with_whole_texts(tiny_model: dict[str, Any], text: str) -> None:
    made = ModelOptions(config=config(tiny_model, text=text))
    for model in (build(made, seed=0), outline(made)):
        for length, start in ((6, 6), ({"start": 6, "end": 12, "after": 5}, 6)):
            with pytest.raises(UserError, match=f"{{start: {start}, end: 16, after: 80%}}$"):
                shape_check.check(model, options(text_length=length), SPAN)
        shape_check.check(model, options(text_length={"start": 6, "end": 16, "after": 5}), SPAN)


def test_the_other_checks_are_made_as_well(tiny_model: dict[str, Any]) -> None:
    model = build(ModelOptions(config=config(tiny_model, "convnext")), seed=0)
    with pytest.raises(UserError, match=r"train.patch_dropout: an image tower of the kind ConvNeXt"):
        shape_check.check(model, options(patch_dropout=0.5), SPAN)
    with pytest.raises(UserError, match=r"train.image_size 128 exceeds the model's 64"):
        shape_check.check(model, options(image_size=128), SPAN)
    with pytest.raises(UserError, match="no multiple of the patch of 8 pixels: write 32 or 40"):
        shape_check.check(model, options(image_size=36), SPAN)
    shape_check.check(model, options(), SPAN)


@pytest.mark.parametrize("coca", [False, True])
def test_captions_are_told_of_small_pictures_in_few_words(
    tiny_model: dict[str, Any], tiny_coca: dict[str, Any], coca: bool
) -> None:
    head = None if coca else CaptionerOptions(layers=1, width=16, heads=2, queries=4)
    model = build(ModelOptions(config=tiny_coca if coca else tiny_model, captioner=head), seed=0)
    phases = options(**PHASES, patch_dropout=0.5)
    shape_check.check(model, phases, SPAN, frozenset({"captions", "image_tokens"}))
    shape = shape_at(phases, SPAN, 0, shape_check.full_shape(model))
    counts = CaptionCounts(torch.tensor(5.0), 0.0)
    found = outputs(model, shape, captions=counts, dropout=PatchDropout(shape.patch_dropout, 3))
    assert torch.isfinite(found["caption_loss"])
    found["caption_loss"].backward()
