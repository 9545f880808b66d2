"""The average of the weights is what the formula says, and is lent for evaluation."""

from __future__ import annotations

import pytest
import torch

from vlp.ema import EMA
from vlp.encoders.captioner import CaptionerOptions
from vlp.encoders.openclip import ModelOptions, build
from vlp.encoders.two_tower import TwoTower


@pytest.fixture
def model(tiny_model) -> TwoTower:
    return build(ModelOptions(config=tiny_model), seed=0)


@pytest.fixture
def telling(tiny_model) -> TwoTower:
    head = CaptionerOptions(layers=1, width=16, heads=2, queries=4)
    return build(ModelOptions(config=tiny_model, captioner=head), seed=0)


def test_the_average_is_what_the_formula_says_and_is_lent_for_evaluation(model):
    ema = EMA(model.averaged(), decay=0.9)
    before = model.clip.visual.proj.detach().clone()
    with torch.no_grad():
        model.clip.visual.proj += 1.0
    ema.update(model.averaged())
    after = model.clip.visual.proj.detach().clone()
    with ema.applied(model.averaged()):
        torch.testing.assert_close(model.clip.visual.proj, 0.9 * before + 0.1 * after)
    assert torch.equal(model.clip.visual.proj, after)


def test_the_average_of_a_head_is_lent_for_evaluation(telling):
    ema, weight = EMA(telling.averaged(), decay=0.9), telling.captioner.text.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 1.0
    ema.update(telling.averaged())
    after = weight.detach().clone()
    with ema.applied(telling.averaged()):
        torch.testing.assert_close(weight, 0.9 * before + 0.1 * after)
    assert torch.equal(weight, after)
