"""Probes of features: what they can read off, what they must not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.evaluation import probe


def blobs(num: int, classes: int, noise: float, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """``num`` unit vectors around as many axes as there are classes, and their classes."""
    labels = torch.arange(num) % classes
    noise_ND = torch.randn(num, width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(torch.eye(width)[labels] + noise * noise_ND, dim=1), labels


def circle(*degrees: float) -> Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


# ---- The split


def test_a_fifth_of_each_class_is_held_out():
    labels = torch.tensor([3] * 100 + [1] * 47 + [9] * 5 + [4] * 4 + [8])[torch.randperm(157)]
    mask = probe.held_out(labels)
    counts = {label: int(mask[labels == label].sum()) for label in (3, 1, 9, 4, 8)}
    assert counts[3] == 20
    assert counts[1] in (9, 10)
    assert (counts[9], counts[4], counts[8]) == (1, 0, 0)


def test_each_five_of_a_class_has_one_and_not_always_the_same():
    fives = probe.held_out(torch.zeros(500)).view(100, 5)
    assert (fives.sum(dim=1) == 1).all()
    assert (fives.sum(dim=0) > 5).all()


def test_the_kth_items_of_all_classes_are_on_one_side_however_the_rows_lie():
    a, b = (probe.held_out(labels) for labels in (torch.arange(60) % 2, torch.arange(60) // 30))
    assert torch.equal(a[::2], a[1::2])
    assert torch.equal(b[:30], b[30:])
    assert torch.equal(a[::2], b[:30])


def test_nothing_random_is_drawn():
    features, labels = blobs(200, 4, 0.8)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = probe.logistic_accuracy(features, labels), probe.knn_accuracy(features, labels)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert (probe.logistic_accuracy(features, labels), probe.knn_accuracy(features, labels)) == first


# ---- Logistic regression


def test_classes_that_stand_apart_are_read_off():
    assert probe.logistic_accuracy(*blobs(200, 4, 0.1)) == 1
    assert 0.5 < probe.logistic_accuracy(*blobs(2000, 4, 0.8)) < 0.95


def test_labels_without_a_reason_cannot_be():
    features, _ = blobs(2000, 1, 1.0)
    assert probe.logistic_accuracy(features, torch.arange(2000) % 4) == pytest.approx(0.25, abs=0.07)


def test_a_rule_of_several_columns_is_found_whatever_their_size():
    """The classes differ along the small column only, and the offset matters."""
    small = torch.linspace(-1, 1, 400)
    features = torch.stack([1e3 * torch.randn(400, generator=torch.Generator().manual_seed(0)), 1e-3 * small + 5], 1)
    assert probe.logistic_accuracy(features, (small > 0.5).long()) > 0.95


def test_the_fit_is_at_the_minimum():
    features, labels = blobs(300, 3, 0.5)
    weights, offset = probe.fit(features.double(), labels, 3)
    weights.requires_grad_()
    offset.requires_grad_()
    loss = F.cross_entropy(features.double() @ weights.T + offset, labels) + probe.L2 / 2 * weights.square().sum()
    for gradient in torch.autograd.grad(loss, [weights, offset]):
        assert gradient.abs().max() < 1e-4


def test_it_works_where_gradients_are_off_and_names_of_classes_do_not_matter():
    features, labels = blobs(200, 4, 0.8)
    with torch.no_grad():
        off = probe.logistic_accuracy(features, labels * 1000 + 7)
    assert off == probe.logistic_accuracy(features, labels)


def test_equal_features_leave_the_most_frequent_class():
    labels = torch.tensor([0] * 30 + [1] * 70)
    assert probe.logistic_accuracy(torch.full((100, 16), 0.25), labels) == pytest.approx(0.7)


def test_of_many_classes_some_stand_for_all(monkeypatch):
    seen = []
    fit = probe.fit
    monkeypatch.setattr(probe, "fit", lambda *arguments: seen.append(arguments) or fit(*arguments))
    features, labels = blobs(5 * 256, 256, 0.0, width=256)
    assert probe.logistic_accuracy(features, labels) == 1
    ((_, fitted, num_classes),) = seen
    assert (num_classes, len(fitted)) == (probe.MAX_CLASSES, 4 * probe.MAX_CLASSES)


def test_of_many_rows_as_many_of_each_class_are_used():
    features, labels = blobs(3000, 3, 0.8)
    some = probe.logistic_accuracy(features, labels, max_rows=300)
    assert 0.5 < some < 1
    by_class = torch.cat([torch.arange(3000)[labels == c][::10] for c in range(3)])
    assert some == probe.logistic_accuracy(features[by_class], labels[by_class])


@pytest.mark.parametrize(
    "labels", [[0] * 20, list(range(20)), [0, 1, 2, 3] * 4, [0] * 16 + [1] * 4], ids=["one", "all", "few", "one of two"]
)
def test_too_few_items_or_classes_are_nan(labels):
    assert math.isnan(probe.logistic_accuracy(blobs(len(labels), 4, 0.1)[0], torch.tensor(labels)))


# ---- Nearest neighbours


def test_neighbours_by_hand():
    # Nearest three of each: 0 -> 2, 4, 20 (classes 0, 1, 1); 2 -> 0 and 4, then 20; 4 -> 2, 0, 20; 20 -> 4, 2, 0.
    features, labels = circle(0, 2, 4.5, 20), torch.tensor([0, 0, 0, 1])
    assert probe.knn_accuracy(features, labels, k=1) == 3 / 4
    assert probe.knn_accuracy(features, labels, k=3) == 3 / 4
    assert probe.knn_accuracy(features, torch.tensor([0, 1, 1, 0]), k=1) == 1 / 4  # only 2 has a neighbour of its class


def test_equal_votes_count_against_the_model():
    # The two nearest of 0 are 1 (its class) and -2 (another): one vote each.
    features = circle(0, 1, -2, 180, 181, 182)
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    assert probe.knn_accuracy(features, labels, k=1) == 5 / 6  # -2 has no other of its class
    assert probe.knn_accuracy(features, labels, k=2) == 3 / 6


def test_equally_near_rows_of_other_classes_come_first():
    features = torch.ones(40, 16) / 4
    assert probe.knn_accuracy(features, torch.arange(40) % 2) == 0
    features = circle(0, 10, -10)
    assert probe.knn_accuracy(features, torch.tensor([0, 0, 1]), k=1) == 1 / 3  # 10 finds 0, which finds -10


def test_a_row_is_not_its_own_neighbour():
    features = torch.eye(12)
    assert probe.knn_accuracy(features, torch.arange(12), k=1) == 0


def test_queries_are_spaced_and_tiles_do_not_matter(monkeypatch):
    features, labels = blobs(300, 3, 0.6)
    whole = probe.knn_accuracy(features, labels)
    assert 0.5 < whole < 1
    monkeypatch.setattr(probe, "TILE_ELEMENTS", 1000)
    assert probe.knn_accuracy(features, labels) == whole
    assert probe.knn_accuracy(features, labels, max_queries=100) == pytest.approx(whole, abs=0.1)


def test_too_few_rows_or_one_class_are_nan():
    features, labels = blobs(30, 3, 0.1)
    assert probe.knn_accuracy(features, labels) == 1
    assert math.isnan(probe.knn_accuracy(features[:10], labels[:10]))
    assert math.isnan(probe.knn_accuracy(features, torch.zeros(30)))
