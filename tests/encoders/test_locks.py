"""Locked towers: what is frozen stays as it was, the rest learns."""

from __future__ import annotations

import pytest
import torch

from vlp.encoders.openclip import ModelOptions, build, save_openclip_directory
from vlp.types import UserError


def changed_by_a_step(features_of, model) -> set[str]:
    """Names of parameters and buffers that a step of SGD changes."""
    before = {name: value.clone() for name, value in model.clip.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    size = model.picture_format.size
    image_NCHW = torch.randint(0, 256, (4, 3, *size), dtype=torch.uint8)
    image_ND, text_ND, scale, _ = features_of(model, image_NCHW, ["a red circle", "a blue square", "left", "of"])
    loss = torch.nn.functional.cross_entropy(scale.exp() * image_ND @ text_ND.T, torch.arange(4))
    loss.backward()
    optimizer.step()
    return {name for name, value in model.clip.state_dict().items() if not torch.equal(before[name], value)}


def test_locked_image_tower_does_not_move(features_of, tiny_model):
    changed = changed_by_a_step(features_of, build(ModelOptions(config=tiny_model, lock_image=True), seed=0))
    assert changed
    assert not [name for name in changed if name.startswith("visual.")]


def test_locked_text_tower_does_not_move(features_of, tiny_model):
    changed = changed_by_a_step(features_of, build(ModelOptions(config=tiny_model, lock_text=True), seed=0))
    assert {name.split(".")[0] for name in changed} == {"visual", "logit_scale"}


def test_two_unlocked_groups_are_the_last_block_and_the_projection(features_of, tiny_model):
    changed = changed_by_a_step(features_of, build(ModelOptions(config=tiny_model, lock_image=2), seed=0))
    image = {name for name in changed if name.startswith("visual.")}
    assert "visual.proj" in image
    assert all(n.startswith(("visual.proj", "visual.ln_post", "visual.transformer.resblocks.1.")) for n in image)


def test_transformers_tower_keeps_only_its_projection_trainable(features_of, bert_model):
    model = build(ModelOptions(config=bert_model, lock_text=True), seed=0)
    changed = changed_by_a_step(features_of, model)
    assert {n for n in changed if n.startswith("text.")} == {n for n in changed if n.startswith("text.proj")} != set()
    assert not any(module.training for module in model.clip.text.transformer.modules()), "dropout must be off"
    assert model.clip.text.proj.training


def test_transformers_tower_unlocks_its_last_layers(features_of, bert_model):
    changed = changed_by_a_step(features_of, build(ModelOptions(config=bert_model, lock_text=1), seed=0))
    inside = {name for name in changed if name.startswith("text.transformer.")}
    assert inside
    assert all(name.startswith("text.transformer.encoder.layer.2.") for name in inside)


def test_batch_statistics_of_a_locked_timm_tower_stand_still(features_of, tiny_model):
    vision = {
        "timm_model_name": "test_efficientnet",
        "image_size": 32,
        "timm_pool": "",
        "timm_proj": "linear",
    }
    config = {**tiny_model, "vision_cfg": vision}
    assert any("running_mean" in n for n in changed_by_a_step(features_of, build(ModelOptions(config=config), seed=0)))
    changed = changed_by_a_step(features_of, build(ModelOptions(config=config, lock_image=True), seed=0))
    assert {n for n in changed if n.startswith("visual.")} == {n for n in changed if n.startswith("visual.head.")}


def test_lock_that_locks_nothing_is_refused(tiny_model, bert_model):
    with pytest.raises(UserError, match="lock_image: 99 groups are the whole tower"):
        build(ModelOptions(config=tiny_model, lock_image=99), seed=0)
    with pytest.raises(UserError, match="lock_text: 99 groups are the whole tower"):
        build(ModelOptions(config=bert_model, lock_text=99), seed=0)


def test_resnet_cannot_be_locked_in_part(tiny_model):
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 32, "patch_size": None}
    with pytest.raises(UserError, match="write true"):
        build(ModelOptions(config={**tiny_model, "vision_cfg": resnet}, lock_image=1), seed=0)


def test_zero_is_no_lock(tiny_model):
    with pytest.raises(ValueError, match="lock_image"):
        ModelOptions(config=tiny_model, lock_image=0)


def test_towers_of_a_coca_are_locked_like_others(features_of, tiny_coca):
    """open_clip's CoCa has no lock of its own, and no tower counts the attentional pooler among its groups."""
    for name, prefix in (("lock_image", "visual."), ("lock_text", "text.")):
        model = build(ModelOptions(config=tiny_coca, **{name: True}), seed=0)
        assert all(p.requires_grad != n.startswith(prefix) for n, p in model.clip.named_parameters())
    changed = changed_by_a_step(features_of, build(ModelOptions(config=tiny_coca, lock_image=2), seed=0))
    image = {name.split(".")[1] for name in changed if name.startswith("visual.")}
    assert image == {"transformer", "attn_pool", "ln_post", "proj"}
    model = build(ModelOptions(config=tiny_coca, lock_image=1, lock_text=1), seed=0)
    assert [n for n, p in model.clip.visual.named_parameters() if p.requires_grad] == ["proj"]
    assert [n for n, p in model.clip.text.named_parameters() if p.requires_grad] == ["text_projection"]


def test_an_image_tower_of_another_model_beside_a_new_text_tower(tiny_model, bert_model, tmp_path):
    known = build(ModelOptions(config=tiny_model), seed=1)
    save_openclip_directory(known, tmp_path)
    model = build(ModelOptions(config=bert_model, init_image=str(tmp_path), lock_image=True), seed=0)
    for name, value in known.clip.visual.state_dict().items():
        assert torch.equal(model.clip.visual.state_dict()[name], value), name
    assert not any(p.requires_grad for p in model.clip.visual.parameters())
    wide = {**tiny_model, "vision_cfg": {**tiny_model["vision_cfg"], "layers": 3}}
    with pytest.raises(UserError, match=r"is another than that of model\.config"):
        build(ModelOptions(config=wide, init_image=str(tmp_path)), seed=0)
    with pytest.raises(UserError, match=r"pictures of .* are made otherwise"):
        build(ModelOptions(config=tiny_model, init_image=str(tmp_path), picture={"std": (1, 1, 1)}), seed=0)
    with pytest.raises(ValueError, match="exclude each other"):
        ModelOptions(init="x", init_image="y")
