"""SigLIP pair by pair, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlp import similarity
from vlp.features import Embeddings
from vlp.objectives import base


def loss(image: Tensor, text: Tensor, scale: float, bias: float) -> Tensor:
    embedded = Embeddings(image[None], text[None], torch.tensor(scale), torch.tensor(bias))
    return base.parse({"name": "siglip"}).loss(embedded).total


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.fixture(params=[0, 1 << 18], ids=["tiled", "dense"], autouse=True)
def _path(request, monkeypatch):
    monkeypatch.setattr(similarity, "MOST_DENSE_LOGITS", request.param)


def test_orthogonal_pairs():
    """Scale 1, bias 0: each match costs softplus(-1), each other pair softplus(0) = ln 2."""
    eye = torch.eye(2)
    assert loss(eye, eye, 1.0, 0.0).item() == pytest.approx(softplus(-1) + math.log(2))


def test_each_pair_is_a_question_of_its_own():
    """Cosines 0.6 and 0 of the first picture, 0.8 and 1 of the second; scale 2, bias -1."""
    image, text = torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    matches = softplus(-(2 * 0.6 - 1)) + softplus(-(2 * 1.0 - 1))
    others = softplus(2 * 0.0 - 1) + softplus(2 * 0.8 - 1)
    assert loss(image, text, 2.0, -1.0).item() == pytest.approx((matches + others) / 2)


def test_its_start_values_are_those_of_the_paper():
    """At the cosine 0, scale 10 and bias -10: each match costs 10, all others nearly nothing."""
    parsed = base.parse({"name": "siglip"})
    starts = parsed.initial_logits()
    assert (math.exp(starts["logit_scale"]), starts["logit_bias"]) == (pytest.approx(10), -10)
    image, text = torch.eye(8)[:4], torch.eye(8)[4:]
    assert loss(image, text, 10.0, -10.0).item() == pytest.approx(10, abs=1e-3)
