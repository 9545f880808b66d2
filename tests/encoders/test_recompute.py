"""What is computed again has the gradients of what was kept, and takes less memory."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.profiler import profile

from vlp.encoders import packing
from vlp.encoders.blocks import blocks
from vlp.encoders.openclip import ModelOptions, build
from vlp.encoders.recompute import recompute
from vlp.encoders.two_tower import TwoTower
from vlp.types import UserError

POLICIES: list[Literal["full", "selective"]] = ["full", "selective"]
TEXTS = ["a red circle", "blue", "square of a", "red"]


def config_of(kind: str, tiny_model: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    convnext = {"timm_model_name": "convnext_atto", "image_size": 32, "timm_pool": "", "timm_proj": "linear"}
    return {
        "clip": lambda: tiny_model,
        "bert with dropout": lambda: request.getfixturevalue("bert_model"),
        "timm tower with dropout": lambda: {**tiny_model, "vision_cfg": {**convnext, "timm_drop_path": 0.5}},
    }[kind]()


def backward(model: TwoTower, precision: torch.dtype | None = None, rows: int = len(TEXTS)) -> dict[str, Tensor]:
    """Gradients of a loss of all features; dropout draws from the same seed."""
    images = torch.randint(0, 256, (1, rows, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.manual_seed(0)
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        outputs = model(images, model.tokenizer(TEXTS * (rows // len(TEXTS)))[None])
    (outputs["image"].float() * outputs["text"].float()).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["clip", "bert with dropout", "timm tower with dropout"])
def test_gradients_are_the_same(
    tiny_model: dict[str, Any], request: pytest.FixtureRequest, kind: str, policy: Literal["full", "selective"]
) -> None:
    config = config_of(kind, tiny_model, request)
    model, other = (build(ModelOptions(config=config), seed=0).train() for _ in range(2))
    names = list(other.state_dict())
    other.use_gradient_checkpointing(policy)
    assert list(other.state_dict()) == names
    twin = deepcopy(other, {id(other.tokenizer): other.tokenizer})
    with torch.no_grad():  # what a copy computes is its own
        for parameter in other.clip.visual.parameters():
            parameter.zero_()
    for precision in (None, torch.bfloat16):
        model.zero_grad()
        twin.zero_grad()
        expected, found = backward(model, precision), backward(twin, precision)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def kept_bytes(model: TwoTower) -> int:
    """What a forward pass leaves in memory for the backward pass."""
    images = torch.zeros(1, 16, 3, 32, 32, dtype=torch.uint8)
    ids = model.tokenizer(TEXTS * 4)[None]
    with profile(profile_memory=True) as profiled:
        outputs = model(images, ids)
    assert outputs["image"].requires_grad
    return sum(event.self_cpu_memory_usage for event in profiled.key_averages())


def test_less_is_kept(tiny_model: dict[str, Any]) -> None:
    config = {**tiny_model, "vision_cfg": {**tiny_model["vision_cfg"], "layers": 6}}
    kept = {}
    for policy in (None, *POLICIES):
        model = build(ModelOptions(config=config), seed=0).train()
        if policy is not None:
            model.use_gradient_checkpointing(policy)
        kept[policy] = kept_bytes(model)
    assert kept["selective"] < 0.8 * kept[None]
    assert kept["full"] < 0.5 * kept["selective"]


@pytest.mark.parametrize("policy", POLICIES)
def test_packed_texts_are_computed_again_as_they_were(
    tiny_model: dict[str, Any], policy: Literal["full", "selective"]
) -> None:
    found = []
    for recomputed in (False, True):
        model = build(ModelOptions(config=tiny_model), seed=0).train()
        assert packing.prepare(model.clip)
        if recomputed:
            model.use_gradient_checkpointing(policy)
        ids = model.tokenizer(TEXTS)
        model.encode_text(ids, packing.shapes_of(model.text_lengths(ids))).square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_layers_with_batch_norms_see_a_batch_once() -> None:
    tower = timm.create_model("resnet10t").train()
    with pytest.raises(UserError, match=r"train\.gradient_checkpointing: this model has no layers"):
        recompute(tower, "full")
    both = nn.ModuleDict({"image": tower, "text": timm.create_model("vit_tiny_patch16_224", depth=2)})
    recompute(both, "full")
    assert all("forward" not in vars(module) for module in tower.modules())
    assert all("forward" in vars(block) for block in blocks(both["text"]))
