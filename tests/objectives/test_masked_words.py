"""Masked words: a mean over the hidden ones of a caption, then over captions, whatever the micro-batches."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp import embeddings, recipe
from vlp.encoders.fusion import FusionOptions
from vlp.encoders.openclip import ModelOptions, build
from vlp.encoding import Encoding
from vlp.features import Embeddings, Masked
from vlp.objectives import base
from vlp.types import Batch, Loss, UserError

VOCABULARY = 7


class Answers:
    """A tower that answers with logits given beforehand, N L vocabulary."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def words(self, text_NLD: Tensor, mask_NL: Tensor, image_NPD: Tensor, wanted_NL: Tensor) -> Tensor:
        return self.logits[wanted_NL]


def loss_of(labels_NL: Tensor, logits: Tensor) -> Loss:
    rows, length = labels_NL.shape
    masked = Masked(torch.randn(rows, length, 4), torch.ones(rows, length, dtype=torch.bool), labels_NL)
    embedded = Embeddings.of(
        torch.randn(rows, 4),
        torch.randn(rows, 4),
        torch.tensor(1.0),
        masked=masked,
        image_tokens_NPD=torch.randn(rows, 3, 4),
        fusion=Answers(logits),
    )
    return base.parse({"name": "masked_words"}).loss(embedded)


def test_value_by_hand():
    """Row 0 hides two words, row 1 one, row 2 none: it counts 0."""
    labels = torch.full((3, 4), -100)
    labels[0, 1], labels[0, 3], labels[1, 0] = 2, 5, 6
    logits = torch.randn(3, 4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    logits[1, 0, 6], logits[0, 1, 2] = 9.0, 9.0
    logits[0, 3, 5] = -9.0
    of = {place: F.cross_entropy(logits[place], labels[place]) for place in ((0, 1), (0, 3), (1, 0))}
    found = loss_of(labels, logits)
    torch.testing.assert_close(found.total, ((of[0, 1] + of[0, 3]) / 2 + of[1, 0]) / 3)
    assert found.parts["masked_words_accuracy"] == pytest.approx((1 / 2 + 1) / 3)


def test_equal_logits_give_ln_vocabulary_and_texts_without_words_nothing():
    labels = torch.tensor([[-100, 3], [1, 2]])
    assert loss_of(labels, torch.zeros(2, 2, VOCABULARY)).total == pytest.approx(math.log(VOCABULARY))
    logits = torch.zeros(2, 2, VOCABULARY, requires_grad=True)
    empty = loss_of(torch.full((2, 2), -100), logits).total
    assert empty == 0
    empty.backward()
    assert logits.grad is not None


def test_the_mean_over_samples_is_that_of_their_parts():
    """What micro-batches and processes rely on: also where rows hide differently many words."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.where(torch.rand(6, 5, generator=generator) < 0.5, torch.randint(0, VOCABULARY, (6, 5)), -100)
    logits = torch.randn(6, 5, VOCABULARY, generator=generator)
    parts = [loss_of(labels[i : i + 2], logits[i : i + 2]) for i in (0, 2, 4)]
    whole = loss_of(labels, logits)
    for name in ("masked_words_loss", "masked_words_accuracy"):
        torch.testing.assert_close(whole.parts[name], torch.stack([part.parts[name] for part in parts]).mean())


def test_labels_elsewhere_get_no_gradient():
    labels = torch.tensor([[-100, 3, -100], [1, -100, 2]])
    logits = torch.zeros(2, 3, VOCABULARY, requires_grad=True)
    loss_of(labels, logits).total.backward()
    assert ((logits.grad.abs().sum(-1) > 0) == (labels >= 0)).all()


@pytest.mark.parametrize("share", [0, 1.5, -0.1])
def test_a_share_is_more_than_nothing_and_not_more_than_all(share):
    with pytest.raises(UserError, match="share"):
        base.parse({"name": "masked_words", "share": share})


# ---- Through the towers


def run(config: dict[str, Any], micro: int, share: float, seed: int = 4, dropout: float = 0.0, text: Any = None) -> Any:
    config = {**config, "vision_cfg": {**config["vision_cfg"], "patch_dropout": dropout}}
    model = build(ModelOptions(config=config, fusion=FusionOptions(layers=1, width=16, heads=2)), seed=0).train()
    objectives = [base.parse({"name": "infonce"}), base.parse({"name": "masked_words", "share": share})]
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (1, 8, 3, 32, 32), generator=generator, dtype=torch.uint8)
    captions = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square", "star", "moon")]
    text_NL = model.tokenizer(captions if text is None else text)
    batch = Batch(image, text_NL[None], ("",) * 8, tuple(captions))
    loss, _ = embeddings.backward(
        Encoding(model, objectives, 8).encoders(model, batch, seed),
        batch,
        lambda embedded: base.combined_loss(objectives[:1], embedded),
        lambda embedded: base.combined_loss(objectives[1:], embedded),
        micro_batch_size=micro,
        seeds=(4, 4),
        backward_of=lambda total: total.backward(),
        no_sync=nullcontext,
    )
    return loss, {name: p.grad for name, p in model.named_parameters()}


def test_it_starts_at_ln_vocabulary_and_reaches_all_towers(tiny_model):
    loss, gradients = run(tiny_model, 8, 0.15)
    assert loss.parts["masked_words_loss"] == pytest.approx(math.log(49408), abs=0.1)
    unused = {"fusion.match_head.weight", "fusion.match_head.bias"}
    assert {name for name, gradient in gradients.items() if not gradient.abs().sum() > 0} == unused


def test_the_seed_of_the_step_says_what_is_hidden(tiny_model):
    def found(seed: int) -> float:
        return run(tiny_model, 8, 0.5, seed)[0].parts["masked_words_loss"].item()

    assert found(4) == found(4)
    assert found(4) != found(5)


def test_cached_gradients_with_patch_dropout_see_the_same_patches_in_both_passes(tiny_model):
    """The masked texts, read in the second pass only, must not shift the random numbers of the pictures."""
    loss, gradients = run(tiny_model, 2, 0.5, dropout=0.5)
    config = {**tiny_model, "vision_cfg": {**tiny_model["vision_cfg"], "patch_dropout": 0.5}}
    model = build(ModelOptions(config=config, fusion=FusionOptions(layers=1, width=16, heads=2)), seed=0).train()
    pixels = torch.randint(0, 256, (1, 2, 3, 32, 32), dtype=torch.uint8)
    text_NL = model.tokenizer(["a red circle", "a blue square"])
    outputs = []
    for masked_NL in (None, text_NL):
        torch.manual_seed(0)
        outputs.append(model(pixels, text_NL[None], frozenset({"image_tokens"}), None, masked_NL)["image"])
    assert torch.equal(*outputs)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert loss.total.isfinite()


def test_texts_without_words_are_no_error(tiny_model):
    loss, _ = run(tiny_model, 2, 0.15, text=[""] * 8)
    assert loss.parts["masked_words_loss"] == 0


def test_a_tower_that_nothing_uses_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("base: quickstart.yaml\nname: trial\nmodel: {fusion: {layers: 1}}\n")
    with pytest.raises(UserError, match=r"model\.fusion has no effect"):
        recipe.load(str(path))
    assert recipe.load(str(path), ["objectives=[{name: masked_words}]"]).model.fusion.width == 256
    plain = recipe.load("quickstart", ["objectives=[{name: infonce}, {name: masked_words}]"])
    with pytest.raises(UserError, match=r"needs fusion.*add model.fusion, such as \{layers: 2\}"):
        base.check_needs(plain.objectives, plain.provides())
