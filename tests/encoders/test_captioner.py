"""CoCa and captioning heads: open_clip's values and gradients, where they start, and how they train."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import CoCaLoss
from torch import Tensor
from torch.utils import deterministic

from vlp import embeddings
from vlp.encoders.openclip import build
from vlp.encoders.two_tower import CaptionCounts
from vlp.encoding import Encoding
from vlp.objectives import base
from vlp.types import Batch

# ---- open_clip's own values


@pytest.mark.parametrize("micro_batch_size", [99, 3])
def test_loss_and_gradients_are_those_of_open_clip(captioners: Any, coca_kind: str, micro_batch_size: int) -> None:
    """Of its forward pass and CoCaLoss on one process, both weights in it; of every parameter."""
    model = build(captioners.options(coca_kind), seed=0)
    twin = captioners.twin(model).train()
    texts = ("a dog", "", "two cats, one dog and a long caption", "a star and a yellow triangle", "so!?")
    text_NL, image_VNCHW = captioners.texts(model, *texts), captioners.pictures(len(texts))
    outputs = twin(model.normalise(image_VNCHW[0]), text_NL)
    losses = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=0.5, pad_id=0)(
        *(outputs[name] for name in ("image_features", "text_features", "logits", "labels", "logit_scale"))
    )
    sum(losses).backward()

    objectives = [base.parse({"name": "infonce", "weight": 0.5}), base.parse({"name": "captioning", "weight": 2})]
    batch = Batch(image_VNCHW, text_NL[None], texts, texts)
    step = embeddings.backward(
        Encoding(model, objectives, len(texts)).encoders(model, batch),
        batch,
        base.loss_of(objectives, couples_batch=True),
        base.loss_of(objectives, couples_batch=False),
        micro_batch_size=micro_batch_size,
        seeds=(1, 1),
        backward_of=lambda total: total.backward(),
        no_sync=nullcontext,
    )
    assert step.loss.total.item() == pytest.approx(sum(losses).item(), rel=1e-6)
    assert 2 * step.loss.parts["captioning_loss"].item() == pytest.approx(losses[1].item(), rel=1e-6)
    ours = dict(model.clip.named_parameters())
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None, name
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(
            ours[name].grad, parameter.grad, rtol=1e-4, atol=1e-5 * scale + 1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_features_and_logits_are_those_of_open_clip(captioners: Any, coca_kind: str) -> None:
    model = captioners.shaken(coca_kind)
    twin, text_NL, image_NCHW = captioners.twin(model).eval(), captioners.texts(model), captioners.pictures()[0]
    with torch.no_grad():
        outputs = twin(model.normalise(image_NCHW), text_NL)
        ours = {"image_features": model.encode_image(image_NCHW), "text_features": model.encode_text(text_NL)}
        for name, feature_ND in ours.items():
            torch.testing.assert_close(F.normalize(feature_ND, dim=1), outputs[name])
        told_NL = model.special_tokens.told(text_NL)
        found = captioners.logits(model, image_NCHW, text_NL)[told_NL]
        torch.testing.assert_close(found, outputs["logits"][told_NL], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_tokens_are_the_same_beside_captions_and_alone(captioners: Any, captioner_kind: str) -> None:
    """``text_tokens`` and ``image_tokens`` of a pass that tells captions are those of one that does not."""
    both = frozenset({"image_tokens", "text_tokens"})
    model = build(captioners.options(captioner_kind), seed=0).eval()
    text_NL = captioners.texts(model)
    with torch.no_grad():
        alone = model(captioners.pictures(), text_NL[None], both)
        beside = model(captioners.pictures(), text_NL[None], both, captions=CaptionCounts(torch.tensor(5.0), 0.0))
    for name, value in alone.items():
        torch.testing.assert_close(beside[name], value, msg=lambda m, n=name: f"{n}: {m}")
    assert beside.keys() - alone.keys() == {"caption_loss", "caption_nll"}


# ---- Where a captioner starts


@pytest.fixture
def _memory_is_nan() -> Iterator[None]:
    """What no one sets is NaN, not whatever the memory held."""
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.usefixtures("_memory_is_nan")
def test_a_captioner_from_scratch_starts_at_ln_v(captioners: Any, captioner_kind: str) -> None:
    """open_clip never sets its decoder's vocabulary: the weights are what the memory held."""
    model = build(captioners.options(captioner_kind), seed=0).eval()
    if captioner_kind == "CoCa":
        config = {name: v for name, v in model.openclip_config["model_cfg"].items() if name != "custom_text"}
        assert open_clip.CoCa(**config).text_decoder.text_projection.isnan().all()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    vocabulary = model.caption_path().head_WV.shape[1]
    with torch.no_grad():
        found = captioners.loss(model, captioners.pictures(), captioners.texts(model))
    assert found["caption_loss"].item() == pytest.approx(math.log(vocabulary), abs=0.3)
    counts = model.parameters_by_tower()
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    head = model.captioner or model.clip.text_decoder
    assert counts["captioner"] == sum(p.numel() for p in head.parameters())


def test_towers_start_the_same_with_a_head_and_without(captioners: Any) -> None:
    given, head = captioners.options("head"), captioners.HEAD
    plain, one, two = (
        build(given.model_copy(update={"captioner": head}), seed=seed)
        for head, seed in ((None, 3), (head, 3), (head, 4))
    )
    expected = plain.clip.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in one.clip.state_dict().items())
    assert not torch.equal(one.captioner.text.weight, two.captioner.text.weight)
    assert torch.equal(build(given, seed=3).captioner.text.weight, one.captioner.text.weight)


def test_what_no_objective_uses_is_not_trained(captioners: Any) -> None:
    """Without captions there is no head, and CoCa's decoder is kept as it is."""
    assert build(captioners.options("head"), seed=0, needs=frozenset()).captioner is None
    coca = build(captioners.options("CoCa"), seed=0, needs=frozenset())
    assert not any(p.requires_grad for p in coca.clip.text_decoder.parameters())
    assert coca.parameters_by_tower()["captioner"] > 0
    assert coca.parameters_by_tower(trainable_only=True).get("captioner", 0) == 0


# ---- In training


@pytest.mark.parametrize("kind", ["CoCa", "head", "half on BERT"])
def test_a_pass_without_captions_draws_the_same_dropout(captioners: Any, kind: str) -> None:
    """As the first pass of cached gradients: in all views, and whatever of the first is wanted besides."""
    given = captioners.options(kind)
    config = captioners.changed(given.config, vision_cfg={"patch_dropout": 0.5})
    model = build(given.model_copy(update={"config": config}), seed=0).train()
    text_VNL = captioners.texts(model, "a red dog", "", "a", "of", "left of a", "circle", "red", "a a").unflatten(
        0, (2, 4)
    )
    image_VNCHW = captioners.pictures(views=2)
    passes: list[dict[str, Any]] = [
        {},
        {"captions": CaptionCounts(torch.tensor(5.0), 0.0)},
        {"wanted": frozenset({"image_tokens", "text_tokens"})},
    ]
    found = []
    with torch.no_grad():
        for arguments in passes:
            torch.manual_seed(5)
            found.append(model(image_VNCHW, text_VNL, **arguments))
        plain = model.eval()(image_VNCHW, text_VNL)
    for other in found[1:]:
        for name in ("image", "text"):
            torch.testing.assert_close(other[name], found[0][name], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain["image"], found[0]["image"], atol=1e-3), "dropout matters"


@pytest.mark.parametrize("kind", ["CoCa", "head", "half on a tower that sees all"])
def test_gradient_checkpointing_changes_no_gradient_and_keeps_less(captioners: Any, kind: str) -> None:
    found, kept = [], []
    for checkpointed in (False, True):
        model = build(captioners.options(kind), seed=0).train()
        if checkpointed:
            model.use_gradient_checkpointing()
        sizes: list[int] = []

        def keep(value: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            outputs = captioners.loss(model, captioners.pictures(), captioners.texts(model), 0.1)
        (outputs["caption_loss"] + outputs["image"].sum() + outputs["text"].sum()).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        kept.append(len(sizes))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize("kind", ["CoCa", "head", "half on BERT"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(captioners: Any, kind: str, dtype: torch.dtype) -> None:
    model = build(captioners.options(kind), seed=0).eval()
    image_VNCHW, text_NL = captioners.pictures(), captioners.texts(model)
    with torch.no_grad():
        exact = captioners.loss(model, image_VNCHW, text_NL)["caption_loss"]
    with torch.autocast("cpu", dtype):
        found = captioners.loss(model, image_VNCHW, text_NL)["caption_loss"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=5e-3)
    found.backward()
    gradient = model.caption_path().head_WV.grad
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["CoCa", "head"])
def test_locked_towers_leave_the_captioner_its_gradient(captioners: Any, kind: str) -> None:
    model = build(captioners.options(kind).model_copy(update={"lock_image": True, "lock_text": True}), seed=0)
    captioners.loss(model, captioners.pictures(), captioners.texts(model))["caption_loss"].backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == ["clip.logit_scale"]
    assert all(p.grad is None for p in model.clip.visual.parameters())
    head = model.captioner or model.clip.text_decoder
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
