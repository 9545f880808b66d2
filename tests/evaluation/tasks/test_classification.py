import math

import pytest

from vlp.data.write import write_classification_set
from vlp.evaluation.tasks.classification import Task

CLASSES = ["#ff0000", "#00ff00", "#0000ff", "#ffff00", "#00ffff", "#ff00ff"]


def make(directory, picture, labels, classes=CLASSES, templates=("{c} flat", "{c} plain")):
    items = [(picture(CLASSES[shown]), "png", label) for shown, label in labels]
    write_classification_set(directory, items, classes, templates)
    return Task(directory)


def test_accuracies_by_hand(tmp_path, picture, encoder):
    # Six pictures of class 0, one of them really green; one picture of class 2.
    task = make(tmp_path / "colours", picture, [(0, 0)] * 5 + [(1, 0), (2, 2)])
    scores = task.run(encoder, batch_size=4)
    assert scores.metrics["acc1"] == pytest.approx(6 / 7)
    assert scores.metrics["mean_per_class_recall"] == pytest.approx((5 / 6 + 1) / 2)
    assert scores.chance == pytest.approx({"acc1": 1 / 6, "acc5": 5 / 6, "mean_per_class_recall": 1 / 6})
    assert scores.log["colours-zeroshot-val-top1"] == scores.metrics["acc1"]
    assert scores.log["colours-zeroshot-val-top5"] == scores.metrics["acc5"]
    assert scores.details["rank_of_label"][:5] == [1] * 5
    assert scores.num_texts == 12


def test_top5_is_not_defined_below_five_classes(tmp_path, picture, encoder):
    scores = make(tmp_path / "set", picture, [(0, 0), (1, 1)], classes=CLASSES[:4]).run(encoder, batch_size=4)
    assert math.isnan(scores.metrics["acc5"])
    assert math.isnan(scores.chance["acc5"])
    assert list(scores.log) == ["set-zeroshot-val-top1"]  # nor are probes, of a picture a class


def test_the_image_tower_is_probed(tmp_path, picture, encoder):
    scores = make(tmp_path / "set", picture, [(i % 3, i % 3) for i in range(36)]).run(encoder, batch_size=8)
    expected = {"image_knn_accuracy": 1, "image_probe_accuracy": 1, "tolerance": pytest.approx(1)}
    assert scores.geometry == expected
    assert {name: scores.log[f"set/{name}"] for name in expected} == expected


def test_a_constant_model_scores_zero(tmp_path, picture, constant_encoder):
    scores = make(tmp_path / "set", picture, [(0, 0), (1, 1)]).run(constant_encoder, batch_size=4)
    assert scores.metrics == {"acc1": 0, "acc5": 0, "mean_per_class_recall": 0}
    scores = make(tmp_path / "more", picture, [(0, i % 3) for i in range(36)]).run(constant_encoder, batch_size=4)
    assert scores.geometry["image_knn_accuracy"] == 0
    assert scores.geometry["image_probe_accuracy"] == pytest.approx(1 / 3)
    assert scores.tie_rate == 1


def test_equal_prompts_are_embedded_once(tmp_path, picture, encoder):
    make(tmp_path / "set", picture, [(0, 0)], templates=["{c} flat", "{c} flat"]).run(encoder, batch_size=4)
    assert encoder.num_texts_seen == 6
