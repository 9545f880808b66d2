"""Tokens come from the same pass as the pooled feature, and words are told from marks and padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vlp.encoders import tokens
from vlp.encoders.openclip import ModelOptions, build, outline
from vlp.encoders.two_tower import TwoTower
from vlp.types import UserError

TEXTS = ["a red circle!", "a blue square left of a red circle", ""]
BOTH = frozenset({"image_tokens", "text_tokens"})


def timm(name: str, **options: Any) -> dict[str, Any]:
    return {"image_size": 32, "timm_model_name": name, "timm_proj": "linear", **options}


def changed(tiny_model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """The tiny model with other towers; a dict changes the configuration of a tower, what is new replaces it."""
    config = {**tiny_model, **{k: v for k, v in parts.items() if not isinstance(v, dict)}}
    for tower, values in parts.items():
        if isinstance(values, dict):
            config[tower] = values if "timm_model_name" in values else {**tiny_model[tower], **values}
    return config


# The image towers, with the number of patches that each has.
IMAGE_TOWERS: dict[str, tuple[dict[str, Any], int]] = {
    "vit": ({"vision_cfg": {}}, 16),
    "vit-mean": ({"vision_cfg": {"pool_type": "avg", "final_ln_after_pool": True}}, 16),
    "vit-attentional": (
        {"vision_cfg": {"attentional_pool": True, "attn_pooler_queries": 9, "attn_pooler_heads": 2}},
        8,
    ),
    "resnet10t": ({"vision_cfg": timm("resnet10t", timm_pool="")}, 1),
    "convnext": ({"vision_cfg": timm("convnext_atto", timm_pool="")}, 1),
}


@pytest.mark.parametrize("name", IMAGE_TOWERS)
@pytest.mark.parametrize("training", [False, True])
def test_pictures_have_the_same_feature_with_patches(tiny_model: dict[str, Any], name: str, training: bool) -> None:
    parts, patches = IMAGE_TOWERS[name]
    model = build(ModelOptions(config=changed(tiny_model, **parts)), seed=0).train(training)
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    pooled, found = model.encode_image_tokens(pictures)
    assert found.shape == (3, patches, 32)
    assert torch.equal(pooled, model.encode_image(pictures))


def test_timm_towers_of_other_sizes() -> None:
    """Channels last (Swin), class and register tokens (DINOv2's), their places in the picture."""
    for name, patches in (("swin_s3_tiny_224", 49), ("vit_small_patch14_reg4_dinov2", 1369)):
        vision = timm(name, image_size=518 if patches > 49 else 224, timm_pool="")
        config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {"width": 16, "heads": 2, "layers": 1}}
        model = outline(ModelOptions(config=config)).eval()
        size = model.picture_format.size
        pooled, found = model.encode_image_tokens(torch.zeros(1, 3, *size, dtype=torch.uint8, device="meta"))
        assert (pooled.shape, found.shape) == ((1, 8), (1, patches, 8)), name


def test_patches_of_a_convolutional_tower_average_to_its_feature(tiny_model: dict[str, Any]) -> None:
    model = build(ModelOptions(config=changed(tiny_model, vision_cfg=timm("resnet10t", timm_pool=""))), seed=0).eval()
    pictures = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8)
    pooled, found = model.encode_image_tokens(pictures)
    assert found.shape == (2, 6, 32)
    torch.testing.assert_close(found.mean(1), pooled)


def test_the_class_token_of_a_vit_is_no_patch(tiny_model: dict[str, Any]) -> None:
    model = build(ModelOptions(config=changed(tiny_model, vision_cfg={"pool_type": "avg"})), seed=0).eval()
    pooled, found = model.encode_image_tokens(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    torch.testing.assert_close(found.mean(1), pooled)


# ---- Texts


TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "clip": {},
    "clip-without-projection": {"text_cfg": {"proj_type": "none"}},
    "custom": {"custom_text": True},
    "custom-class-token": {"custom_text": True, "text_cfg": {"embed_cls": True}},
    "custom-last": {"custom_text": True, "text_cfg": {"pool_type": "last", "no_causal_mask": True}},
    "custom-eos": {"custom_text": True, "text_cfg": {"pool_type": "eos", "eos_id": 49407}},
}


@pytest.fixture(params=[*TEXT_TOWERS, "bert-mean_pooler", "bert-cls_pooler"])
def text_model(request: pytest.FixtureRequest, tiny_model: dict[str, Any], bert_model: dict[str, Any]) -> TwoTower:
    kind, _, pooler = request.param.partition("-")
    if kind == "bert":
        config = {**bert_model, "text_cfg": {**bert_model["text_cfg"], "hf_pooler_type": pooler}}
    else:
        config = changed(tiny_model, **TEXT_TOWERS[request.param])
    return build(ModelOptions(config=config), seed=0).eval()


def test_texts_have_the_same_feature_with_words(text_model: TwoTower) -> None:
    ids = text_model.tokenizer(TEXTS)
    pooled, found, words = text_model.encode_text_tokens(ids)
    assert found.shape == (*words.shape, 32)
    assert torch.equal(pooled, text_model.encode_text(ids))
    # a red circle ! / a blue square left of a red circle / nothing. The small BERT has one unknown word for "!".
    assert words.sum(1).tolist() == [4, 8, 0]
    assert words.dtype == torch.bool


SHORT = {"clip", "clip-without-projection", "custom", "custom-eos"}


@pytest.mark.parametrize("name", sorted(SHORT))
def test_texts_shorter_than_the_context_have_the_same_words(tiny_model: dict[str, Any], name: str) -> None:
    """What a causal tower knows of a position depends on those before it alone."""
    model = build(ModelOptions(config=changed(tiny_model, **TEXT_TOWERS[name])), seed=0).eval()
    ids = model.tokenizer(TEXTS)
    pooled, found, words = model.encode_text_tokens(ids)
    short, shorter, fewer = model.encode_text_tokens(ids[:, :10])
    torch.testing.assert_close(short, pooled)
    torch.testing.assert_close(shorter, found[:, :10])
    assert torch.equal(fewer, words[:, :10])


@pytest.mark.parametrize("name", ["custom-class-token", "custom-last"])
def test_what_sees_its_padding_reads_short_texts_as_a_tower_of_that_context(
    tiny_model: dict[str, Any], name: str
) -> None:
    parts = changed(tiny_model, **TEXT_TOWERS[name])
    model = build(ModelOptions(config=parts), seed=0).eval()
    small = build(ModelOptions(config={**parts, "text_cfg": {**parts["text_cfg"], "context_length": 10}}), seed=0)
    state = model.clip.state_dict()
    positions = state["text.positional_embedding"]
    state["text.positional_embedding"] = positions[: len(small.clip.text.positional_embedding)]
    small.clip.load_state_dict(state)
    ids = model.tokenizer(TEXTS)[:, :10]
    for one, other in zip(model.encode_text_tokens(ids), small.eval().encode_text_tokens(ids), strict=True):
        torch.testing.assert_close(one, other)


def test_a_text_tower_says_which_position_is_pooled(tiny_model: dict[str, Any]) -> None:
    """The end, where the tower pools, has the pooled feature, and is no word."""
    model = build(ModelOptions(config=tiny_model), seed=0).eval()
    ids = model.tokenizer(TEXTS)
    pooled, found, words = model.encode_text_tokens(ids)
    ends = ids.argmax(1)
    torch.testing.assert_close(found[torch.arange(3), ends], pooled)
    assert not words[torch.arange(3), ends].any()


def test_words_of_the_clip_tokenizer_by_hand(tiny_model: dict[str, Any]) -> None:
    model = build(ModelOptions(config=tiny_model), seed=0).eval()
    long = " ".join(["red"] * 40)
    _, _, words = model.encode_text_tokens(model.tokenizer(["red ! red", "red", long, ""]))
    assert words.shape == (4, 16)
    # "!" has the id 0, which is that of padding, too.
    assert words.nonzero().tolist() == [
        *([0, place] for place in (1, 2, 3)),
        [1, 1],
        *([2, place] for place in range(1, 15)),  # the last place is the end of the text
    ]


def test_words_of_bert_by_hand(bert_model: dict[str, Any]) -> None:
    ids = torch.tensor(
        [
            [2, 5, 6, 3, 0, 0],  # start, a, red, end, padding
            [2, 5, 4, 6, 7, 3],  # a hidden word is one; no padding
            [2, 5, 2, 6, 3, 0],  # an id of the start inside a text may hide a word
            [2, 3, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ]
    )
    expected = torch.tensor(
        [
            [0, 1, 1, 0, 0, 0],
            [0, 1, 1, 1, 1, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ],
        dtype=torch.bool,
    )
    for pooler, first in (("mean_pooler", 0), ("cls_pooler", 1)):  # the pooled position is no token there
        text = {**bert_model["text_cfg"], "hf_pooler_type": pooler}
        model = build(ModelOptions(config={**bert_model, "text_cfg": text}), seed=0).eval()
        assert torch.equal(model.encode_text_tokens(ids)[2], expected[:, first:])


def test_pads_that_lie_before_the_text(tiny_model: dict[str, Any]) -> None:
    text = {"pool_type": "last", "no_causal_mask": True, "context_length": 6}
    model = build(ModelOptions(config=changed(tiny_model, custom_text=True, text_cfg=text)), seed=0).eval()
    _, _, words = model.encode_text_tokens(torch.tensor([[0, 0, 49406, 5, 6, 49407]]))
    assert words.tolist() == [[False, False, False, True, True, False]]


# ---- Towers without tokens


@pytest.mark.parametrize(
    ("vision", "sentence"),
    [
        ({"layers": [1, 1, 1, 1], "width": 8}, "ModifiedResNet gives no patch tokens"),
        (timm("resnet10t", timm_pool="rot_attn", timm_proj=""), "TimmModel gives no patch tokens"),
    ],
)
@pytest.mark.parametrize("make", [lambda options: build(options, seed=0), outline])
def test_towers_without_patches_are_refused(
    tiny_model: dict[str, Any], vision: dict[str, Any], sentence: str, make: Any
) -> None:
    model = make(ModelOptions(config={**tiny_model, "vision_cfg": {"image_size": 64, "head_width": 8, **vision}}))
    tokens.check(model, frozenset({"text_tokens"}))
    with pytest.raises(UserError, match=sentence) as raised:
        tokens.check(model, BOTH)
    assert "\n" not in str(raised.value)
    assert model.training, "it is as it was"


def test_other_text_towers_are_refused(tiny_model: dict[str, Any]) -> None:
    model = build(ModelOptions(config={**tiny_model, "custom_text": True}), seed=0)
    model.clip.text = nn.Embedding(49408, 32)
    with pytest.raises(UserError, match="Embedding gives no tokens of words"):
        tokens.check(model, BOTH)


def test_what_gives_tokens_passes_on_the_meta_device_too(text_model: TwoTower, bert_model: dict[str, Any]) -> None:
    tokens.check(text_model, BOTH)
    assert not text_model.training
    tokens.check(outline(ModelOptions(config=bert_model)), BOTH)
