"""Identities and hand-worked cases of the geometry of embeddings."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.evaluation import geometry

ROOT_HALF = 0.5**0.5


def sphere(num: int, width: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(num, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def rotation(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.double)).Q


def simplex(num: int) -> Tensor:
    """Unit vectors of equal pairwise angles: those of ``num`` corners from their middle."""
    return F.normalize(torch.eye(num, dtype=torch.double) - 1 / num, dim=1)


# ---- Uniformity


@pytest.mark.parametrize(
    ("points", "value"),
    [
        (torch.ones(5, 3) / 3**0.5, 0),
        (torch.eye(6), -4),
        (simplex(5), -4 * 5 / 4),
        (simplex(3), -4 * 3 / 2),
        (torch.tensor([[0.6, 0.8], [-0.6, -0.8]]), -8),
    ],
    ids=["one point", "orthonormal", "simplex of 5", "simplex of 3", "antipodal"],
)
def test_uniformity_of_known_points(points, value):
    assert geometry.uniformity(points) == pytest.approx(value, abs=2e-6)


def test_uniformity_takes_each_pair_once_and_none_with_itself(monkeypatch):
    points = sphere(11, 3)
    distances = torch.pdist(points.double())
    expected = float((-2 * distances.square()).exp().mean().log())
    for tile in (1, 2, 4, 11, 100):
        monkeypatch.setattr(geometry, "TILE", tile)
        assert geometry.uniformity(points) == pytest.approx(expected, abs=1e-6)


def test_uniformity_of_many_rows_is_that_of_some():
    points = sphere(40, 3)
    assert geometry.uniformity(points, max_rows=10) == geometry.uniformity(points[::4])


def test_random_directions_are_as_uniform_as_their_number_allows():
    assert geometry.uniformity(sphere(2000, 128)) == pytest.approx(-4 + 8 / 128, abs=0.005)


# ---- Alignment and gap


def test_alignment_by_hand():
    images = torch.tensor([[1.0, 0], [0, 1]])
    assert geometry.alignment(images, images) == 0
    assert geometry.alignment(images, -images) == 4
    texts = torch.tensor([[0.6, 0.8], [0, 1]])
    assert geometry.alignment(images, texts) == pytest.approx(2 - 2 * (0.6 + 1) / 2)


def test_gap_by_hand():
    images, texts = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[0.0, -1.0]])
    assert geometry.modality_gap(images, texts) == pytest.approx(math.hypot(0.5, 1.5))
    assert geometry.modality_gap(images, images.flip(0)) == 0
    assert geometry.modality_gap(texts, -texts) == 2


# ---- Separability


def test_clouds_apart_are_separable_and_one_cloud_is_not():
    cloud = sphere(2000, 16)
    images, texts = cloud[:1000], cloud[1000:]
    shift = torch.zeros(16)
    shift[0] = 3
    assert geometry.linear_separability(F.normalize(images + shift, dim=1), texts - shift) == 1
    assert geometry.linear_separability(images, texts) == pytest.approx(0.5, abs=0.05)


def test_a_small_shift_lies_between():
    shift = torch.zeros(16)
    shift[3] = 0.4  # spread of a coordinate: 0.25
    value = geometry.linear_separability(sphere(1000, 16) + shift, sphere(1000, 16, seed=1))
    assert 0.7 < value < 0.9


def test_equal_clouds_and_collapsed_ones_cannot_be_told_apart():
    cloud = sphere(200, 8)
    assert geometry.linear_separability(cloud, cloud) == 0.5
    assert geometry.linear_separability(torch.ones(50, 4) / 2, torch.ones(50, 4) / 2) == 0.5


def test_a_picture_does_not_give_its_text_away():
    """In more directions than rows any pairs can be learned by heart; both of a pair are therefore on one side."""
    points = sphere(100, 256)
    assert geometry.linear_separability(points, points) == 0.5


def test_of_many_pairs_some_are_used():
    shift = torch.zeros(16)
    shift[3] = 0.4
    images, texts = sphere(3000, 16) + shift, sphere(3000, 16, seed=1)
    some = geometry.linear_separability(images, texts, max_pairs=1000)
    assert some != geometry.linear_separability(images, texts)
    assert some == geometry.linear_separability(images[::3], texts[::3])
    assert math.isnan(geometry.linear_separability(images[:4], texts[:4]))


# ---- Effective rank


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("rows", [8, 40])
def test_k_equal_orthogonal_directions_have_rank_k(k, rows):
    directions = torch.eye(10)[torch.arange(rows - rows % k) % k]
    assert geometry.effective_rank(directions) == pytest.approx(k)
    signs = 1 - 2 * (torch.arange(len(directions)) % 2)
    assert geometry.effective_rank(directions * signs[:, None]) == pytest.approx(k)


def test_rank_of_unequal_directions_by_hand():
    # Nine rows along x and one along y: singular values 3 and 1, shares 3/4 and 1/4.
    features = torch.eye(2)[[0] * 9 + [1]]
    assert geometry.effective_rank(features) == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)))


def test_rank_is_at_most_the_number_of_rows():
    assert geometry.effective_rank(sphere(5, 64)) <= 5
    assert geometry.effective_rank(sphere(1, 64)) == pytest.approx(1)


# ---- Tolerance


def test_tolerance_by_hand():
    features = torch.tensor([[1.0, 0], [0, 1], [ROOT_HALF, ROOT_HALF], [0.6, 0.8], [0.6, 0.8], [-1, 0]])
    labels = torch.tensor([7, 7, 7, 2, 2, 5])
    # Class 7: three pairs of cosines 0, r, r. Class 2: one pair of cosine 1. Class 5 has no pair.
    assert geometry.tolerance(features, labels) == pytest.approx((2 * ROOT_HALF + 1) / 4)
    assert math.isnan(geometry.tolerance(features[:2], torch.tensor([0, 1])))


# ---- Penalty entropy


def groups(num: int) -> tuple[Tensor, Tensor]:
    return torch.arange(num), torch.arange(num)


def test_penalties_are_even_at_scale_zero_and_on_one_negative_at_a_large_scale():
    images, texts = sphere(40, 8), sphere(40, 8, seed=1)
    values = [geometry.penalty_entropy(images, texts, *groups(40), scale) for scale in (0.0, 1.0, 10.0, 100.0, 1e5)]
    assert values[0] == pytest.approx(1)
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(0, abs=1e-6)


def test_penalty_entropy_by_hand():
    # Only the first query has two negatives or more: cosines 1 and 0, so penalties e^2 : 1 at a scale of 2.
    query, keys = torch.tensor([[1.0, 0]]), torch.tensor([[0.6, 0.8], [1.0, 0], [0, 1]])
    share = math.exp(2) / (1 + math.exp(2))
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    value = geometry.penalty_entropy(query, keys, torch.tensor([4]), torch.tensor([4, 0, 1]), 2.0)
    assert value == pytest.approx(entropy / math.log(2))


def test_own_texts_are_no_negatives():
    images, texts, of = sphere(6, 4), sphere(12, 4, seed=1), torch.arange(6).repeat_interleave(2)
    only_own = texts.clone()
    only_own[:2] = images[0]
    first = geometry.penalty_entropy(images[:1], texts, torch.arange(1), of, 10.0)
    assert geometry.penalty_entropy(images[:1], only_own, torch.arange(1), of, 10.0) == pytest.approx(first)
    assert geometry.penalty_entropy(images[:1], only_own, torch.tensor([1]), of, 10.0) != pytest.approx(first)


def test_penalties_need_two_negatives_and_do_not_depend_on_tiles(monkeypatch):
    images, texts = sphere(9, 4), sphere(9, 4, seed=1)
    assert math.isnan(geometry.penalty_entropy(images[:2], texts[:2], *groups(2), 10.0))
    whole = geometry.penalty_entropy(images, texts, *groups(9), 10.0)
    monkeypatch.setattr(geometry.probe, "TILE_ELEMENTS", 20)
    assert geometry.penalty_entropy(images, texts, *groups(9), 10.0) == pytest.approx(whole)
    every_third = geometry.penalty_entropy(images[::3], texts, torch.arange(0, 9, 3), torch.arange(9), 10.0)
    assert geometry.penalty_entropy(images, texts, *groups(9), 10.0, max_queries=3) == pytest.approx(every_third)


# ---- All of a set


def test_figures_of_pairs_are_those_of_their_functions():
    images, of = sphere(20, 6), torch.tensor([*range(20), 3, 0])
    texts = F.normalize(images[of] + 0.5 * sphere(22, 6, seed=1), dim=1)
    figures = geometry.of_pairs(images, texts, of, 10.0)
    assert figures["alignment"] == pytest.approx(float(((images[of] - texts) ** 2).sum(dim=1).mean()))
    assert figures["linear_separability"] == geometry.linear_separability(images, texts[:20])
    assert figures["text_uniformity"] == geometry.uniformity(texts)
    there = geometry.penalty_entropy(images, texts, torch.arange(20), of, 10.0)
    back = geometry.penalty_entropy(texts, images, of, torch.arange(20), 10.0)
    assert figures["penalty_entropy"] == pytest.approx((there + back) / 2)


def test_rotating_both_spaces_changes_nothing():
    images, texts, of = sphere(60, 8).double(), sphere(60, 8, seed=1).double(), torch.arange(60)
    turned = geometry.of_pairs(images @ rotation(8), texts @ rotation(8), of, 10.0)
    plain = geometry.of_pairs(images, texts, of, 10.0)
    # The separating rule sees standardised columns, which do turn.
    assert abs(turned.pop("linear_separability") - plain.pop("linear_separability")) < 0.3
    assert turned == pytest.approx(plain, abs=1e-9)
    labels = torch.arange(60) % 3
    before, after = (geometry.of_classes(x, labels) for x in (images, images @ rotation(8)))
    assert after["tolerance"] == pytest.approx(before["tolerance"], abs=1e-9)
    assert after["image_knn_accuracy"] == before["image_knn_accuracy"]


def test_every_figure_has_a_meaning_and_its_range():
    images, texts, of = sphere(50, 8), sphere(50, 8, seed=1), torch.arange(50)
    figures = geometry.of_pairs(images, texts, of, 10.0) | geometry.of_classes(images, of % 5)
    assert figures.keys() == geometry.FIGURES.keys()
    ranges = {"modality_gap": (0, 2), "alignment": (0, 4), "tolerance": (-1, 1)}
    ranges |= dict.fromkeys(["image_uniformity", "text_uniformity"], (-8, 0))
    ranges |= dict.fromkeys(["image_effective_rank", "text_effective_rank"], (1, 8))
    for name, value in figures.items():
        low, high = ranges.get(name, (0, 1))
        assert low <= value <= high, name


def test_a_single_pair_is_not_a_crash():
    figures = geometry.of_pairs(sphere(1, 4), sphere(1, 4, seed=1), torch.tensor([0]), 10.0)
    undefined = {name for name, value in figures.items() if math.isnan(value)}
    assert undefined == {"linear_separability", "image_uniformity", "text_uniformity", "penalty_entropy"}
    assert all(math.isnan(value) for value in geometry.of_classes(sphere(1, 4), torch.tensor([0])).values())
