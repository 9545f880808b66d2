"""Alignment, uniformity and cross-modal uniformity: their values on known sets, exact on any number of processes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.durations import Span
from vlp.evaluation import geometry
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.types import UserError

NAMES = ("alignment", "uniformity", "cross_uniformity")
SPREADING = NAMES[1:]
ROWS = 8


def features(seed: int, rows: int = ROWS, width: int = 6) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=random, dtype=torch.float64), dim=1)


def embedded(image: Tensor, text: Tensor, scale: float = 5.0) -> Embeddings:
    return Embeddings(image[None], text[None], torch.tensor(scale, dtype=image.dtype), torch.zeros(()))


def loss(name: str, image: Tensor, text: Tensor, **options: Any) -> Tensor:
    return base.parse({"name": name, **options}).loss(embedded(image, text)).total


def dense(name: str, image: Tensor, text: Tensor, t: float = 2.0) -> Tensor:
    """The formulas, written out."""
    if name == "alignment":
        return (image - text).square().sum(1).mean()
    if name == "uniformity":
        return sum((-t * F.pdist(z).square()).exp().mean().log() for z in (image, text)) / 2
    others = ~torch.eye(len(image)).bool()
    distances = (image[:, None] - text[None]).square().sum(-1)
    return (-t * distances[others]).exp().mean().log()


def simplex(points: int) -> Tensor:
    """Points at equal distances, as far apart as they can be."""
    return F.normalize(torch.eye(points, dtype=torch.float64) - 1 / points, dim=1)


EQUAL = features(0, 1).expand(5, 6)
KNOWN = {  # points, log mean exp(-2 ||z_i - z_j||^2)
    "identical": (EQUAL, 0.0),
    "orthonormal": (torch.eye(7, dtype=torch.float64), -4.0),
    "simplex of 3": (simplex(3), -6.0),
    "simplex of 9": (simplex(9), -4.5),
    "antipodes": (torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64), -8.0),
}


@pytest.mark.parametrize("points", KNOWN)
@pytest.mark.parametrize("name", SPREADING)
def test_known_sets(name, points):
    """Texts in the pictures' places: matching pairs, at distance 0, are left out of the cross-modal mean."""
    points, expected = KNOWN[points]
    assert loss(name, points, points).item() == pytest.approx(expected, abs=1e-12)
    single = loss(name, points.float(), points.float())
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, abs=3e-6)


@pytest.mark.parametrize("name", SPREADING)
def test_random_directions_of_many_dimensions(name):
    image, text = features(0, 400, 512), features(1, 400, 512)
    assert loss(name, image, text).item() == pytest.approx(-4 + 8 / 512, abs=2e-3)


def test_uniformity_is_half_pictures_half_texts():
    image, text = KNOWN["antipodes"][0], KNOWN["identical"][0][:2, :2]
    text = F.normalize(text, dim=1)
    found = base.parse({"name": "uniformity"}).loss(embedded(image, text))
    assert found.total.item() == pytest.approx(-4, abs=1e-12)
    assert {name: round(value.item(), 9) for name, value in found.parts.items()} == {
        "uniformity_loss": -4.0,
        "image_uniformity": -8.0,
        "text_uniformity": 0.0,
    }


def test_uniformity_is_what_evaluation_measures():
    image, text = features(0, 50), features(1, 50)
    parts = base.parse({"name": "uniformity"}).loss(embedded(image, text)).parts
    assert parts["image_uniformity"].item() == pytest.approx(geometry.uniformity(image), abs=1e-12)
    assert parts["text_uniformity"].item() == pytest.approx(geometry.uniformity(text), abs=1e-12)


def test_self_pairs_do_not_count():
    """Regression: with j = k in the mean, as a paper writes it, a constant inside the logarithm damps the gradient."""
    image = features(0)
    with_self = (-2 * (image[:, None] - image[None]).square().sum(-1)).exp().mean().log()
    found = loss("uniformity", image, image)
    assert found < with_self - 0.1
    share = (ROWS - 1) * found.exp() / ROWS + 1 / ROWS
    torch.testing.assert_close(share.log(), with_self)


def test_alignment_is_the_mean_cosine_turned_round():
    image, text = features(0), features(1)
    cosines = (image * text).sum(1)
    torch.testing.assert_close(loss("alignment", image, text), 2 - 2 * cosines.mean(), rtol=1e-12, atol=1e-12)
    assert loss("alignment", image, image) == 0
    assert loss("alignment", image, -image).item() == pytest.approx(4)
    near = F.normalize(image + 1e-4 * text, dim=1)
    assert loss("alignment", image.float(), near.float()).item() == pytest.approx(
        loss("alignment", image, near).item(), rel=1e-2
    ), "not the difference of two numbers near 2"


@pytest.mark.parametrize("t", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_those_of_the_formula(name, t):
    """Along the sphere: what leads off it is lost in the normalisation."""
    options = {"t": t} if name in SPREADING else {}
    inputs = [features(0), features(1)]
    inputs[1][0] = -inputs[0][0]
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        ours = [x.to(dtype).requires_grad_() for x in inputs]
        exact = [x.clone().requires_grad_() for x in inputs]
        found, expected = loss(name, *ours, **options), dense(name, *exact, t)
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
        gradients = torch.autograd.grad(found, ours), torch.autograd.grad(expected, exact)
        for actual, right, point in zip(*gradients, inputs, strict=True):
            difference = actual.double() - right
            along = difference - (difference * point).sum(1, keepdim=True) * point
            torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_finite_differences(name):
    def of_raw(image: Tensor, text: Tensor) -> Tensor:
        return loss(name, F.normalize(image, dim=1), F.normalize(text, dim=1))

    inputs = [(2 * features(seed, 4, 3)).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(of_raw, inputs)


@pytest.mark.parametrize("name", NAMES)
def test_rotations_change_nothing_and_ranges_hold(name):
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    low, high = (0, 4) if name == "alignment" else (-8, 0)
    for seed in range(5):
        image, text = features(seed), features(seed + 50)
        value = loss(name, image, text)
        torch.testing.assert_close(loss(name, image @ rotation, text @ rotation), value, rtol=1e-12, atol=1e-12)
        assert low <= value <= high


@pytest.mark.parametrize("name", NAMES)
def test_the_logit_scale_is_left_alone(name):
    image = features(0).requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    total = base.parse({"name": name}).loss(Embeddings(image[None], features(1)[None], scale, torch.zeros(()))).total
    total.backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert scale.grad is None or scale.grad == 0


@pytest.mark.parametrize("name", NAMES)
def test_after_its_schedule_infonce_is_what_it_was_to_the_bit(name):
    fading = base.parse({"name": name, "weight": {"start": 1, "end": 0, "after": 10}})
    infonce, given = base.parse({"name": "infonce"}), (features(0), features(1))
    totals, gradients = [], []
    for objectives in (
        [infonce],
        [infonce, fading.at(Span(20, ROWS, 100), 10)],
        [infonce, fading.at(Span(20, 8, 9), 9)],
    ):
        leaf = given[0].clone().requires_grad_()
        totals.append(base.combined_loss(objectives, embedded(leaf, given[1])).total)
        gradients.append(torch.autograd.grad(totals[-1], leaf)[0])
    assert torch.equal(totals[0], totals[1])
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(totals[0], totals[2])


def test_all_terms_add_up():
    image, text = features(0), features(1)
    names = ("infonce", *NAMES)
    found = base.combined_loss([base.parse({"name": name}) for name in names], embedded(image, text))
    torch.testing.assert_close(found.total.double(), sum(loss(name, image, text) for name in names))
    assert {"contrastive_loss", *(f"{name}_loss" for name in NAMES)} <= found.parts.keys()


def value_and_gradients(rank: int, world: int, rows: int, name: str) -> tuple[float, Tensor, Tensor]:
    """Loss of this rank, and the gradients of the mean over ranks by its own features."""
    local = slice(rank * rows // world, (rank + 1) * rows // world)
    image, text = (features(seed, rows)[local].requires_grad_() for seed in (0, 1))
    total = loss(name, image, text)
    (total + 0 * (image.sum() + text.sum())).backward()
    assert image.grad is not None
    assert text.grad is not None
    return total.item(), image.grad / world, text.grad / world


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("world", "rows"), [(2, 8), (4, 8), (4, 4)])
def test_processes_are_one_batch(run_ranks, world, rows, name):
    """Regression: with a row a process there is no pair on any, and public code takes the logarithm of nothing."""
    expected = value_and_gradients(0, 1, rows, name)
    results = run_ranks(value_and_gradients, world, rows, name)
    values = [value for value, _, _ in results]
    assert sum(values) / world == pytest.approx(expected[0], rel=1e-12)
    if name in SPREADING:
        assert values == [pytest.approx(expected[0], rel=1e-12)] * world, "the same on each"
    for place in (1, 2):
        found = torch.cat([result[place] for result in results])
        torch.testing.assert_close(found, expected[place], rtol=1e-10, atol=1e-13)


def test_the_logarithm_is_of_one_mean_and_not_the_mean_of_logarithms():
    """Regression: public code takes it on each device."""
    image = features(0)
    apart = torch.stack([loss("uniformity", half, half) for half in image.split(4)]).mean()
    assert abs(loss("uniformity", image, image) - apart) > 1e-3


@pytest.mark.parametrize("name", SPREADING)
def test_one_row_is_refused(name):
    with pytest.raises(ValueError, match="a global batch of one row has none"):
        loss(name, features(0, 1), features(1, 1))


@pytest.mark.parametrize("name", SPREADING)
@pytest.mark.parametrize("t", [0, -1, 21])
def test_values_of_t_that_fp32_cannot_hold_are_refused(name, t):
    with pytest.raises(UserError, match=f"'{name}'.*t: must be"):
        base.parse({"name": name, "t": t})


def test_sharpness_narrows_what_repels():
    """exp(-t d^2) of a near and a far pair: the sharper, the more the near pair counts."""
    angle = torch.tensor([0.0, 0.3, math.pi], dtype=torch.float64)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    shares = []
    for t in (0.5, 10.0):
        leaf = points.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss("uniformity", leaf, points, t=t), leaf)
        shares.append((gradient[2].norm() / gradient[1].norm()).item())
    assert shares[1] < shares[0] / 100
