"""Scores by category and by run: their order, what is folded, and which differences are marked."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from vlp.evaluation.report import categories, results
from vlp.evaluation.report.scores import Score, side_by_side
from vlp.types import UserError


def category(name: str, score: float | None, number: int = 10, interval: tuple | None = (0.1, 0.9), table="kind"):
    return {"table": table, "name": name, "number": number, "score": score, "interval": interval, "chance": 0.5}


def names(rows: list) -> list[str]:
    return [row.label for row in rows]


# ---- Bars


def test_the_lowest_scores_stand_first_and_many_are_folded():
    rows = [category(f"c_{n}", (7 * n % 40) / 40) for n in range(40)]
    (bars,) = categories.bars([{"categories": rows}])
    assert names(bars.shown)[:3] == ["c 0", "c 23", "c 6"]  # 0, 1 and 2 of 40
    assert (len(bars.shown), len(bars.folded)) == (25, 15)
    assert [row.scores[0].value for row in bars.shown + bars.folded] == [n / 40 for n in range(40)]
    assert (bars.title, bars.shown[0].chance, bars.shown[0].number) == ("kind", 0.5, 10)


def test_a_category_without_an_interval_says_little_and_stands_last():
    rows = [category("one", 0.0, 1, None), category("small", 0.5, 3), category("large", 0.5, 9), category("top", 0.9)]
    (bars,) = categories.bars([{"categories": rows}])
    assert names(bars.shown) == ["large", "small", "top", "one"]
    assert bars.shown[-1].scores[0].range() == ""


def test_tables_stand_apart_and_a_table_of_one_category_is_left_out():
    rows = [category("x", 0.1, table="a"), category("y", 0.2, table="a"), category("x", 0.3, table="b")]
    assert [bars.title for bars in categories.bars([{"categories": rows}])] == ["a"]
    assert categories.bars([{"categories": []}, None]) == []


def test_two_runs_share_the_rows_in_the_order_of_the_first():
    first = {"categories": [category("x", 0.5), category("y", 0.2)]}
    second = {"categories": [category("y", 0.9), category("z", 0.1), category("x", 0.3)]}
    (bars,) = categories.bars([first, second])
    values = {row.label: [score and score.value for score in row.scores] for row in bars.shown}
    assert list(values.items()) == [("z", [None, 0.1]), ("y", [0.2, 0.9]), ("x", [0.5, 0.3])]


# ---- Differences


def test_only_intervals_that_do_not_overlap_are_marked():
    first = (0.5, (0.4, 0.6))
    others = [
        (0.7, (0.61, 0.8)),
        (0.3, (0.2, 0.39)),
        (0.65, (0.6, 0.7)),
        (0.9, None),
        (0.9, (None, None)),
        (None, None),
    ]
    found = side_by_side([first, *others])
    assert [score and score.against for score in found] == ["", "higher", "lower", "", "", "", None]
    assert side_by_side([(0.1, None), (0.9, (0.8, 1.0))])[1] == Score(0.9, (0.8, 1.0))
    assert side_by_side([(math.nan, None), (0.9, (0.8, 1.0))]) == [None, Score(0.9, (0.8, 1.0))]


def test_an_interval_is_written_in_per_cent():
    assert Score(0.5, (0.41, 0.5849)).range() == "41.0–58.5"


# ---- Results in files


def result(**changes) -> dict:
    content = {"dataset": "s", "task": "image_caption_selection", "metrics": {"text_acc": 0.5}, "num_images": 4}
    return content | {"num_texts": 8} | changes


def test_results_are_read_from_a_run_or_a_file(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "s.json").write_text(json.dumps(result()))
    (tmp_path / "evaluation" / "bad.json").write_text("[1, {")
    (tmp_path / "evaluation" / "sheet.json").write_text('{"kind": "vlp data sheet"}')
    (tmp_path / "evaluation" / "table.json").write_text(json.dumps(result(dataset="x", categories=[{"name": "one"}])))
    found, others = results.read_directory(tmp_path / "evaluation")
    assert found == {"s": {**results.NO_RESULT, **result()}}
    assert [path.name for path in others] == ["bad.json", "sheet.json", "table.json"]
    assert results.read_beside(tmp_path, "a").of_set == found
    (tmp_path / "several.json").write_text(json.dumps([result(), result(dataset="t", metrics={"acc1": math.nan})]))
    assert list(results.read_beside(tmp_path / "several.json", "b").of_set) == ["s", "t"]


def test_nothing_to_stand_beside_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no .*gone.*vlp eval --output"):
        results.read_beside(tmp_path / "gone", "gone")
    with pytest.raises(UserError, match=r"evaluation has no result.*vlp eval MODEL"):
        results.read_beside(tmp_path, "empty")


def test_other_sets_of_the_same_name_are_left_out_and_named():
    other = results.StoredResults("b", {"s": result(num_images=5), "t": result(dataset="t")})
    (kept,), (sentence,) = results.without_other_questions([other], {"s": result()})
    assert list(kept.of_set) == ["t"]
    assert sentence == ("The figures of b on s are of another set (num_images 5 and not 4) and were left out.")
    same = results.StoredResults("b", {"s": result(metrics={})})
    assert results.without_other_questions([same], {"s": result()}) == ([same], [])


def test_runs_go_by_the_last_part_of_their_paths_where_that_tells_them_apart():
    assert results.short_names([Path("/runs/a"), Path("/runs/b.json")]) == ["a", "b"]
    assert results.short_names([Path("/x/a"), Path("/y/a")]) == ["/x/a", "/y/a"]
