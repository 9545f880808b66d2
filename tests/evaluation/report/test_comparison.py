"""The page of a directory of results: stars only where they are deserved, answers of two models, no model needed."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlp.data.write import CaptionPair, write_classification_set, write_pairs, write_retrieval_set
from vlp.evaluation import answers
from vlp.evaluation.directory import ResultsDirectory
from vlp.evaluation.report.comparison import is_directory_of_results, write_comparison
from vlp.evaluation.report.radar import radar
from vlp.evaluation.results import Result, write_json
from vlp.evaluation.run import find_task
from vlp.types import UserError

COLOURS = [f"#{red:02x}{green:02x}{blue:02x}" for red in (0, 128, 255) for green in (0, 128, 255) for blue in (0, 255)]


@pytest.fixture
def directory(tmp_path: Path, picture, encoder) -> ResultsDirectory:
    """Results of ``good``, which answers all rightly, and of ``bad``, which has a third of the ranks wrong."""
    sets = tmp_path / "sets"
    write_retrieval_set(sets / "found", [(picture(c), "png", [c, f"{c} again"]) for c in COLOURS])
    items = [(picture(c), "png", i) for i, c in enumerate(COLOURS)]
    write_classification_set(sets / "wds_imagenetv2", items, COLOURS, ["{c}"])
    write_pairs(sets / "pairs", {"swap": [CaptionPair(picture(c), "png", c, "#123456") for c in COLOURS]})
    kept = ResultsDirectory(tmp_path / "results")
    for name in ("found", "wds_imagenetv2", "pairs"):
        task = find_task(sets / name)
        embeddings = task.embed(encoder, 8)
        scores = task.score(embeddings)
        about = {"set": str(sets / name), "preprocess": {"size": [4, 4]}}
        about |= {"suites": ["imagenet-shifts"]} if name == "wds_imagenetv2" else {}
        good = Result(name, task.kind, "models/good", "model", scores, about=about)
        arrays = answers.of(task, scores, embeddings)
        kept.write(good, arrays)
        worse = {k: _spoiled(k, v) for k, v in arrays.items()}
        figures = dict.fromkeys(scores.metrics, 2 / 3)
        low = dict.fromkeys(scores.metrics, (0.4, 0.9))
        kept.write(replace(good, model="models/bad", scores=replace(scores, metrics=figures, intervals=low)), worse)
    return kept


def _spoiled(name: str, values: np.ndarray) -> np.ndarray:
    found = values.copy()
    if name.endswith(("rank", "rank_of_label")):
        found[::3] = 7
    if name == "margin":
        found[::3] = -0.5
    if name == "predicted":
        found[::3] = 5
    return found


def section(page: str, name: str) -> str:
    return page.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def test_the_page_needs_neither_model_nor_network(directory: ResultsDirectory) -> None:
    path = write_comparison(directory.path)
    assert path == directory.path / "report.html"
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "2 models on 3 evaluation sets" in page
    assert "good" in section(page, "models")
    assert "<code>models/good</code>" in section(page, "models")
    assert write_comparison(directory.path, path).read_text(encoding="utf-8") == page


def test_what_one_model_gets_right_and_the_other_wrong_is_counted_and_shown(directory: ResultsDirectory) -> None:
    page = write_comparison(directory.path).read_text(encoding="utf-8")
    against = section(page, "against")
    assert against.count("6 that good gets right and bad wrong") == 3  # pictures, classes, choices
    assert "12 that good gets right and bad wrong" in against
    assert "that bad gets right" not in against
    assert "both right 12, both wrong 0" in against
    assert "right answer at rank 7" in against
    assert COLOURS[5] in against  # what bad took for the class
    assert "No answers" not in section(page, "failures")


def test_a_star_is_for_a_clear_difference_only(directory: ResultsDirectory) -> None:
    page = write_comparison(directory.path).read_text(encoding="utf-8")
    assert section(page, "scores").count('class="best"') >= 3
    for path in directory.path.glob("*.details.npz"):
        path.unlink()
    page = write_comparison(directory.path).read_text(encoding="utf-8")
    assert 'class="best"' not in section(page, "scores")  # the intervals overlap, and nothing else is known
    assert "No set has the answers of two models" in page


def test_answers_that_are_not_what_a_metric_is_made_of_prove_nothing(directory: ResultsDirectory) -> None:
    """As where a figure is a mean over languages, and the ranks are of all captions together."""
    path = next(directory.path.glob("found*bad*.json"))
    content = json.loads(path.read_text())
    names = ("text_retrieval_recall@1", "image_retrieval_recall@1")
    path.write_text(json.dumps({**content, "metrics": {**content["metrics"], **dict.fromkeys(names, 0.9)}}))
    page = write_comparison(directory.path).read_text(encoding="utf-8")
    assert "difference" not in section(page, "against").partition("<h3>found</h3>")[2].partition("<h3>")[0]
    assert 'class="best"' not in section(page, "scores").partition("<b>found</b>")[2].partition("<b>pairs</b>")[0]


def test_one_model_has_no_rival(directory: ResultsDirectory) -> None:
    for path in directory.path.glob("*bad*"):
        path.unlink()
    page = write_comparison(directory.path).read_text(encoding="utf-8")
    assert "1 model on 3 evaluation sets" in page
    assert 'class="best"' not in page
    assert 'id="against"' not in page


def test_groups_say_how_many_of_their_sets_are_there(directory: ResultsDirectory) -> None:
    page = write_comparison(directory.path).read_text(encoding="utf-8")
    assert "ImageNet dist. shifts (1 of 6)" in section(page, "groups")
    assert "ImageNet (0 of 1)" not in page
    assert '<svg class="chart radar"' in section(page, "groups")


def test_means_of_groups_are_over_the_sets_that_all_models_have(directory: ResultsDirectory) -> None:
    content = json.loads(next(directory.path.glob("wds_imagenetv2*good*.json")).read_text())
    more = {**content, "dataset": "imagenet-r", "metrics": {"acc1": 0.0}}
    (directory.path / "more.json").write_text(json.dumps(more))
    groups = section(write_comparison(directory.path).read_text(encoding="utf-8"), "groups")
    assert "ImageNet dist. shifts (1 of 6)" in groups
    assert "100.0 %" in groups
    next(directory.path.glob("wds_imagenetv2*bad*.json")).unlink()
    groups = section(write_comparison(directory.path).read_text(encoding="utf-8"), "groups")
    assert "ImageNet dist. shifts (2 of 6)" in groups
    assert "50.0 %" in groups


def test_of_two_results_of_a_set_that_of_the_suite_counts(directory: ResultsDirectory) -> None:
    (stored,) = [
        content for content in directory.read() if content["dataset"] == "wds_imagenetv2" and "good" in content["model"]
    ]
    other = {**stored, "dataset": "imagenetv2", "suites": [], "metrics": {"acc1": 0.123}}
    for name in ("a", "zzz"):
        write_json(directory.path / f"{name}.json", other)
        assert "12.3 %" not in section(write_comparison(directory.path).read_text(), "groups")
        (directory.path / f"{name}.json").unlink()


def test_a_set_that_has_gone_is_named_and_differences_stay(directory: ResultsDirectory, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "sets" / "found")
    page = write_comparison(directory.path).read_text(encoding="utf-8")
    assert "The pictures of found cannot be shown" in page
    assert section(page, "scores").count('class="best"') >= 3


def test_other_questions_under_the_same_name_are_not_compared(directory: ResultsDirectory) -> None:
    path = next(directory.path.glob("found*bad*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_texts": 5}))
    page = write_comparison(directory.path).read_text(encoding="utf-8")
    assert "2 models on 4 evaluation sets" in page


def test_runs_and_empty_directories_are_no_directory_of_results(directory: ResultsDirectory, tmp_path: Path) -> None:
    assert is_directory_of_results(directory.path)
    (directory.path / "recipe.yaml").touch()
    assert not is_directory_of_results(directory.path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no results"):
        write_comparison(tmp_path / "empty")


def test_a_radar_leaves_out_a_model_that_lacks_an_axis() -> None:
    drawn = radar("three", ["a & b", "c", "d"], [[0.5, 0.5, 1.0], [0.1, None, 0.2]], [0.1, 0.1, 0.1])
    assert drawn.count('class="line solid') == 1
    assert "a &amp; b" in drawn
    assert 'd="M310.0 100.0L' in drawn  # half of the way up: 170 - 140 / 2
