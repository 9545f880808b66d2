"""Questions.csv and `MLLM_VLM Images` as they are published, made small."""

import csv
import math

import pytest
import torch
import torch.nn.functional as F

from vlp.evaluation import intervals
from vlp.evaluation.run import find_task
from vlp.evaluation.tasks.base import SetEmbeddings
from vlp.evaluation.tasks.mmvp import Task
from vlp.types import UserError

RED, GREEN, BLUE = "#ff0000", "#00ff00", "#0000ff"
TYPES = ["Orientation", "Presence", "State", "Quantity", "Spatial", "Color", "Text", "Camera Perspective"]
TYPES += ["Structural Character"]


def write(directory, picture, pairs, header=("Question ID", "Type", "Statement")):
    """``pairs``: (type, two statements, the colours of their two pictures)."""
    directory.mkdir(parents=True)
    with open(directory / "Questions.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for number, (kind, statements, colours) in enumerate(pairs):
            folder = directory / "MLLM_VLM Images" / kind
            folder.mkdir(parents=True, exist_ok=True)
            for side in (0, 1):
                question = 2 * number + 1 + side
                writer.writerow([question, kind, statements[side]])
                (folder / f"{question}.jpg").write_bytes(picture(colours[side]))
    return directory


@pytest.fixture
def directory(tmp_path, picture):
    pairs = [
        ("Color", (f"{RED}, really", f"{GREEN} thing"), (RED, GREEN)),
        ("Color", (f"{RED} one", f"{GREEN} one"), (RED, BLUE)),
        ("Color", (f"{RED} one", f"{GREEN} one"), (GREEN, RED)),
        ("Camera Perspective", (f"{RED} 'one'", f'{BLUE} "one"'), (RED, BLUE)),
    ]
    return write(tmp_path / "mmvp", picture, pairs)


def without_prompt(encoder):
    """The encoders of these tests want the colour first."""
    plain = encoder.tokenizer
    encoder.tokenizer = lambda texts: plain([text.removeprefix("a photo of ") for text in texts])
    return encoder


def test_figures_by_hand(directory, encoder):
    task = find_task(directory)
    assert isinstance(task, Task)
    assert task.texts[0] == f"a photo of {RED}, really"
    scores = task.run(without_prompt(encoder), batch_size=4)
    # The second pair: green is as far from blue as from red, a tie, so the pair is wrong.
    assert scores.metrics == pytest.approx(
        {
            "image_acc": 2 / 4,
            "image_acc_macro": (1 / 3 + 1) / 2,
            "image_acc_color": 1 / 3,
            "image_acc_camera_perspective": 1,
        }
    )
    assert scores.log == pytest.approx(
        {
            "mmvp/color_accuracy": 1 / 3,
            "mmvp/camera_perspective_accuracy": 1,
            "mmvp/micro_accuracy": 2 / 4,
            "mmvp/macro_accuracy": 2 / 3,
        }
    )
    assert set(scores.chance.values()) == {1 / 4}
    assert scores.tie_rate == pytest.approx(1 / 8)
    assert scores.metrics.keys() == scores.chance.keys() == scores.labels.keys()
    assert scores.labels["image_acc_camera_perspective"] == "Camera Perspective"
    assert [(r.table, r.name, r.number) for r in scores.categories] == [
        ("type", "Color", 3),
        ("type", "Camera Perspective", 1),
    ]
    assert set(scores.intervals) == set(scores.metrics) - {"image_acc_camera_perspective"}  # of one pair
    assert (scores.num_images, scores.num_texts) == (8, 6)


def test_a_constant_model_scores_zero(directory, constant_encoder):
    scores = Task(directory).run(without_prompt(constant_encoder), batch_size=4)
    assert set(scores.metrics.values()) == {0}
    assert scores.tie_rate == 1


def test_the_interval_of_the_mean_of_types_is_not_that_of_all_pairs(tmp_path, picture):
    types = ["Color"] * 25 + ["Text"] * 5
    pairs = [(kind, (f"{i} a", f"{i} b"), (RED, GREEN)) for i, kind in enumerate(types)]
    generator = torch.Generator().manual_seed(0)
    features_ND = F.normalize(torch.randn(60, 8, generator=generator), dim=1)
    close_ND = F.normalize(features_ND + torch.randn(60, 8, generator=generator), dim=1)
    scores = Task(write(tmp_path / "mmvp", picture, pairs)).score(SetEmbeddings(features_ND, close_ND, 10.0))
    right = [margin > 0 for margin in scores.details["image_margin"]]
    expected = intervals.of_category_mean(right, types, range(30))
    assert scores.intervals["image_acc_macro"] == expected != scores.intervals["image_acc"]


def test_agrees_with_the_released_script_where_nothing_ties(tmp_path, picture):
    """Its rule on the same scores: the softmax over two pictures, above a half means the first; odd IDs are first."""
    pairs = [(kind, (f"{kind} {i} a", f"{kind} {i} b"), (RED, GREEN)) for kind in TYPES for i in range(15)]
    task = Task(write(tmp_path / "mmvp", picture, pairs))
    generator = torch.Generator().manual_seed(0)
    image_ND, text_ND = (F.normalize(torch.randn(270, 16, generator=generator), dim=1) for _ in range(2))
    scores = task.score(SetEmbeddings(image_ND, text_ND, 100.0))
    assert scores.tie_rate == 0

    right = dict.fromkeys(TYPES, 0)
    with open(tmp_path / "mmvp" / "Questions.csv", newline="") as stream:
        rows = list(csv.reader(stream))[1:]
    for number in range(135):
        correct = 0
        for side in (0, 1):
            logits = (100 * image_ND[2 * number : 2 * number + 2] @ text_ND[2 * number + side]).tolist()
            first = 1 / (1 + math.exp(logits[1] - logits[0]))
            predicted = "first" if first > 0.5 else "second"
            correct += predicted == ("first" if int(rows[2 * number + side][0]) % 2 else "second")
        right[TYPES[number // 15]] += correct == 2
    assert {row.name: row.score for row in scores.categories} == pytest.approx({k: v / 15 for k, v in right.items()})
    assert scores.metrics["image_acc_macro"] == pytest.approx(sum(right.values()) / 135)
    assert 0.1 < scores.metrics["image_acc"] < 0.4
    low, high = scores.intervals["image_acc_macro"]
    assert low < scores.metrics["image_acc_macro"] < high


def fails(directory, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        find_task(directory)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named_with_its_source(directory):
    (directory / "MLLM_VLM Images" / "Color" / "3.jpg").rename(directory / "MLLM_VLM Images" / "Color" / "3.jpeg")
    fails(directory, r"Color/3\.jpg is missing: copy the folder 'MLLM_VLM Images' from .*MMVP/MMVP_VLM")
    (directory / "Questions.csv").rename(directory / "questions.txt")
    fails(directory, r"Questions\.csv is missing: copy it from .*MMVP/MMVP_VLM")


def test_damaged_and_other_files_are_named(directory):
    path = directory / "Questions.csv"
    whole = path.read_text()
    path.write_text(whole.replace("Question ID,Type,Statement", "Index,Question,Options,Correct Answer"))
    fails(directory, r"Questions\.csv has no column 'Question ID': .*MMVP/MMVP_VLM")
    path.write_text(whole[: whole.rindex("8,")])
    fails(directory, r"Questions\.csv holds 7 statements, not pairs of them")
    path.write_text(whole.replace(",Camera Perspective,", ",Color,", 1))
    fails(directory, r"Color/7\.jpg is missing")
    pictures = directory / "MLLM_VLM Images"
    (pictures / "Color" / "7.jpg").write_bytes((pictures / "Camera Perspective" / "7.jpg").read_bytes())
    fails(directory, r"questions 7 and 8 of .* stand in a pair but are of two types")
    path.write_text(whole[: whole.rindex(",") + 1] + "\n")
    fails(directory, r"question '8' of .* is cut short")


def test_blank_rows_at_the_end_are_no_questions(directory):
    path = directory / "Questions.csv"
    expected = find_task(directory).twins
    path.write_text(path.read_text().rstrip() + "\n,,\n,,\n,,\n")
    assert find_task(directory).twins == expected
