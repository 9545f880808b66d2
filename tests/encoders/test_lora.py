"""LoRA: nothing at first, then only the narrow matrices learn, and what is saved is a model like any other."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from vlp.encoders import lora, packing, pad_free
from vlp.encoders.openclip import ModelOptions, build, load, outline, save_openclip_directory
from vlp.encoders.packing import shapes_of
from vlp.encoders.two_tower import TwoTower
from vlp.types import UserError

TEXTS = ["a red circle", "a blue square left of a red one", "left", "of"]
TIMM = {"image_size": 32, "timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear"}
VIT = {"image_size": 224, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}
KINDS = ["open_clip", "convolutions", "fused qkv and BERT"]


@pytest.fixture(params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: dict[str, Any]) -> str:
    """A directory with a model of each kind of towers."""
    config = tiny_model
    if request.param == "convolutions":
        config = {**tiny_model, "vision_cfg": TIMM}
    elif request.param == "fused qkv and BERT":
        config = {**request.getfixturevalue("bert_model"), "vision_cfg": {**VIT, "image_size": 160}}
    model = build(ModelOptions(config=config), 0)
    with torch.no_grad():  # residual branches of convolutional towers begin at 0, and nothing in them learns at once
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    save_openclip_directory(model, tmp_path / "base")
    return str(tmp_path / "base")


def adapted(base: str, **options: Any) -> TwoTower:
    return build(ModelOptions(init=base, lora={"rank": 4, **options}), seed=0)


def features(model: TwoTower, texts: list[str] = TEXTS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image_NCHW = torch.randint(0, 256, (4, 3, *model.picture_format.size), dtype=torch.uint8, generator=generator)
    return model.encode_image(image_NCHW), model.encode_text(model.tokenizer(texts))


def learn(model: TwoTower, steps: int = 2) -> dict[str, Tensor]:
    """Steps of Adam; what they changed, with its values before."""
    before = {name: value.clone() for name, value in model.clip.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        image_ND, text_ND = features(model)
        logits = (
            model.logit_scale.exp() * torch.nn.functional.normalize(image_ND) @ torch.nn.functional.normalize(text_ND).T
        )
        torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.clip.state_dict()
    return {name: value for name, value in before.items() if not torch.equal(value, after[name])}


def test_at_the_start_it_is_the_base_to_the_bit(base: str) -> None:
    model = adapted(base).eval()
    assert all(torch.equal(*pair) for pair in zip(features(model), features(load(base)), strict=True))
    assert lora.adapted(model.clip)


def test_every_narrow_matrix_learns_and_besides_the_logit_scale_alone(base: str) -> None:
    model = adapted(base)
    changed = learn(model).keys()
    matrices = {name for name in model.clip.state_dict() if name.endswith((".0.A", ".0.B"))}
    assert changed == matrices | {"logit_scale"}
    assert len(matrices) == 2 * len(lora.adapted(model.clip))


def test_fused_and_output_projections_of_attention_are_among_them(tmp_path: Path, tiny_model: dict[str, Any]) -> None:
    save_openclip_directory(build(ModelOptions(config=tiny_model), 0), tmp_path)
    names = lora.adapted(adapted(str(tmp_path)).clip)
    for part in ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"):
        assert f"visual.transformer.resblocks.1.{part}" in names
        assert f"transformer.resblocks.0.{part}" in names
    assert len(names) == 12


def test_merged_it_is_a_model_of_open_clip(base: str, tmp_path: Path) -> None:
    model = adapted(base)
    learn(model)
    model.eval()
    merged, beside = lora.split(model.clip.state_dict(), model.clip)
    assert merged.keys() == load(base).clip.state_dict().keys()
    save_openclip_directory(model, tmp_path / "merged", merged, final=tmp_path / "merged")
    pixels = model.normalise(torch.full((1, 3, *model.picture_format.size), 90, dtype=torch.uint8))
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'merged'}").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode_image(pixels), model.clip.encode_image(pixels), rtol=0, atol=1e-5)
        for ours, of_file in zip(features(model), features(load(str(tmp_path / "merged"))), strict=True):
            torch.testing.assert_close(of_file, ours, rtol=0, atol=1e-5)

    again = adapted(base).eval()
    assert lora.load(again.clip, merged, beside) == []
    assert all(torch.equal(*pair) for pair in zip(features(again), features(model), strict=True))


def test_a_base_that_has_changed_is_noticed(base: str) -> None:
    model = adapted(base)
    learn(model)
    merged, beside = lora.split(model.clip.state_dict(), model.clip)
    for name in (
        next(iter(lora.adapted(model.clip))),
        "positional_embedding" if "positional_embedding" in merged else "",
    ):
        if name:
            changed = {**merged, name: merged[name] + 1e-3}
            assert lora.load(adapted(base).clip, changed, beside) == [name]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_goes_on_from_what_lies_on_the_host(tmp_path: Path, tiny_model: dict[str, Any]) -> None:
    save_openclip_directory(build(ModelOptions(config=tiny_model), 0), tmp_path / "base")
    trained = adapted(str(tmp_path / "base"))
    learn(trained)
    again = adapted(str(tmp_path / "base")).to("cuda")
    assert lora.load(again.clip, *lora.split(trained.clip.state_dict(), trained.clip)) == []
    for name, value in again.clip.state_dict().items():
        assert torch.equal(value.cpu(), trained.clip.state_dict()[name])


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_recomputed_layers_and_copies_give_the_same_gradients(policy: Any, tmp_path: Path, tiny_model: dict) -> None:
    save_openclip_directory(build(ModelOptions(config=tiny_model), 0), tmp_path)
    model = adapted(str(tmp_path))
    learn(model)
    copy = deepcopy(model)
    copy.use_gradient_checkpointing(policy)
    for one in (model, copy):
        sum(values.square().mean() for values in features(one)).backward()
    gradients = [{n: p.grad for n, p in one.named_parameters() if p.grad is not None} for one in (model, copy)]
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) >= 24
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_in_bf16_the_sum_is_made_in_fp32(tmp_path: Path, tiny_model: dict[str, Any]) -> None:
    save_openclip_directory(build(ModelOptions(config=tiny_model), 0), tmp_path)
    model = adapted(str(tmp_path))
    learn(model)
    attention = model.clip.visual.transformer.resblocks[0].attn
    whole = attention.in_proj_weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention.in_proj_weight, whole)


def test_texts_without_padding_are_the_same_texts(tmp_path: Path, tiny_model: dict[str, Any]) -> None:
    save_openclip_directory(build(ModelOptions(config=tiny_model), 0), tmp_path)
    model = adapted(str(tmp_path))
    learn(model)
    assert packing.prepare(model.clip)
    assert lora.adapted(model.clip)  # which a change of class would have lost
    text_NL = model.tokenizer(TEXTS)
    lengths_of = pad_free.lengths_reader(model.clip)
    assert lengths_of is not None
    packed = model.encode_text(text_NL, shapes_of(lengths_of(text_NL)))
    torch.testing.assert_close(packed, model.encode_text(text_NL), rtol=1e-4, atol=1e-5)


def test_towers_targets_and_rank_choose_the_weights(tmp_path: Path, tiny_model: dict[str, Any]) -> None:
    save_openclip_directory(build(ModelOptions(config=tiny_model), 0), tmp_path)
    base = str(tmp_path)
    of_text = lora.adapted(adapted(base, towers=["text"]).clip)
    assert len(of_text) == 4
    assert not [name for name in of_text if name.startswith("visual")]
    fused = lora.adapted(adapted(base, targets=["attn.in_proj_weight"]).clip)
    assert all(name.endswith("in_proj_weight") for name in fused)
    assert len(fused) == 3
    assert len(lora.adapted(adapted(base, rank=48).clip)) == 8  # those of the text tower are 32 wide
    options = ModelOptions(init=base, lora={"rank": 48})
    assert "4 others of their layers stay" in lora.described(outline(options).clip, options.lora)
    with pytest.raises(UserError, match=r"no weight is named 'qkv'; there are .*attn\.in_proj_weight"):
        adapted(base, targets=["qkv"])
    with pytest.raises(UserError, match="is no wider than that"):
        adapted(base, targets=["attn"], rank=32)
    with pytest.raises(UserError, match="no matrix of these towers is wider"):
        adapted(base, rank=512)


def test_what_does_not_go_together_is_refused(tiny_model: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give init"):
        ModelOptions(config=tiny_model, lora={})
    with pytest.raises(ValueError, match="remove lock_image"):
        ModelOptions(init="x", lora={}, lock_image=True)
