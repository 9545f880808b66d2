"""What cannot tell captions is said in one sentence before a run begins, on a device or on ``meta``."""

from __future__ import annotations

from typing import Any

import pytest

from vlp import encoding
from vlp.encoders.captioner import CaptionerOptions, is_causal
from vlp.encoders.openclip import ModelOptions, build, outline
from vlp.objectives import base
from vlp.types import UserError

OBJECTIVES = [base.parse({"name": "captioning"}), base.parse({"name": "infonce"})]


@pytest.mark.parametrize("on_meta", [False, True])
@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"vision_cfg": {"attentional_pool": "parallel"}}, "attentional_pool: 'parallel' is unfinished in open_clip"),
        ({"vision_cfg": {"attentional_pool": "cascade"}}, "attentional_pool: 'cascade' is unfinished in open_clip"),
        ({"vision_cfg": {"output_tokens": None}}, "set output_tokens: true in vision_cfg and in text_cfg"),
        ({"text_cfg": {"output_tokens": None}}, "set output_tokens: true in vision_cfg and in text_cfg"),
        ({"vision_cfg": {"layers": [1, 1, 1, 1]}}, "choose a ViT"),
        ({"vision_cfg": {"attentional_pool": None}}, "parts of this CoCa do not fit.*must have one width"),
        ({"multimodal_cfg": {"width": 64}}, "parts of this CoCa do not fit.*must have one width"),
        ({"multimodal_cfg": {"context_length": 9}}, "parts of this CoCa do not fit.*context_length"),
        ({"text_cfg": {"no_causal_mask": True}}, "TextTransformer sees the words.*such as coca_ViT-B-32"),
        ({"text_cfg": {"qk_norm": True}}, "not told through blocks of the class CustomResidualAttentionBlock"),
        ({"text_cfg": {"pad_id": 1}}, "pad_id is 1, but the tokenizer fills texts up with 0"),
    ],
)
def test_a_coca_that_cannot_work_is_refused(
    captioners: Any, tiny_coca: dict, parts: dict, sentence: str, on_meta: bool
) -> None:
    given = ModelOptions(config=captioners.changed(tiny_coca, **parts))
    with pytest.raises(UserError, match=sentence) as raised:
        encoding.check(outline(given) if on_meta else build(given, seed=0), OBJECTIVES, 4)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("on_meta", [False, True])
def test_what_works_is_let_through(captioners: Any, captioner_kind: str, on_meta: bool) -> None:
    given = captioners.options(captioner_kind)
    model = outline(given) if on_meta else build(given, seed=0)
    encoding.check(model, OBJECTIVES, 4)
    assert model.training


def test_towers_that_see_the_words_are_refused(tiny_coca: dict, bert_model: dict, captioners: Any) -> None:
    """As coca_roberta-ViT-B-32's, which open_clip trains with."""
    text = {**bert_model["text_cfg"], "output_tokens": True}
    coca = build(ModelOptions(config={**tiny_coca, "text_cfg": text}), seed=0)
    assert not is_causal(coca.clip.text)
    with pytest.raises(UserError, match=r"HFTextEncoder sees the words.*choose a CoCa with a causal tower"):
        encoding.check(coca, OBJECTIVES, 4)
    with pytest.raises(UserError, match=r"HFTextEncoder sees the words.*set model\.captioner\.text_layers"):
        build(ModelOptions(config=bert_model, captioner=captioners.HEAD), seed=0)


def test_a_head_on_a_coca_or_without_a_divisor_is_refused(captioners: Any, tiny_coca: dict) -> None:
    with pytest.raises(UserError, match=r"model\.captioner has no effect on a CoCa"):
        build(ModelOptions(config=tiny_coca, captioner=captioners.HEAD), seed=0)
    with pytest.raises(ValueError, match="width 30 is no multiple of heads 4"):
        CaptionerOptions(width=30)


def test_a_class_token_in_the_class_clip_is_refused(captioners: Any, tiny_model: dict) -> None:
    config = captioners.changed(tiny_model, text_cfg={"embed_cls": True})
    with pytest.raises(UserError, match="wants custom_text: true"):
        build(ModelOptions(config=config), seed=0)


def test_a_head_whose_image_tower_has_no_tokens_is_refused(captioners: Any, tiny_model: dict) -> None:
    config = captioners.changed(tiny_model, vision_cfg={"layers": [1, 1, 1, 1], "image_size": 64})
    with pytest.raises(UserError, match="ModifiedResNet gives no patch tokens: choose a ViT"):
        encoding.check(outline(ModelOptions(config=config, captioner=captioners.HEAD)), OBJECTIVES, 4)


def test_a_model_without_a_captioner_is_refused(tiny_model: dict) -> None:
    model = build(ModelOptions(config=tiny_model), seed=0)
    assert model.caption_path() is None
    with pytest.raises(UserError, match=r"add model\.captioner, such as \{layers: 2\}, or choose a CoCa"):
        encoding.check(model, OBJECTIVES, 4)
