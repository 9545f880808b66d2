"""ARO's official files of relations and attributes, made small: colours stand for pictures, captions begin with one."""

import json
import math
import random
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vlp.data import aro_sets
from vlp.evaluation.run import evaluate, find_task
from vlp.evaluation.tasks import aro_attribution, aro_relation
from vlp.evaluation.tasks.base import SetEmbeddings
from vlp.types import UserError

RED, GREEN, BLUE = "#ff0000", "#00ff00", "#0000ff"
RELATION, ATTRIBUTION = "visual_genome_relation.json", "visual_genome_attribution.json"


def item(left, true, false, **category):
    """A part 10 pixels wide of a picture that is red, green and blue from left to right."""
    box = {"bbox_x": left, "bbox_y": 2, "bbox_w": 10, "bbox_h": 6}
    return {"image_id": "1", "image_path": "1.png", "true_caption": true, "false_caption": false, **box, **category}


@pytest.fixture
def write(tmp_path):
    def write(file, items):
        (tmp_path / "images").mkdir(exist_ok=True)
        stripes = Image.new("RGB", (30, 10), RED)
        stripes.paste(GREEN, (10, 0, 20, 10))
        stripes.paste(BLUE, (20, 0, 30, 10))
        stripes.save(tmp_path / "images" / "1.png")
        (tmp_path / file).write_text(json.dumps(items))
        return tmp_path

    return write


@pytest.fixture
def relations(write):
    return write(
        RELATION,
        [
            item(0, RED, GREEN, relation_name="on"),
            item(10, GREEN, RED, relation_name="on"),
            item(20, RED, BLUE, relation_name="on"),
            item(20, BLUE, RED, relation_name="next to"),
            item(10, RED, BLUE, relation_name="behind"),  # neither: green is as far from red as from blue
        ],
    )


def test_pictures_are_cut_to_the_box(relations):
    task = aro_relation.Task(relations)
    parts = [task.image(number) for number in range(len(task.images))]
    assert [part.size for part in parts] == [(10, 6)] * 3  # the third box is asked about twice
    assert [part.getcolors() for part in parts] == [[(60, c)] for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_count_the_pixels_as_they_are_stored(tmp_path, orientation):
    """As ARO's reader: Image.open(path).convert("RGB").crop(box)."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(pixels).save(path, exif=exif)
    expected = Image.open(path).convert("RGB").crop((2, 3, 14, 9))
    found = aro_sets.CroppedFile(path, path.name, box=(2, 3, 14, 9)).load()
    assert (found.size, found.tobytes()) == (expected.size, expected.tobytes())


def test_relations_have_the_mean_of_all_and_the_one_of_the_paper(relations, encoder):
    scores = aro_relation.Task(relations).run(encoder, batch_size=2)
    assert scores.metrics == {
        "text_acc": 3 / 5,
        "text_acc_macro": pytest.approx((2 / 3 + 1 + 0) / 3),
        "text_acc_macro_official": pytest.approx((2 / 3 + 0) / 2),  # without "next to"
    }
    assert scores.tie_rate == 1 / 5
    assert scores.labels["text_acc_macro_official"] == (
        "mean of the paper's relations (macro, 2; symmetric left out: 1)"
    )
    assert [(row.table, row.name, row.number) for row in scores.categories] == [
        ("relation", "on", 3),
        ("relation", "next to", 1),
        ("relation", "behind", 1),
    ]
    name = relations.name
    assert scores.log.keys() == {f"{name}/{kind}_accuracy" for kind in ("micro", "macro", "macro_official")}


def test_attributes_with_few_items_are_left_out_of_the_mean_of_the_paper(write, encoder):
    many = [item(0, RED, GREEN, attributes=["old", "wet"])] * 24 + [item(0, GREEN, RED, attributes=["old", "wet"])]
    few = [item(10, RED, GREEN, attributes=["wet", "old"])] * 24
    scores = aro_attribution.Task(write(ATTRIBUTION, many + few)).run(encoder, batch_size=2)
    assert scores.metrics == pytest.approx(
        {"text_acc": 24 / 49, "text_acc_macro": 12 / 25, "text_acc_macro_official": 24 / 25}
    )
    assert scores.labels["text_acc_macro_official"].endswith("(macro, 1; fewer than 25 items, left out: 1)")
    assert [(row.name, row.number) for row in scores.categories] == [("old_wet", 25), ("wet_old", 24)]


def test_where_all_categories_are_left_out_the_table_says_so(write, encoder):
    directory = write(ATTRIBUTION, [item(0, RED, GREEN, attributes=["old", "wet"])])
    (result,) = evaluate(encoder, [directory], 2, "tiny", "none")
    assert result.scores.labels["text_acc_macro"] == "mean of the only pair of attributes (macro), none has 25 items"
    content = result.to_json()
    assert content["metrics"]["text_acc_macro_official"] is None
    assert content["intervals"] == {}
    assert f"{directory.name}/macro_official_accuracy" not in result.scores.log


@pytest.mark.parametrize(("task", "file"), [(aro_relation, RELATION), (aro_attribution, ATTRIBUTION)])
def test_scores_agree_with_the_official_evaluation(write, task, file):
    """Its definition: the share per category where the second of [false, true] is highest, then the mean of them.

    Relations are left out by the list of the notebook, attributes where there are fewer than 25 items.
    """
    draw = random.Random(5)
    category_of = {
        RELATION: lambda: {"relation_name": draw.choice(["on", "below", "next to", "wearing", "with"])},
        ATTRIBUTION: lambda: {"attributes": draw.choice([["red", "old"]] * 5 + [["old", "red"]] * 5 + [["a", "b"]])},
    }[file]
    items = [
        item(draw.randrange(20), f"{draw.randrange(30)} true", f"{draw.randrange(30)} false", **category_of())
        for _ in range(150)
    ]
    directory = write(file, items)
    found = task.Task(directory)
    torch.manual_seed(0)
    image_ND, text_ND = (F.normalize(torch.randn(len(x), 8), dim=1) for x in (found.images, found.texts))
    left_of = [part.box[0] for part in found.images]
    by_category = defaultdict(list)
    for one in items:
        feature = image_ND[left_of.index(one["bbox_x"])].numpy()
        options = [one["false_caption"], one["true_caption"]]
        scores = [float(feature @ text_ND[found.texts.index(text)].numpy()) for text in options]
        name = one["relation_name"] if file == RELATION else "_".join(one["attributes"])
        by_category[name].append(scores.index(max(scores)) == 1)
    everything = [right for rights in by_category.values() for right in rights]
    shares = {name: sum(rights) / len(rights) for name, rights in by_category.items()}
    kept = [
        share
        for name, share in shares.items()
        if (name not in ("next to", "with") if file == RELATION else len(by_category[name]) >= 25)
    ]
    assert 0 < len(kept) < len(shares)
    scores = found.score(SetEmbeddings(image_ND, text_ND, 1.0))
    assert scores.metrics == pytest.approx(
        {
            "text_acc": sum(everything) / 150,
            "text_acc_macro": sum(shares.values()) / len(shares),
            "text_acc_macro_official": sum(kept) / len(kept),
        }
    )
    assert {row.name: row.score for row in scores.categories} == pytest.approx(shares)


def test_a_constant_model_scores_zero(relations, write, constant_encoder):
    write(ATTRIBUTION, [item(0, RED, GREEN, attributes=["old", "wet"])] * 30)
    for task in (aro_relation.Task(relations / RELATION), aro_attribution.Task(relations / ATTRIBUTION)):
        scores = task.run(constant_encoder, batch_size=4)
        assert set(scores.metrics.values()) == {0}
        assert scores.tie_rate == 1


def test_two_sets_in_one_directory_go_by_their_files(relations, write):
    write(ATTRIBUTION, [item(0, RED, GREEN, attributes=["old", "wet"])])
    with pytest.raises(UserError, match=rf"holds several .* name the file of one \(.*{ATTRIBUTION} or .*{RELATION}\)"):
        find_task(relations)
    task = find_task(relations / RELATION)
    assert (type(task), task.name) == (aro_relation.Task, "visual_genome_relation")
    assert type(find_task(relations / ATTRIBUTION)) is aro_attribution.Task


def test_the_relations_left_out_are_those_of_the_notebook():
    assert len(aro_relation.SYMMETRIC) == 157
    assert {"adjusting", "on the other side of", "wrapped in", "parked in front of"} < aro_relation.SYMMETRIC
    assert aro_relation.SYMMETRIC.isdisjoint({"on", "behind", "to the left of", "wearing", ""})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox_w": 0}, r"item 1 of .*relation\.json has a box of 0 x 6 pixels"),
        ({"bbox_w": 0.3}, r"item 1 of .*relation\.json has a box of 0\.3 x 6 pixels"),
        ({"bbox_w": 99_999_999}, r"item 1 of .*relation\.json has a box of 1e\+08 x 6 pixels"),
        ({"bbox_w": math.nan}, r"item 1 of .* needs the numbers bbox_x"),
        ({"bbox_h": math.inf}, r"item 1 of .* needs the numbers bbox_x"),
        ({"bbox_y": 10**400}, r"item 1 of .* needs the numbers bbox_x"),
        ({"bbox_x": "3"}, r"item 1 of .* needs the numbers bbox_x, bbox_y, bbox_w, bbox_h: .* github\.com/mertyg"),
        ({"relation_name": None}, r"item 1 of .* has no relation_name: .* github\.com/mertyg"),
        ({"true_caption": ""}, r"item 1 of .* has no true_caption"),
        ({"image_path": "2.png"}, r"images/2\.png is missing, item 1 of .*: copy vgr_vga_images\.zip"),
    ],
)
def test_damaged_items_are_named(write, change, message):
    good = item(0, RED, GREEN, relation_name="on")
    with pytest.raises(UserError, match=message):
        find_task(write(RELATION, [good, {**good, **change}]))


def test_missing_parts_are_named(write, relations):
    for attributes in (["old"], ["old", None], ["", "old"]):
        with pytest.raises(UserError, match=r"item 0 of .* needs two attributes"):
            find_task(write(ATTRIBUTION, [item(0, RED, GREEN, attributes=attributes)]) / ATTRIBUTION)
    (relations / RELATION).write_text("{}")
    with pytest.raises(UserError, match=r"relation\.json is no list of items: .* github\.com/mertyg"):
        find_task(relations / RELATION)
    (relations / RELATION).write_text("[{")
    with pytest.raises(UserError, match=r"relation\.json is not valid JSON"):
        find_task(relations / RELATION)
    write(RELATION, [item(0, RED, GREEN, relation_name="on")])
    (relations / "images").rename(relations / "pictures")
    with pytest.raises(UserError, match=r"images is missing: ARO's pictures go there"):
        find_task(relations / RELATION)


def test_a_box_outside_its_picture_is_named(write, encoder):
    task = find_task(write(RELATION, [item(30, RED, GREEN, relation_name="on")]))
    with pytest.raises(UserError, match=r"1\.png has 30 x 10 pixels, and the part from \(30, 2\) to \(40, 8\) is outs"):
        task.run(encoder, batch_size=1)
