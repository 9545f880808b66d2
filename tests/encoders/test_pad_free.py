"""Ids are left out exactly where the features of open_clip's own towers do not depend on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vlp.encoders.openclip import ModelOptions, build
from vlp.encoders.two_tower import TwoTower

LENGTH = 16
TEXTS = ["red", "a red circle left of a blue square", "", "word " * 40]
IDS = [3, 10, 2, LENGTH]  # of each text, with its start and its end

CAUSAL: dict[str, dict[str, Any]] = {
    "clip": {},
    "clip-one-scale": {"text_cfg": {"ls_init_value": 0.1}, "quick_gelu": True},
    "clip-eos": {"text_cfg": {"pool_type": "eos", "eos_id": 49407}},
    "custom": {"custom_text": True},
    "custom-eos": {"custom_text": True, "text_cfg": {"pool_type": "eos", "eos_id": 49407, "proj_bias": True}},
    "custom-blocks": {"custom_text": True, "text_cfg": {"qk_norm": True, "scale_attn": True, "scale_fc": True}},
}
WHOLE: dict[str, dict[str, Any]] = {
    "siglip": {"custom_text": True, "text_cfg": {"no_causal_mask": True, "pool_type": "last"}},
    "not-causal": {"custom_text": True, "text_cfg": {"no_causal_mask": True}},
    "not-causal-clip": {"text_cfg": {"no_causal_mask": True}},
    "last": {"custom_text": True, "text_cfg": {"pool_type": "last"}},
    "coca": {"custom_text": True, "text_cfg": {"embed_cls": True}},
}


@pytest.fixture
def tower(tiny_model: dict[str, Any]) -> Callable[[dict[str, Any]], TwoTower]:
    def make(parts: dict[str, Any]) -> TwoTower:
        text = {**tiny_model["text_cfg"], "layers": 3, **parts.get("text_cfg", {})}
        return build(ModelOptions(config={**tiny_model, **parts, "text_cfg": text}), seed=0).eval()

    return make


def with_other_padding(text_NL: Tensor, lengths: list[int]) -> Tensor:
    """Other ids behind each text, none of which is an end."""
    other_NL = torch.randint(1, 49000, text_NL.shape, generator=torch.Generator().manual_seed(0))
    behind_NL = torch.arange(text_NL.shape[1]) >= torch.tensor(lengths)[:, None]
    return torch.where(behind_NL, other_NL, text_NL)


@torch.no_grad()
@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_tower_needs_a_text_up_to_its_end(tower: Any, name: str) -> None:
    model = tower(CAUSAL[name])
    ids = model.tokenizer(TEXTS)
    assert model.text_lengths(ids).tolist() == IDS
    whole = model.clip.encode_text(ids)
    assert whole.std() > 0.01
    torch.testing.assert_close(model.clip.encode_text(with_other_padding(ids, IDS)), whole, rtol=0, atol=1e-5)
    assert torch.equal(model.encode_text(ids), whole)  # a text as long as the context is among them
    for rows in ([0], [1], [2], [0, 1, 2]):
        length = max(IDS[row] for row in rows)
        torch.testing.assert_close(model.encode_text(ids[rows, :length]), whole[rows], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", WHOLE)
def test_a_tower_that_may_see_its_padding_keeps_it(tower: Any, name: str) -> None:
    model = tower(WHOLE[name])
    ids = model.tokenizer(TEXTS)
    assert model.text_lengths(ids).tolist() == [LENGTH] * len(TEXTS)
    assert torch.equal(model.encode_text(ids), model.clip.encode_text(ids)) or name == "coca"
    if name != "coca":  # its class token sees ids that are no padding, which other ids would be
        changed = model.encode_text(with_other_padding(ids, IDS)) - model.encode_text(ids)
        assert (changed.abs().amax(1)[:3] > 1e-3).all(), "or its padding could be left out"


def test_a_mask_that_lets_a_later_place_through_is_not_causal(tower: Any) -> None:
    model = tower({})
    ids = model.tokenizer(TEXTS)
    assert model.text_lengths(ids).tolist() == IDS
    model.clip.attn_mask[3, 9] = 0
    assert model.text_lengths(ids).tolist() == [LENGTH] * len(TEXTS)


@torch.no_grad()
@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
def test_a_tower_of_transformers_masks_its_padding(bert_model: dict[str, Any], pooler: str) -> None:
    text = {**bert_model["text_cfg"], "hf_pooler_type": pooler}
    model = build(ModelOptions(config={**bert_model, "text_cfg": text}), seed=0).eval()
    ids = model.tokenizer(["red", "a red circle left of a blue square", "", "red " * 40])
    assert model.text_lengths(ids).tolist() == IDS
    whole = model.encode_text(ids)
    assert whole.std() > 0.005
    for rows in ([0], [1], [2], [0, 1, 2]):
        length = max(IDS[row] for row in rows)
        torch.testing.assert_close(model.encode_text(ids[rows, :length]), whole[rows], rtol=0, atol=1e-6)


def test_padding_on_the_left_stays(bert_model: dict[str, Any]) -> None:
    model = build(ModelOptions(config=bert_model), seed=0).eval()
    ids = model.tokenizer(["red", "a red circle"])
    assert model.text_lengths(ids.flip(1)).tolist() == [LENGTH, LENGTH]
