"""Worst groups and macro F1, by hand and against scikit-learn."""

import io

import numpy as np
import pytest
import torch

from vlp.data.write import TarFile
from vlp.evaluation.run import evaluate, find_task
from vlp.evaluation.suites import datacomp38
from vlp.evaluation.tasks.groups import ASKED, macro_f1
from vlp.types import UserError

NAMES = ["#ff0000", "#00ff00", "#0000ff", "#ffff00", "#00ffff", "#ffffff"]


def write(directory, picture, shown: list[tuple[str, int, list[int]]]):
    """A picture of a colour, the class it is said to be of, and its metadata."""
    (directory / "test").mkdir(parents=True)
    (directory / "test" / "nshards.txt").write_text("1")
    (directory / "classnames.txt").write_text("\n".join(NAMES))
    (directory / "zeroshot_classification_templates.txt").write_text("{c}")
    with TarFile(directory / "test" / "0.tar") as tar:
        for number, (colour, label, metadata) in enumerate(shown):
            array = io.BytesIO()
            np.save(array, np.array(metadata))
            members = {"png": picture(colour), "cls": str(label).encode(), "npy": array.getvalue()}
            tar.write(str(number), members)
    return directory


def test_the_worst_group_counts_and_all_have_a_row(tmp_path, picture, encoder) -> None:
    shown = [(NAMES[0], 0, [0, 9, 0]), (NAMES[1], 0, [0, 9, 0]), (NAMES[2], 2, [3, 9, 2]), (NAMES[3], 3, [3, 8, 3])]
    path = write(tmp_path / "wds_wilds-fmow_test", picture, shown)
    (result,) = evaluate(encoder, [f"groups:{path}"], 4, "tiny", "none")
    assert result.scores.metrics["acc_worst_region"] == 0.5
    assert result.scores.metrics["acc1"] == 0.75
    assert [(row.table, row.name, row.number, row.score) for row in result.scores.categories] == [
        ("region", "0", 2, 0.5),
        ("region", "3", 2, 1.0),
    ]
    assert result.scores.labels["acc_worst_region"] == "top-1 of the worst region (0)"
    assert result.task == "zeroshot_classification"


def test_dollar_street_counts_the_first_five(tmp_path, picture, encoder) -> None:
    shown = [("#000000", label, [label % 2, 0, 0]) for label in range(6)]
    path = write(tmp_path / "wds_dollar_street_test", picture, shown)
    (result,) = evaluate(encoder, [f"groups:{path}"], 4, "tiny", "none")
    # Black is furthest from white, the last class, which alone is not among the first five: one of three in its group.
    assert result.scores.metrics["acc_top5_wg"] == pytest.approx(2 / 3)


def test_macro_f1_is_that_of_scikit_learn_over_the_classes_shown(tmp_path, picture, encoder) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    label_N, predicted_N = torch.randint(0, 7, (2, 200), generator=generator)
    predicted_N[:20] = 8
    theirs = metrics.f1_score(label_N, predicted_N, average="macro", labels=label_N.unique())
    assert macro_f1(predicted_N, label_N, 10) == pytest.approx(theirs, abs=1e-12)

    shown = [(NAMES[0], 0, [0]), (NAMES[0], 0, [0]), (NAMES[0], 1, [0]), (NAMES[1], 1, [0])]
    path = write(tmp_path / "iwildcam", picture, shown)
    (result,) = evaluate(encoder, [f"groups:{path}"], 4, "tiny", "none")
    assert result.scores.metrics["F1-macro_all"] == pytest.approx((4 / 5 + 2 / 3) / 2)


@pytest.mark.parametrize("name", ["wds_geode_test", "iwildcam"])
def test_a_collapsed_model_has_none_of_it(tmp_path, picture, encoder, monkeypatch, name) -> None:
    path = write(tmp_path / name, picture, [(colour, 0, [0]) for colour in NAMES])
    monkeypatch.setattr(encoder, "encode_image", lambda image: torch.ones(len(image), 3))
    monkeypatch.setattr(encoder, "encode_text", lambda text: torch.ones(len(text), 3))
    (result,) = evaluate(encoder, [f"groups:{path}"], 4, "tiny", "none")
    assert next(iter(result.scores.metrics.values())) == 0


@pytest.mark.parametrize(("name", "value"), [("wds_geode_test", 1.0), ("iwildcam", 1.0)])
def test_the_first_of_two_classes_with_the_same_prompts_wins(tmp_path, picture, encoder, name, value) -> None:
    path = write(tmp_path / name, picture, [(NAMES[0], 0, [0]), (NAMES[1], 1, [0])])
    (path / "classnames.txt").write_text("\n".join([*NAMES[:2], *NAMES[:2]]))
    (result,) = evaluate(encoder, [f"groups:{path}"], 4, "tiny", "none")
    assert next(iter(result.scores.metrics.values())) == value == result.scores.metrics["acc1"]


def test_other_sets_and_sets_without_groups_are_refused(tmp_path, picture) -> None:
    path = write(tmp_path / "wds_cars_test", picture, [(NAMES[0], 0, [0])])
    with pytest.raises(UserError, match="is none of fmow, geode, dollar_street, iwildcam"):
        find_task(f"groups:{path}")
    assert find_task(path).name == "wds_cars_test"
    different = write(tmp_path / "geode", picture, [(NAMES[0], 0, [0]), (NAMES[0], 0, [0, 1])])
    with pytest.raises(UserError, match="different numbers of fields"):
        find_task(f"groups:{different}")


def test_the_suite_asks_for_these_metrics() -> None:
    entries = {entry.name: entry for entry in datacomp38.SUITE.entries if entry.task == "groups"}
    assert sorted(entry.metrics[0] for entry in entries.values()) == sorted(asked.metric for asked in ASKED.values())
    assert all(any(key in place for key in ASKED) for entry in entries.values() for place in entry.places)
