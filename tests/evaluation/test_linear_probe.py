"""The linear probe and the nearest pictures of a train split."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.evaluation import linear_probe, probe
from vlp.evaluation.linear_probe import fit_linear_probe


def clouds(rows: int, classes: int = 4, noise: float = 1.0, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(rows) % classes
    noise_ND = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(torch.eye(width)[labels] + noise * noise_ND, dim=1), labels


def test_as_scikit_learn_does_at_the_same_strength():
    model = pytest.importorskip("sklearn.linear_model")
    features, labels = clouds(400)
    fitted = fit_linear_probe(features, labels, 4)
    scaled = fitted.scaled(features).numpy()
    theirs = model.LogisticRegression(C=1 / (fitted.strength * 400), tol=1e-8, max_iter=10_000).fit(scaled, labels)
    asked, _ = clouds(300, seed=1)
    ours = fitted.logits(asked)
    assert ours.argmax(dim=1).tolist() == theirs.predict(fitted.scaled(asked).numpy()).tolist()
    expected = theirs.predict_log_proba(fitted.scaled(asked).numpy())
    np.testing.assert_allclose(ours.log_softmax(dim=1).numpy(), expected, atol=1e-3)


def test_the_strength_is_the_best_of_the_grid_on_a_fifth_of_train():
    features, labels = clouds(200, noise=1.5)
    fitted = fit_linear_probe(features, labels, 4)
    asked = probe.held_out(labels)
    scaled = fitted.scaled(features)
    accuracies = {}
    for power in linear_probe.POWERS:
        found = probe.fit(scaled[~asked], labels[~asked], 4, 10**power, max_steps=1000)
        accuracies[power] = float((F.linear(scaled[asked], *found).argmax(1) == labels[asked]).double().mean())
    assert fitted.held_out_accuracy >= max(accuracies.values())
    assert min(accuracies.values()) < fitted.held_out_accuracy
    assert f"{fitted.strength:.3g}" in fitted.note()


def test_of_strengths_that_are_equally_right_the_surest_is_taken():
    features, labels = clouds(100, noise=0.2)
    fitted = fit_linear_probe(features, labels, 4)
    assert fitted.held_out_accuracy == 1
    assert fitted.strength < 1e-3  # all of the grid are right


def test_the_scale_of_features_and_where_they_lie_do_not_matter():
    features, labels = clouds(200)
    a, b = fit_linear_probe(features, labels, 4), fit_linear_probe(100 * features + 7, labels, 4)
    assert a.strength == b.strength
    torch.testing.assert_close(a.logits(features), b.logits(100 * features + 7), atol=1e-3, rtol=0)


def test_classes_of_fewer_than_five_pictures_leave_the_strength_unsearched():
    features, labels = clouds(12, noise=0.1)
    fitted = fit_linear_probe(features, labels, 4)
    assert fitted.strength == linear_probe.WITHOUT_SPLIT
    assert "unsearched" in fitted.note()
    assert (fitted.logits(features).argmax(1) == labels).all()


def test_a_class_without_pictures_is_never_said():
    features, labels = clouds(60, classes=3)
    assert not (fit_linear_probe(features, labels, 5).logits(features).argmax(1) >= 3).any()


def test_equal_features_leave_the_most_frequent_class():
    fitted = fit_linear_probe(torch.ones(40, 8), torch.tensor([0] * 10 + [1] * 30), 2)
    assert fitted.logits(torch.ones(1, 8)).argmax() == 1


def test_of_many_classes_the_sum_over_tiles_is_the_whole(monkeypatch):
    features, labels = clouds(200)
    whole = probe.fit(features.double(), labels, 4)
    monkeypatch.setattr(probe, "TILE_ELEMENTS", 4 * 7)
    for one, other in zip(probe.fit(features.double(), labels, 4), whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


# ---- Nearest pictures


def test_neighbours_by_hand():
    angle = torch.tensor([0.0, 10, 20, 90]).deg2rad()
    keys, labels = torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([0, 1, 1, 0])
    query = keys[:1]
    assert probe.knn_right(query, torch.tensor([0]), keys, labels, 1).tolist() == [True]
    assert probe.knn_right(query, torch.tensor([0]), keys, labels, 2).tolist() == [False]  # a vote each
    assert probe.knn_right(query, torch.tensor([1]), keys, labels, 3).tolist() == [True]
    assert probe.knn_right(query, torch.tensor([7]), keys, labels, 3).tolist() == [False]  # no picture of it in train


def test_nearest_as_scikit_learn_does():
    neighbours = pytest.importorskip("sklearn.neighbors")
    (keys, key_labels), (queries, labels) = clouds(300, noise=0.5), clouds(100, noise=0.5, seed=1)
    theirs = neighbours.KNeighborsClassifier(5).fit(keys.numpy(), key_labels.numpy())
    votes = theirs.predict_proba(queries.numpy())
    alone = (votes == votes.max(1, keepdims=True)).sum(1) == 1  # where votes are equal it takes the first class
    expected = alone & (votes.argmax(1) == labels.numpy())
    assert probe.knn_right(queries, labels, keys, key_labels, 5).tolist() == expected.tolist()
