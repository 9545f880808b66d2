"""Charts and figures of the report, and what it says about the common space."""

from __future__ import annotations

import html
import json
import math
import re

import numpy as np
import pytest
import torch

from vlp.evaluation import geometry
from vlp.evaluation.report import curves, figures, space, values
from vlp.evaluation.report.gather import SetResult


def points(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_figures_find_their_charts():
    row = {f"val/s/{d}_R@{k}": 0.5 for d in ("image_to_text", "text_to_image") for k in (1, 5)}
    row |= {
        "val/image_to_text_R@1": 0.5,
        "val/c-zeroshot-val-top1": 0.4,
        "val/p/one_accuracy": 0.3,
        "val/p/micro_accuracy": 0.3,
    }
    rows = [
        {"step": n, "samples": n, "train/loss": 1.0, "train/contrastive_loss": 1.0, "train/lr": 0.1} for n in (5, 9)
    ]
    rows[0]["train/grad_norm"] = math.nan
    found = {chart.title: chart for chart in curves.charts([*rows, {"step": 9, "samples": 9, **row}], [])}
    assert list(found) == [
        "Loss",
        "Retrieval: s",
        "Zero-shot top-1 accuracy",
        "Right choices: p",
        "Learning rate",
    ]
    assert [s.name for s in found["Loss"].series] == ["loss"]  # a single objective's part is the loss again
    assert len(found["Retrieval: s"].series) == 4
    assert [s.name for s in found["Right choices: p"].series] == ["one"]
    assert {chart.x_range for chart in found.values()} == {(0, 9)}


def test_lines_of_categories_stand_without_their_means():
    names = ["add_a", "add_b", "swap_a", "swap_b", "add", "swap", "macro", "micro", "of_3", "of_4", "of_5"]
    row = {f"val/crepe/{name}_accuracy": 0.5 for name in names}
    row |= {"val/aro/micro_accuracy": 0.4, "val/aro/macro_accuracy": 0.3, "val/wino/text_score": 0.2}
    row |= {"val/wino/image_score": 0.2, "val/wino/group_score": 0.1}
    results = [
        SetResult({"dataset": "crepe", "chance": {"text_acc": 0.2} | {f"text_acc_{name}": 0.5 for name in names}}, {}),
        SetResult({"dataset": "aro", "chance": {"text_acc": 0.2, "text_acc_macro": 0.5}}, {}),
        SetResult({"dataset": "wino", "chance": {"text_acc": 0.25, "image_acc": 0.25, "acc": 1 / 6}}, {}),
    ]
    found = {chart.title: chart for chart in curves.charts([{"step": 9, "samples": 9, **row}], results)}
    lines = {title: [series.name for series in chart.series] for title, chart in found.items()}
    assert lines == {
        "Right choices: crepe": ["add a", "add b", "swap a", "swap b", "of 3", "of 4", "of 5"],
        "Right choices: aro": ["micro", "macro"],
        "Twins: wino": ["text score", "image score", "group score"],
    }
    crepe = found["Right choices: crepe"].series
    assert len({(series.colour, series.style) for series in crepe}) == len(crepe)
    assert max(series.colour for series in crepe) == 5
    assert [chart.levels for chart in found.values()] == [
        [("chance", 0.5)],
        [],
        [("chance, text and image", 0.25), ("chance, group", 1 / 6)],
    ]


def test_figures_of_the_embeddings_share_charts_by_their_range():
    figures = [f"s/{name}" for name in geometry.FIGURES if not name.startswith(("image_knn", "image_probe", "toler"))]
    figures += ["c/image_knn_accuracy", "c/image_probe_accuracy", "c/tolerance"]
    bare = {"val/modality_gap": 0.5, "val/s/text_accuracy": 0.5}
    rows = [{"step": n, "samples": n, **bare, **{f"val/{name}": -0.5 for name in figures}} for n in (5, 9)]
    found = {chart.title: chart for chart in curves.charts(rows, [])}
    lines = {title: [series.name for series in chart.series] for title, chart in found.items()}
    assert lines == {
        "Right choices: s": ["text"],
        "Pictures against texts: s": ["modality gap", "linear separability", "alignment", "penalty entropy"],
        "Uniformity: s": ["pictures", "texts"],
        "Effective rank: s": ["pictures", "texts"],
        "Image tower: c": ["10 nearest", "linear probe", "tolerance"],
    }
    assert set(curves.GEOMETRY) == set(geometry.FIGURES)
    assert all(len({series.colour for series in chart.series}) == len(chart.series) for chart in found.values())
    assert {chart.unit for title, chart in found.items() if "choices" not in title} == {"number"}


def test_a_chart_keeps_its_values_for_hover():
    points = [(float(n), n / 10) for n in range(11)]
    svg = str(figures.Chart("T", [figures.Series("a & b", points)], "percent").svg())
    hover = json.loads(html.unescape(re.search(r'data-hover="([^"]*)"', svg)[1]))
    assert hover["lines"] == [["a & b", 0, [list(point) for point in points]]]
    assert hover["y"] == [0, 1]


def test_long_series_are_thinned_without_moving():
    points = [(float(n), float(n % 2)) for n in range(100_000)]
    thin = values.thin(points)
    assert len(thin) <= values.MAX_POINTS
    assert thin[-1] == points[-1]
    assert all(abs(y - 0.5) < 0.01 for _, y in thin[:-1])


def test_smoothing_starts_at_the_first_value():
    assert values.smoothed([(0, 4.0), (1, 4.0)]) == [(0, pytest.approx(4)), (1, pytest.approx(4))]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.912, "percent", "91.2 %"),
        (0.0002, "percent", "0.02 %"),
        (12800, "number", "12,800"),
        (3e-5, "number", "3.00e-5"),
    ],
)
def test_figures_are_written_as_people_do(value, unit, text):
    assert values.format_value(value, unit) == text


def test_similarities_are_counted_once_each():
    images, texts = points(0, 90), points(0, 10, 90)
    matching, other, (low, high) = space.similarity_counts(images, texts, torch.tensor([0, 0, 1]))
    assert (matching.sum(), other.sum()) == (3, 3)
    assert (low, high) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
    mean_matching, mean_other = space.mean_similarities(images, texts, torch.tensor([0, 0, 1]))
    assert mean_matching == pytest.approx((1 + np.cos(np.deg2rad(10)) + 1) / 3)
    assert mean_other == pytest.approx((0 + np.cos(np.deg2rad(80)) + 0) / 3, abs=1e-7)
