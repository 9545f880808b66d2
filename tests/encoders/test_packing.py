"""Texts without their padding give the features and gradients of whole ones, in every kind of tower."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlp.encoders import packing
from vlp.encoders.openclip import ModelOptions, build, outline
from vlp.encoders.packing import TextShapes, shapes_of
from vlp.encoders.two_tower import TwoTower

TEXTS = ["red", "a red circle left of a blue square", "", "red " * 40, "blue circle", "a square left of a circle"]
PACKED: dict[str, dict[str, Any]] = {
    "clip": {},
    "clip with scales": {"text_cfg": {"ls_init_value": 0.1}, "quick_gelu": True},
    "clip that pools by an id": {"text_cfg": {"pool_type": "eos", "eos_id": 49407}},
    "custom": {"custom_text": True},
    "custom that pools by an id": {
        "custom_text": True,
        "text_cfg": {"pool_type": "eos", "eos_id": 49407, "proj_bias": True},
    },
    "custom without projection": {"custom_text": True, "text_cfg": {"proj_type": "none"}},
}
TRIMMED: dict[str, dict[str, Any]] = {
    "other layers": {"custom_text": True, "text_cfg": {"qk_norm": True, "scale_attn": True, "scale_fc": True}},
    "bert": {},
}


@pytest.fixture
def tower(tiny_model: dict[str, Any], request: pytest.FixtureRequest) -> Callable[[str], TwoTower]:
    """A model of that kind without dropout, whose text tower takes packed texts if it can."""

    def make(name: str) -> TwoTower:
        parts = {**PACKED, **TRIMMED}[name]
        text = {**tiny_model["text_cfg"], "layers": 3, **parts.get("text_cfg", {})}
        config = {**tiny_model, **parts, "text_cfg": text}
        if name == "bert":
            config = request.getfixturevalue("bert_model")
        model = build(ModelOptions(config=config), seed=0).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        assert packing.prepare(getattr(model.clip, "text", model.clip)) == (name in PACKED)
        return model

    return make


def found_by(model: TwoTower, text_NL: Tensor, shapes: TextShapes | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Features, and the gradients of a loss that sees every one of them otherwise."""
    model.zero_grad()
    text_ND = model.encode_text(text_NL, shapes)
    weights_ND = torch.randn(text_ND.shape, generator=torch.Generator().manual_seed(0))
    (text_ND * weights_ND).sum().backward()
    return text_ND.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found: tuple[Tensor, dict[str, Tensor]], whole: tuple[Tensor, dict[str, Tensor]]) -> None:
    """To 1e-5, or that part of a tensor's largest value."""
    assert found[1].keys() == whole[1].keys()
    for name, expected in {"features": whole[0], **whole[1]}.items():
        value = found[0] if name == "features" else found[1][name]
        atol = 1e-5 * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(value, expected, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", [*PACKED, *TRIMMED])
def test_features_and_gradients_are_those_of_whole_texts(tower: Any, name: str) -> None:
    model = tower(name)
    for rows in ([0, 1, 2, 3, 4, 5], [5, 0, 4, 2], [2], [3, 3]):
        ids = model.tokenizer(TEXTS)[rows]
        whole = found_by(model, ids, None)
        assert whole[0].std() > 0.005
        assert_same(found_by(model, ids, shapes_of(model.text_lengths(ids))), whole)


@pytest.mark.parametrize("small", [1, 64])
def test_many_texts_in_groups_of_their_lengths(tower: Any, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(packing, "_SMALL", small)
    model = tower("clip")
    words = torch.randint(0, 14, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = model.tokenizer(["red " * number for number in words])
    shapes = shapes_of(model.text_lengths(ids))
    assert [rows for rows, _ in shapes.groups] == ([100, 50, 25, 25] if small == 1 else [100, 100])
    assert shapes.groups[-1][1] == shapes.longest == max(words) + 2
    assert shapes.ids == sum(words) + 2 * len(words)
    assert_same(found_by(model, ids, shapes), found_by(model, ids, None))


def test_every_number_of_texts_falls_into_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    for small in (1, 5):
        monkeypatch.setattr(packing, "_SMALL", small)
        for rows in range(1, 40):
            groups = shapes_of(torch.randint(1, 78, (rows,))).groups
            assert sum(count for count, _ in groups) == rows
            assert len(groups) == 1 or min(count for count, _ in groups) >= small
            assert [length for _, length in groups] == sorted(length for _, length in groups)


def test_in_bf16_the_error_is_that_of_bf16(tower: Any) -> None:
    model = tower("clip")
    ids = model.tokenizer(TEXTS)
    shapes, exact = shapes_of(model.text_lengths(ids)), found_by(model, ids, None)
    with torch.autocast("cpu", torch.bfloat16):
        whole, packed = found_by(model, ids, None), found_by(model, ids, shapes)
    error = (whole[0] - exact[0]).abs().max()
    assert error > 1e-4
    assert (packed[0] - exact[0]).abs().max() < 1.5 * error


def test_no_step_waits_for_the_device(tiny_model: dict[str, Any]) -> None:
    """Tensors without values know nothing that could be asked for."""
    model = outline(ModelOptions(config=tiny_model))
    ids = model.tokenizer(TEXTS)
    lengths = ids.argmax(dim=1) + 1
    assert packing.prepare(model.clip)
    assert model.encode_text(ids.to("meta"), shapes_of(lengths)).shape == (len(TEXTS), 32)


def test_a_prepared_tower_is_the_same_otherwise(tiny_model: dict[str, Any]) -> None:
    model = build(ModelOptions(config=tiny_model), seed=0)
    ids, names = model.tokenizer(TEXTS), list(model.state_dict())
    whole = found_by(model, ids, None)
    assert packing.prepare(model.clip)
    assert packing.prepare(model.clip), "again"
    assert list(model.state_dict()) == names
    again = found_by(model, ids, None)
    assert torch.equal(again[0], whole[0])
    assert all(torch.equal(again[1][name], gradient) for name, gradient in whole[1].items())
    twin = deepcopy(model, {id(model.tokenizer): model.tokenizer})
    assert_same(found_by(twin, ids, shapes_of(model.text_lengths(ids))), whole)


def test_texts_that_were_cut_are_those_of_a_shorter_context(tower: Any) -> None:
    model = tower("custom")
    ids = model.tokenizer(TEXTS, context_length=8)
    assert_same(found_by(model, ids, shapes_of(model.text_lengths(ids))), found_by(model, ids, None))
