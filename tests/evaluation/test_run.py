import json
import math

import pytest
from pydantic import ValidationError

from vlp.data.write import CaptionPair, write_classification_set, write_pairs, write_retrieval_set
from vlp.evaluation.run import (
    EvaluateOptions,
    evaluate,
    find_task,
    format_table,
    metrics_for_log,
    open_tasks,
    run_tasks,
    write_results,
)
from vlp.types import UserError

COLOURS = ["#ff0000", "#00ff00", "#0000ff"]


@pytest.fixture
def sets(tmp_path, picture):
    """Four sets in one directory: two of retrieval, one of three classes, one of pairs."""
    for name in ("first", "second"):
        write_retrieval_set(tmp_path / "sets" / name, [(picture(c), "png", [c]) for c in COLOURS])
    items = [(picture(c), "png", i) for i, c in enumerate(COLOURS)]
    write_classification_set(tmp_path / "sets" / "classes", items, COLOURS, ["{c}"])
    write_pairs(tmp_path / "sets" / "pairs", {"swap": [CaptionPair(picture("#ff0000"), "png", "#ff0000", "#00ff00")]})
    return tmp_path / "sets"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("first", "zeroshot_retrieval"),
        ("classes", "zeroshot_classification"),
        ("pairs", "image_caption_selection"),
    ],
)
def test_the_layout_tells_the_task(sets, name, kind):
    task = find_task(sets / name)
    assert (task.kind, task.name) == (kind, name)
    assert find_task(f"{sets}/{name}/").name == name


def test_every_metric_has_a_chance_level(sets, encoder):
    for result in evaluate(encoder, sorted(sets.iterdir()), 4, "tiny", "none"):
        assert result.scores.metrics.keys() == result.scores.chance.keys() == result.scores.labels.keys()


def test_json_has_the_shape_of_clip_benchmark(sets, encoder):
    tasks = open_tasks(EvaluateOptions(sets=[str(sets / "classes")]))
    (result,) = run_tasks(encoder, tasks, 4, "tiny", "none", step=7)
    assert result.to_json() == {
        "dataset": "classes",
        "model": "tiny",
        "pretrained": "none",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 1.0, "acc5": None, "mean_per_class_recall": 1.0},
        "language": "en",
        "labels": {"acc1": "top-1", "acc5": "top-5", "mean_per_class_recall": "mean per class"},
        "chance": {"acc1": 1 / 3, "acc5": None, "mean_per_class_recall": 1 / 3},
        "intervals": {name: (pytest.approx(0.025 ** (1 / 3)), 1.0) for name in ("acc1", "mean_per_class_recall")},
        "categories": [],
        "num_images": 3,
        "num_texts": 3,
        "tie_rate": 0.0,
        "geometry": {"image_knn_accuracy": None, "image_probe_accuracy": None, "tolerance": None},
        "notes": ["prompts: 1 template of the set", "class names: 3 of the set (classnames.txt)"],
        "step": 7,
    }


def test_log_names(sets, encoder):
    results = evaluate(encoder, [sets / n for n in ("classes", "second", "first", "pairs")], 4, "tiny", "none")
    log = metrics_for_log(results)
    assert log["val/classes-zeroshot-val-top1"] == 1
    assert log["val/pairs/swap_accuracy"] == 1
    assert log["val/first/image_to_text_R@1"] == log["val/second/image_to_text_R@1"] == 1
    assert {"val/image_to_text_R@10", "val/text_to_image_R@5", "val/image_to_text_mean_rank"} <= log.keys()
    assert log["val/modality_gap"] == log["val/second/modality_gap"]
    assert not any(math.isnan(value) for value in log.values())  # json has no NaN

    second = next(result for result in results if result.dataset == "second")
    second.scores.log["second/image_to_text_R@1"] = 0.25
    assert metrics_for_log(results)["val/image_to_text_R@1"] == 0.25  # the bare names are the first set's


def test_results_are_written_one_a_set_or_in_one_file(sets, encoder, tmp_path):
    results = evaluate(encoder, [sets / "first", sets / "classes"], 4, "tiny", "none")
    assert write_results(results, tmp_path / "out" / "{dataset}.json") == [
        tmp_path / "out" / "first.json",
        tmp_path / "out" / "classes.json",
    ]
    assert json.loads((tmp_path / "out" / "first.json").read_text())["dataset"] == "first"

    write_results(results, tmp_path / "all.json")
    assert [r["dataset"] for r in json.loads((tmp_path / "all.json").read_text())] == ["first", "classes"]
    write_results(results[:1], tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text())["dataset"] == "first"
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(UserError, match=r"is a directory: name a file"):
        write_results(results, tmp_path)


def test_table_shows_chance_and_both_names(sets, encoder):
    table = format_table(evaluate(encoder, [sets / "first", sets / "classes"], 4, "tiny", "none"))
    line = next(line for line in table.splitlines() if "image -> text R@1 " in line)
    assert "text_retrieval_recall@1" in line
    assert "100.0" in line
    assert "33.33" in line
    assert "3 images, 3 texts" in table
    assert "acc5" not in table  # not defined for three classes
    assert max(map(len, table.splitlines())) <= 120


def test_long_names_leave_room_for_labels(sets, encoder):
    (sets / "pairs").rename(sets / "visual_genome_attribution")
    (result,) = evaluate(encoder, [sets / "visual_genome_attribution"], 4, "tiny", "none")
    long = "text_acc_positional_and_relational_context"
    for figures in (result.scores.metrics, result.scores.chance):
        figures[long] = 0.5
    result.scores.labels[long] = "Positional and Relational"
    lines = format_table([result]).splitlines()
    assert sum("Positional and Relational" in line for line in lines) == 1
    first = next(number for number, line in enumerate(lines) if "text_acc_pos" in line)
    assert "".join(line.split("│")[3].strip() for line in lines[first : first + 2]) == long
    assert " 50.00 │" in lines[first]
    assert max(map(len, lines)) <= 120


def test_the_geometry_has_a_table_of_its_own_without_per_cent(sets, encoder):
    names = ("first", "second", "classes", "pairs")
    results = evaluate(encoder, [sets / name for name in names], 4, "tiny", "none")
    results[1].scores.geometry.update(modality_gap=0.1234, image_uniformity=-3.21, text_effective_rank=2.0)
    lines = format_table(results).splitlines()
    (first, second) = (
        next(x for x in lines if f"│ {name} " in x and x.count("│") == 10) for name in ("first", "second")
    )
    assert "–" in first  # the separability of three pairs
    assert all(figure in second for figure in (" 0.123 ", " -3.21 ", " 2 "))
    assert sum(line.startswith("│ pairs ") for line in lines) == 1  # its scores only
    assert sum(line.startswith("│ classes ") for line in lines) == 2
    assert max(map(len, lines)) <= 120
    assert json.loads(json.dumps(results[1].to_json(), allow_nan=False))["geometry"]["linear_separability"] is None


def test_missing_unknown_and_outer_directories(sets, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        find_task(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "val2014").mkdir()
    with pytest.raises(UserError, match="no known layout: it must hold") as error:
        find_task(tmp_path / "empty")
    for source in ("RAIVNLab/sugar-crepe", "mertyg/vision-language", "facebook/winoground", "MMVP/MMVP_VLM"):
        assert source in str(error.value)
    with pytest.raises(UserError, match=r"name the sets inside it instead .*sets/first"):
        find_task(sets)


def test_two_sets_of_one_name_are_refused(sets, tmp_path, picture):
    write_retrieval_set(tmp_path / "other" / "first", [(picture("#ff0000"), "png", ["#ff0000"])])
    with pytest.raises(UserError, match="two evaluation sets are named 'first'"):
        open_tasks(EvaluateOptions(sets=[str(sets / "first"), str(tmp_path / "other" / "first")]))


def test_options_refuse_unknown_keys_and_zero():
    with pytest.raises(ValidationError):
        EvaluateOptions(onn=[])
    with pytest.raises(ValidationError):
        EvaluateOptions(every=0)
