"""CoCa and captioning heads: open_clip's values, masks by perturbation, their start, and what cannot work."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import CoCaLoss
from torch import Tensor
from torch.utils import deterministic

from vlp import distributed, embeddings, encoding
from vlp.encoders.captioner import CaptionerOptions, is_causal
from vlp.encoders.openclip import ModelOptions, build, outline
from vlp.encoders.two_tower import CaptionCounts, TwoTower
from vlp.encoding import Encoding
from vlp.objectives import base
from vlp.types import Batch, UserError

HEAD = CaptionerOptions(layers=2, width=16, heads=2, queries=5)
HALF = CaptionerOptions(layers=1, width=16, heads=2, queries=5, text_layers=2)
TEXTS = ["a red circle left of a blue square", "a dog", "", "two cats, one dog and a very long caption of them all"]
CAPTIONS = frozenset({"captions"})
Options = Callable[[str], ModelOptions]


def with_parts(config: dict[str, Any], **parts: dict[str, Any]) -> dict[str, Any]:
    """``config`` with other values in some of its sections; None takes one away."""
    changed = dict(config)
    for section, values in parts.items():
        merged = {**config[section], **values}
        changed[section] = {name: value for name, value in merged.items() if value is not None}
    return changed


@pytest.fixture
def options(tiny_model: dict, tiny_coca: dict, request: pytest.FixtureRequest) -> Options:
    """``options(kind)`` of every way to tell captions."""

    def of(kind: str) -> ModelOptions:
        if kind == "CoCa":
            return ModelOptions(config=tiny_coca)
        if kind == "CoCa without class token":
            return ModelOptions(config=with_parts(tiny_coca, text_cfg={"embed_cls": None}))
        if kind == "CoCa without pooler":
            sizes = {"text_cfg": {"width": 64}, "multimodal_cfg": {"width": 64}}
            return ModelOptions(config=with_parts(tiny_coca, vision_cfg={"attentional_pool": None}, **sizes))
        if kind == "CoCa with a norm behind its pool":
            pool = {"attentional_pool": None, "pool_type": "avg", "final_ln_after_pool": True}
            sizes = {"text_cfg": {"width": 64}, "multimodal_cfg": {"width": 64}}
            return ModelOptions(config=with_parts(tiny_coca, vision_cfg=pool, **sizes))
        if kind == "head":
            return ModelOptions(config=tiny_model, captioner=HEAD)
        if kind == "head on a text tower of its own":
            return ModelOptions(config={**tiny_model, "custom_text": True}, captioner=HEAD)
        if kind == "head behind a class token":
            config = with_parts({**tiny_model, "custom_text": True}, text_cfg={"embed_cls": True})
            return ModelOptions(config=config, captioner=HEAD)
        if kind == "head on a timm tower":
            vision = {"image_size": 32, "timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear"}
            return ModelOptions(config={**tiny_model, "vision_cfg": vision}, captioner=HEAD)
        if kind == "half on a tower that sees all":
            config = with_parts({**tiny_model, "custom_text": True}, text_cfg={"no_causal_mask": True})
            return ModelOptions(config=config, captioner=HALF)
        assert kind == "half on BERT"
        return ModelOptions(config=request.getfixturevalue("bert_model"), captioner=HALF)

    return of


COCAS = ["CoCa", "CoCa without class token", "CoCa without pooler", "CoCa with a norm behind its pool"]
HALVES = ["half on a tower that sees all", "half on BERT"]
HEADS = ["head", "head on a text tower of its own", "head behind a class token", "head on a timm tower", *HALVES]


def pictures(rows: int, views: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (views, rows, 3, 32, 32), generator=generator, dtype=torch.uint8)


def texts_of(model: TwoTower, texts: list[str] = TEXTS) -> Tensor:
    return model.tokenizer(texts)


def shaken(options: ModelOptions) -> TwoTower:
    """With other values in every bias, norm and logit, so that nothing is 0 by chance; in evaluation mode."""
    model = build(options, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def told_loss(model: TwoTower, image_VNCHW: Tensor, text_VNL: Tensor, smoothing: float = 0.0) -> dict[str, Tensor]:
    """What `TwoTower.forward` gives for a batch of one process."""
    counts = CaptionCounts(model.special_tokens.told(text_VNL[0]).sum() / text_VNL.shape[1], smoothing)
    return model(image_VNCHW, text_VNL, captions=counts)


def logits_of(model: TwoTower, image_NCHW: Tensor, text_NL: Tensor) -> Tensor:
    """Of the id after each but the last, computed on whole texts (N L-1 V)."""
    path = model.caption_path()
    assert path is not None
    return path.states(text_NL[:, :-1], model.caption_memory(image_NCHW)) @ path.head_WV


def twin_of(model: TwoTower) -> open_clip.CoCa:
    """open_clip's own CoCa with the same weights and the same mask of the class token."""
    config = {name: v for name, v in model.openclip_config["model_cfg"].items() if name != "custom_text"}
    twin = open_clip.CoCa(**config)
    twin.load_state_dict(model.clip.state_dict())
    twin.text.correct_cls_mask = model.clip.text.correct_cls_mask
    return twin


# ---- open_clip's own values


@pytest.mark.parametrize("kind", COCAS)
@pytest.mark.parametrize("micro_batch_size", [99, 3])
def test_loss_and_gradients_are_those_of_open_clip(options: Options, kind: str, micro_batch_size: int) -> None:
    """Of its forward pass and CoCaLoss on one process, both weights in it; of every parameter."""
    model = build(options(kind), seed=0)
    twin = twin_of(model).train()
    texts = [*TEXTS, "one more", "a green star and a yellow triangle", "so!?"]
    text_NL, image_VNCHW = texts_of(model, texts), pictures(len(texts))
    outputs = twin(model.normalise(image_VNCHW[0]), text_NL)
    losses = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=0.5, pad_id=0)(
        *(outputs[name] for name in ("image_features", "text_features", "logits", "labels", "logit_scale"))
    )
    sum(losses).backward()

    objectives = [base.parse({"name": "infonce", "weight": 0.5}), base.parse({"name": "captioning", "weight": 2})]
    batch = Batch(image_VNCHW, text_NL[None], tuple(texts), tuple(texts))
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


@pytest.mark.parametrize("kind", COCAS)
def test_features_and_logits_are_those_of_open_clip(options: Options, kind: str) -> None:
    model = shaken(options(kind))
    twin, text_NL, image_NCHW = twin_of(model).eval(), texts_of(model), pictures(len(TEXTS))[0]
    with torch.no_grad():
        outputs = twin(model.normalise(image_NCHW), text_NL)
        ours = {"image_features": model.encode_image(image_NCHW), "text_features": model.encode_text(text_NL)}
        for name, feature_ND in ours.items():
            torch.testing.assert_close(F.normalize(feature_ND, dim=1), outputs[name])
        told_NL = model.special_tokens.told(text_NL)
        found = logits_of(model, image_NCHW, text_NL)[told_NL]
        torch.testing.assert_close(found, outputs["logits"][told_NL], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_tokens_are_the_same_beside_captions_and_alone(options: Options) -> None:
    """``text_tokens`` and ``image_tokens`` of a pass that tells captions are those of one that does not."""
    both = frozenset({"image_tokens", "text_tokens"})
    for kind in (*COCAS[:2], COCAS[3], "head", "head on a timm tower", "half on BERT"):
        model = shaken(options(kind))
        text_NL = texts_of(model)
        counts = CaptionCounts(model.special_tokens.told(text_NL).sum() / len(TEXTS), 0.0)
        with torch.no_grad():
            alone = model(pictures(4), text_NL[None], both)
            beside = model(pictures(4), text_NL[None], both, captions=counts)
        for name, value in alone.items():
            torch.testing.assert_close(beside[name], value, msg=lambda m, n=name, k=kind: f"{k}, {n}: {m}")
        assert beside.keys() - alone.keys() == {"caption_loss", "caption_nll"}


# ---- Where a captioner starts


@pytest.fixture
def _memory_is_nan() -> Any:
    """What no one sets is NaN, not whatever the memory held."""
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.usefixtures("_memory_is_nan")
@pytest.mark.parametrize("kind", [*COCAS, *HEADS])
def test_a_captioner_from_scratch_starts_at_ln_v(options: Options, kind: str) -> None:
    """open_clip never sets its decoder's vocabulary: the weights are what the memory held."""
    model = build(options(kind), seed=0)
    if kind in COCAS:
        config = {name: v for name, v in model.openclip_config["model_cfg"].items() if name != "custom_text"}
        assert open_clip.CoCa(**config).text_decoder.text_projection.isnan().all()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    path = model.caption_path()
    assert path is not None
    vocabulary = path.head_WV.shape[1]
    with torch.no_grad():
        found = told_loss(model.eval(), pictures(4), texts_of(model)[None])
    assert found["caption_loss"].item() == pytest.approx(math.log(vocabulary), abs=0.3)


def test_towers_start_the_same_with_a_head_and_without(options: Options) -> None:
    given = options("head")
    plain, one, two = (
        build(given.model_copy(update={"captioner": head}), seed=seed)
        for head, seed in ((None, 3), (HEAD, 3), (HEAD, 4))
    )
    expected = plain.clip.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in one.clip.state_dict().items())
    assert not torch.equal(one.captioner.text.weight, two.captioner.text.weight)
    assert torch.equal(build(given, seed=3).captioner.text.weight, one.captioner.text.weight)


def test_what_no_objective_uses_is_not_trained(options: Options) -> None:
    """Without captions there is no head, and CoCa's decoder is kept as it is."""
    assert build(options("head"), seed=0, needs=frozenset()).captioner is None
    coca = build(options("CoCa"), seed=0, needs=frozenset())
    assert not any(p.requires_grad for p in coca.clip.text_decoder.parameters())
    assert coca.parameters_by_tower()["captioner"] > 0
    assert coca.parameters_by_tower(trainable_only=True).get("captioner", 0) == 0


@pytest.mark.parametrize("kind", [*COCAS, *HEADS])
def test_parameters_by_tower_add_up(options: Options, kind: str) -> None:
    model = build(options(kind), seed=0)
    counts = model.parameters_by_tower()
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    head = model.captioner or model.clip.text_decoder
    assert counts["captioner"] == sum(p.numel() for p in head.parameters())


# ---- Masks, by perturbation


@pytest.mark.parametrize("kind", [*COCAS, *HEADS])
def test_no_logit_sees_a_later_id_and_all_see_the_picture(options: Options, kind: str) -> None:
    model = shaken(options(kind))
    text_NL, image_NCHW = texts_of(model)[[0, 3]], pictures(2)[0]
    with torch.no_grad():
        logits = logits_of(model, image_NCHW, text_NL)
        for place in range(1, text_NL.shape[1] - 1):
            other_NL = text_NL.clone()
            other_NL[:, place] = (other_NL[:, place] + 3) % 12
            found = logits_of(model, image_NCHW, other_NL)
            torch.testing.assert_close(found[:, :place], logits[:, :place], rtol=0, atol=1e-6)
            assert (found[:, place:] - logits[:, place:]).abs().amax(-1).min() > 1e-5, place
        found = logits_of(model, pictures(2, seed=1)[0], text_NL)
        assert (found - logits).abs().amax(-1).min() > 1e-5


@pytest.mark.parametrize("kind", [*COCAS, *HEADS])
def test_text_features_do_not_see_the_picture(options: Options, kind: str) -> None:
    model = shaken(options(kind))
    text_1NL = texts_of(model)[None]
    with torch.no_grad():
        one, other = (told_loss(model, pictures(4, seed=seed), text_1NL) for seed in (0, 1))
    assert torch.equal(one["text"], other["text"])
    assert not torch.equal(one["caption_loss"], other["caption_loss"])
    assert not torch.equal(one["image"], other["image"])


@pytest.mark.parametrize("kind", [*COCAS, *HEADS])
def test_padding_has_no_part_in_the_loss(options: Options, kind: str) -> None:
    """The batch is cut to its longest caption: the same as whole texts, row by row, whatever stands beside them."""
    model = shaken(options(kind))
    text_NL, image_NCHW = texts_of(model), pictures(4)[0]
    told_NL = model.special_tokens.told(text_NL)
    assert len(set(told_NL.sum(1).tolist())) > 2
    with torch.no_grad():
        logits, labels = logits_of(model, image_NCHW, text_NL), text_NL[:, 1:]
        nll_NL = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none") * told_NL
        for rows in ([0, 1, 2, 3], [1, 2], [2], [0, 3]):
            found = told_loss(model, image_NCHW[None, rows], text_NL[None, rows])
            expected = nll_NL[rows].sum() / told_NL[rows].sum()
            torch.testing.assert_close(found["caption_loss"], expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found["caption_nll"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["CoCa without class token", "head", *HALVES])
def test_what_stands_behind_the_end_changes_no_loss(options: Options, kind: str) -> None:
    """Other ids there, as another tokenizer pads with; a class token apart, which open_clip keeps from them by id."""
    model = shaken(options(kind))
    text_NL = texts_of(model)
    lengths_N = model.special_tokens.lengths(text_NL)
    behind_NL = torch.arange(text_NL.shape[1]) >= lengths_N[:, None]
    other_NL = torch.where(behind_NL, torch.tensor(7), text_NL)
    assert behind_NL.any()
    with torch.no_grad():
        one, other = (told_loss(model, pictures(4), ids[None]) for ids in (text_NL, other_NL))
    torch.testing.assert_close(one["caption_loss"], other["caption_loss"], rtol=0, atol=1e-6)
    if kind not in HALVES:  # those see all that is no padding
        torch.testing.assert_close(one["text"], other["text"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_class_token_sees_no_padding(options: Options, legacy: bool) -> None:
    """By the embeddings of the padding's id and of the places behind the end. open_clip's legacy mask is a place off:
    its class token sees the first place of the padding, and from there on not itself."""
    model = shaken(options("CoCa"))
    assert model.clip.text.correct_cls_mask
    model.clip.text.correct_cls_mask = not legacy
    text_NL, tower = texts_of(model, ["a dog", "two red dogs"]), model.clip.text
    longest = int(model.special_tokens.lengths(text_NL).max())
    with torch.no_grad():
        before = told_loss(model, pictures(2), text_NL[None])
        states_NLW = model.clip._encode_text(text_NL)[1]
        tower.token_embedding.weight[0] += torch.randn(32)
        tower.positional_embedding[longest:-1] += torch.randn(32)  # the last is the class token's
        after = told_loss(model, pictures(2), text_NL[None])
        told_states = [states[:longest] for states in (*states_NLW, *model.clip._encode_text(text_NL)[1])]
    moved = (before["text"] - after["text"]).abs().max()
    assert moved > 1e-2 if legacy else moved == 0
    torch.testing.assert_close(before["caption_loss"], after["caption_loss"], rtol=0, atol=1e-6)
    short = int(model.special_tokens.lengths(text_NL)[0])
    assert torch.equal(told_states[0][:short], told_states[2][:short])
    assert torch.equal(told_states[1], told_states[3])


def test_a_class_token_behind_a_head_sees_no_padding_either(options: Options) -> None:
    model = shaken(options("head behind a class token"))
    text_NL, tower = texts_of(model, ["a dog", "two red dogs"]), model.clip.text
    with torch.no_grad():
        before = told_loss(model, pictures(2), text_NL[None])
        tower.token_embedding.weight[0] += 1
        after = told_loss(model, pictures(2), text_NL[None])
    assert torch.equal(before["text"], after["text"])
    torch.testing.assert_close(before["caption_loss"], after["caption_loss"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["CoCa", "CoCa without class token", "head"])
def test_a_word_with_the_id_of_padding_is_told(options: Options, kind: str) -> None:
    """CLIP's id 0 fills texts up and is also "!" before a mark that it has no common id with."""
    model = shaken(options(kind))
    text_NL, image_NCHW = texts_of(model, ["oh!; a dog", "a dog"]), pictures(2)[0]
    place = text_NL[0].tolist().index(0)
    told_NL = model.special_tokens.told(text_NL)
    assert told_NL[0, place - 1]
    assert told_NL.sum(1).tolist() == [6, 3]
    with torch.no_grad():
        found = told_loss(model, image_NCHW[None], text_NL[None])["caption_loss"]
        if kind == "head":
            logits = logits_of(model, image_NCHW, text_NL)
        else:
            logits = twin_of(model).eval()(model.normalise(image_NCHW), text_NL)["logits"]
        torch.testing.assert_close(found, F.cross_entropy(logits[told_NL], text_NL[:, 1:][told_NL]))
        # open_clip's loss leaves it out.
        assert (text_NL[:, 1:] != 0).sum() == told_NL.sum() - 1


# ---- In training


@pytest.mark.parametrize("kind", ["CoCa", "head", "half on BERT"])
def test_a_pass_without_captions_draws_the_same_dropout(options: Options, kind: str) -> None:
    """As the first pass of cached gradients: in all views, and whatever of the first is wanted besides."""
    given = options(kind)
    config = with_parts(given.config, vision_cfg={"patch_dropout": 0.5})
    model = build(given.model_copy(update={"config": config}), seed=0).train()
    text_VNL = torch.stack([texts_of(model), texts_of(model, ["more", *TEXTS[:3]])])
    counts = CaptionCounts(torch.tensor(5.0), 0.0)
    passes: list[dict[str, Any]] = [{}, {"captions": counts}, {"wanted": frozenset({"image_tokens", "text_tokens"})}]
    found = []
    with torch.no_grad():
        for arguments in passes:
            torch.manual_seed(5)
            found.append(model(pictures(4, views=2), text_VNL, **arguments))
        plain = model.eval()(pictures(4, views=2), text_VNL)
    for other in found[1:]:
        for name in ("image", "text"):
            torch.testing.assert_close(other[name], found[0][name], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain["image"], found[0]["image"], atol=1e-3), "dropout matters"


@pytest.mark.parametrize("kind", ["CoCa", "head", "half on a tower that sees all"])
def test_gradient_checkpointing_changes_no_gradient_and_keeps_less(options: Options, kind: str) -> None:
    found, kept = [], []
    for checkpointed in (False, True):
        model = build(options(kind), seed=0).train()
        if checkpointed:
            model.use_gradient_checkpointing()
        number = 0

        def count(value: Tensor) -> Tensor:
            nonlocal number
            number += 1
            return value

        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            outputs = told_loss(model, pictures(4), texts_of(model)[None], 0.1)
        (outputs["caption_loss"] + outputs["image"].sum() + outputs["text"].sum()).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        kept.append(number)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize("kind", ["CoCa", "head", "half on BERT"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(options: Options, kind: str, dtype: torch.dtype) -> None:
    model = build(options(kind), seed=0).eval()
    exact = told_loss(model, pictures(4), texts_of(model)[None])["caption_loss"]
    with torch.autocast("cpu", dtype):
        found = told_loss(model, pictures(4), texts_of(model)[None])["caption_loss"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=5e-3)
    found.backward()
    head = model.captioner.decoder if model.captioner is not None else model.clip.text_decoder
    assert head.text_projection.grad.isfinite().all()


def test_locked_towers_leave_the_captioner_its_gradient(options: Options) -> None:
    for kind in ("CoCa", "head"):
        model = build(options(kind).model_copy(update={"lock_image": True, "lock_text": True}), seed=0)
        told_loss(model, pictures(4), texts_of(model)[None])["caption_loss"].backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == ["clip.logit_scale"]
        assert all(p.grad is None for p in model.clip.visual.parameters())
        head = model.captioner if model.captioner is not None else model.clip.text_decoder
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_the_average_over_ids_needs_no_other_rows(options: Options) -> None:
    """Rows in parts, each with the mean length of all: their weighted mean is the mean over all ids."""
    model = shaken(options("head"))
    text_NL, image_NCHW = texts_of(model), pictures(4)[0]
    counts = CaptionCounts(model.special_tokens.told(text_NL).sum() / 4, 0.1)
    with torch.no_grad():
        whole = told_loss(model, image_NCHW[None], text_NL[None], 0.1)["caption_loss"]
        parts = [
            len(rows) / 4 * model(image_NCHW[None, rows], text_NL[None, rows], captions=counts)["caption_loss"]
            for rows in ([0], [1, 2, 3])
        ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-6)


# ---- What cannot work


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
        ({"text_cfg": {"pad_id": 1}}, "pad_id is 1, but the tokenizer fills texts up with 0"),
    ],
)
def test_a_coca_that_cannot_work_is_refused(tiny_coca: dict, parts: dict, sentence: str, on_meta: bool) -> None:
    given = ModelOptions(config=with_parts(tiny_coca, **parts))
    objectives = [base.parse({"name": "captioning"})]
    with pytest.raises(UserError, match=sentence) as raised:
        encoding.check(outline(given) if on_meta else build(given, seed=0), objectives, 4)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("on_meta", [False, True])
@pytest.mark.parametrize("kind", [*COCAS, *HEADS])
def test_what_works_is_let_through(options: Options, kind: str, on_meta: bool) -> None:
    model = outline(options(kind)) if on_meta else build(options(kind), seed=0)
    encoding.check(model, [base.parse({"name": "captioning"}), base.parse({"name": "infonce"})], 4)
    assert model.training


def test_towers_that_see_the_words_are_refused(tiny_coca: dict, bert_model: dict) -> None:
    """As coca_roberta-ViT-B-32's, which open_clip trains with."""
    text = {**bert_model["text_cfg"], "output_tokens": True}
    coca = build(ModelOptions(config={**tiny_coca, "text_cfg": text}), seed=0)
    assert not is_causal(coca.clip.text)
    with pytest.raises(UserError, match=r"HFTextEncoder sees the words.*choose a CoCa with a causal tower"):
        coca.caption_path()
    with pytest.raises(UserError, match=r"HFTextEncoder sees the words.*set model\.captioner\.text_layers"):
        build(ModelOptions(config=bert_model, captioner=HEAD), seed=0)


def test_a_head_on_a_coca_or_without_a_divisor_is_refused(options: Options, tiny_coca: dict) -> None:
    with pytest.raises(UserError, match=r"model\.captioner has no effect on a CoCa"):
        build(ModelOptions(config=tiny_coca, captioner=HEAD), seed=0)
    with pytest.raises(ValueError, match="width 30 is no multiple of heads 4"):
        CaptionerOptions(width=30)


def test_a_class_token_in_the_class_clip_is_refused(tiny_model: dict) -> None:
    with pytest.raises(UserError, match="wants custom_text: true"):
        build(ModelOptions(config=with_parts(tiny_model, text_cfg={"embed_cls": True})), seed=0)


def test_a_head_whose_image_tower_has_no_tokens_is_refused(tiny_model: dict) -> None:
    config = with_parts(tiny_model, vision_cfg={"layers": [1, 1, 1, 1], "image_size": 64})
    with pytest.raises(UserError, match="ModifiedResNet gives no patch tokens: choose a ViT"):
        encoding.check(outline(ModelOptions(config=config, captioner=HEAD)), [base.parse({"name": "captioning"})], 4)


def test_a_model_without_a_captioner_is_refused(tiny_model: dict) -> None:
    model = build(ModelOptions(config=tiny_model), seed=0)
    assert model.caption_path() is None
    with pytest.raises(UserError, match=r"add model\.captioner, such as \{layers: 2\}, or choose a CoCa"):
        encoding.check(model, [base.parse({"name": "captioning"})], 4)
    assert distributed.world_size() == 1
