"""Galleries of the report: the worst failures stand first, with their captions and scores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlp.data import write
from vlp.data.benchmark_sets import StoredFile
from vlp.data.twin_sets import Twin
from vlp.evaluation import run as evaluation
from vlp.evaluation import twins
from vlp.evaluation.choices import Choice, ChoiceTask
from vlp.evaluation.report import captions, choice_gallery, failures, retrieval_gallery, twin_gallery
from vlp.evaluation.report.failures import Answered
from vlp.evaluation.report.gather import EvaluatedSet
from vlp.evaluation.tasks.base import SetEmbeddings, Task


def picture(number: int) -> bytes:
    return write.encode_image(Image.new("RGB", (16, 16), (number, 0, 0)))


def points(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_the_worst_query_comes_first_and_right_answers_are_marked(tmp_path):
    items = [(picture(n), "png", [f"text {n}"]) for n in range(8)]
    write.write_retrieval_set(tmp_path / "set", items)
    task = evaluation.find_task(tmp_path / "set")
    images = points(0, 10, 20, 30, 40, 50, 60, 170)
    texts = points(0, 10, 20, 30, 40, 50, 69, -11)  # text 7 lies opposite to picture 7, all other pictures are nearer
    embeddings = SetEmbeddings(images, texts, 10.0)
    to_text, to_image = retrieval_gallery.gallery(EvaluatedSet(task, embeddings, task.score(embeddings)))
    assert (to_text.num_queries, to_text.num_failures, to_image.num_failures) == (8, 1, 1)
    query = to_text.failures[0]
    assert query.rank == 8
    assert [answer.right for answer in query.answers] == [False] * 5
    assert (query.best_right.rank, query.best_right.right) == (8, True)
    assert "text 7" in query.best_right.content
    assert query.best_right.score == pytest.approx(-1, abs=0.02)
    assert [a.right for a in to_text.successes[0].answers] == [True, False, False, False, False]
    assert len(to_image.successes) == retrieval_gallery.NUM_SUCCESSES


def test_worst_takes_each_picture_once_and_leaves_successes_out():
    assert retrieval_gallery.worst([1, 9, 5, 7, 2], [0, 1, 1, 2, 3], 3) == [1, 3, 4]
    assert retrieval_gallery.worst([1, 1], [0, 1], 3) == []


def test_a_tie_ranks_the_wrong_answer_first():
    assert retrieval_gallery.ranking(torch.tensor([0.5, 0.9, 0.9]), torch.tensor([False, True, False])) == [2, 1, 0]


# ---- Choices


class Choices(ChoiceTask):
    """A choice for each picture: its wrong captions are all texts but its own."""

    table = "kind"

    @staticmethod
    def detects(directory: Path) -> bool:
        return False

    def __init__(self, directory: Path, texts: list[str], categories: list[str]) -> None:
        super().__init__(directory)
        self.texts, self.images = texts, []
        for number in range(len(categories)):
            path = directory / f"{number}.png"
            path.write_bytes(picture(number))
            self.images.append(StoredFile(path, str(path)))
        everything = range(len(texts))
        self.choices = [
            Choice(row, row, tuple(text for text in everything if text != row), category)
            for row, category in enumerate(categories)
        ]


def shown(task: Task, images: torch.Tensor, texts: torch.Tensor) -> EvaluatedSet:
    embeddings = SetEmbeddings(images, texts, 10.0)
    return EvaluatedSet(task, embeddings, task.score(embeddings))


def test_pairs_show_the_largest_mistake_first(tmp_path):
    pairs = [write.CaptionPair(picture(n), "png", f"true {n}", f"false {n}") for n in range(3)]
    write.write_pairs(tmp_path / "set", {"swap_one": pairs})
    task = evaluation.find_task(tmp_path / "set")
    texts = points(10, 5, 60, 50, 80, 0)  # true 0, false 0, true 1, ...
    group = choice_gallery.gallery(shown(task, points(0, 0, 0), texts)).groups[0]
    assert (group.name, group.number, group.num_failures, group.by_chance) == ("swap one", 3, 3, 1.5)
    assert [choice.caption for choice in group.failures] == [f"<mark>true</mark> {n}" for n in (2, 1, 0)]
    assert [choice.wrong for choice in group.failures] == [f"<mark>false</mark> {n}" for n in (2, 1, 0)]
    assert (group.failures[0].score, group.failures[0].wrong_score) == ("0.174", "1.000")  # cosines of 80 and 0 degrees
    assert 'alt="true 2"' in group.failures[0].image


def test_of_several_wrong_captions_the_best_is_shown(tmp_path):
    task = Choices(tmp_path, ["own <i>", "far <b>", "near & dear"], [""])
    (group,) = choice_gallery.gallery(shown(task, points(0), points(30, 90, 10))).groups
    (choice,) = group.failures
    assert choice.wrong == "<mark>near &amp; dear</mark>"
    assert choice.caption == "<mark>own &lt;i&gt;</mark>"
    assert (choice.score, choice.wrong_score) == ("0.866", "0.985")
    assert group.name == ""
    assert group.by_chance == pytest.approx(2 / 3)


def test_false_captions_with_categories_of_their_own_are_questions_of_their_own(tmp_path):
    task = Choices(tmp_path, ["own", "near", "far"], [""])
    task.category_of_wrong = ["by_noun", "by_verb"]
    first, second = choice_gallery.gallery(shown(task, points(0), points(30, 10, 90))).groups
    assert (first.name, first.number, first.num_failures, first.by_chance) == ("by noun", 1, 1, 0.5)
    assert (second.name, second.number, second.num_failures) == ("by verb", 1, 0)
    assert first.failures[0].wrong == "<mark>near</mark>"
    assert second.successes[0].wrong == "<mark>far</mark>"


def test_a_tie_and_a_score_that_is_no_number_are_failures(tmp_path):
    task = Choices(tmp_path, ["one", "two", "three"], ["", "", ""])
    images = torch.stack([*points(0, 0), torch.full((2,), math.nan)])
    group = choice_gallery.gallery(shown(task, images, points(0, 0, 60))).groups[0]
    assert group.num_failures == 3
    assert [choice.score for choice in group.failures] == ["nan", "1.000", "1.000"]
    assert [choice.wrong_score for choice in group.failures] == ["nan", "1.000", "1.000"]


def test_words_that_differ_are_marked():
    moved = captions.mark_differences("a dog chases a cat", "a cat chases a dog")
    assert moved == ("a <mark>dog</mark> chases a <mark>cat</mark>", "a <mark>cat</mark> chases a <mark>dog</mark>")
    assert captions.mark_differences("one", "one or two")[1] == "one <mark>or two</mark>"
    true, false = captions.mark_differences("a red <dot> left", "a blue <dot> left")
    assert true == "a <mark>red</mark> &lt;dot&gt; left"
    assert false == "a <mark>blue</mark> &lt;dot&gt; left"


# ---- Twins


def write_mmvp(directory: Path, num_pairs: int) -> None:
    (directory / "MLLM_VLM Images" / "Kind").mkdir(parents=True)
    numbers = range(1, 2 * num_pairs + 1)
    for number in numbers:
        (directory / "MLLM_VLM Images" / "Kind" / f"{number}.jpg").write_bytes(picture(number))
    lines = [f"{number},Kind,thing <{number}>" for number in numbers]
    (directory / "Questions.csv").write_text("\n".join(["Question ID,Type,Statement", *lines]))


def write_winoground(directory: Path, num_twins: int) -> None:
    (directory / "images").mkdir(parents=True)
    lines = []
    for number in range(num_twins):
        for side in "ab":
            (directory / "images" / f"{number}{side}.png").write_bytes(picture(number))
        words = {"caption_0": "some <i> on it", "caption_1": "it on some <i>", "collapsed_tag": "Object"}
        lines.append(json.dumps({"image_0": f"{number}a", "image_1": f"{number}b", **words}))
    (directory / "examples.jsonl").write_text("\n".join(lines))


def test_twins_show_four_scores_and_what_fails(tmp_path):
    write_winoground(tmp_path, 3)
    task = evaluation.find_task(tmp_path)
    assert isinstance(task, twins.TwinTask)
    task.texts = [*task.texts, *task.texts, *task.texts]  # the same words, elsewhere in the space
    task.twins = [Twin((n, n + 1), (n, n + 1), "Object") for n in (0, 2, 4)]
    # In degrees: of the first, both pictures find their captions and a caption the wrong picture; all of the second is
    # wrong, all of the third is right.
    images, texts = points(0, 50, 0, 90, 0, 90), points(40, 55, 90, 0, 0, 90)
    (group,) = twin_gallery.gallery(shown(task, images, texts)).groups
    assert (group.name, group.number, group.num_failures) == ("Object", 3, 2)
    assert group.by_chance == pytest.approx(3 * 5 / 6)
    worst, other = group.failures
    assert [[cell.kind for cell in row] for row in worst.cells] == [["own", "wins"], ["wins", "own"]]
    assert worst.verdicts == [("text", False), ("image", False), ("group", False)]
    assert [[cell.kind for cell in row] for row in other.cells] == [["own", "wins"], ["", "own"]]
    assert [[cell.score for cell in row] for row in other.cells] == [["0.766", "0.985"], ["0.574", "0.996"]]
    assert other.verdicts == [("text", True), ("image", False), ("group", False)]
    assert other.captions[0] == "some &lt;i&gt; <mark>on it</mark>"
    assert [verdict for _, verdict in group.successes[0].verdicts] == [True, True, True]


def test_twins_that_are_asked_for_pictures_only_count_nothing_else(tmp_path):
    write_mmvp(tmp_path, 2)
    images, texts = points(0, 90, 40, 55), points(90, 0, 0, 50)  # picture 2 finds the caption of picture 3
    (group,) = twin_gallery.gallery(shown(evaluation.find_task(tmp_path), images, texts)).groups
    (failed,), (right,) = group.failures, group.successes
    assert group.by_chance == 1.5
    assert failed.verdicts == [("image", False)]
    assert 'alt="a photo of thing &lt;1&gt;"' in failed.images[0]
    assert right.verdicts == [("image", True)]
    assert [[cell.kind for cell in row] for row in right.cells] == [["own", ""], ["", "own"]]


# ---- Which are shown


def test_the_categories_with_the_lowest_scores_stand_first_and_the_others_are_counted():
    answers = [
        Answered(f"c_{c}", 1.0 if row < c else -1.0 - row, 0.5, (c, row))
        for c in range(failures.MAX_GROUPS + 2)
        for row in range(10)
    ]
    gallery = failures.worst_first(answers, lambda row: row)
    assert [group.name for group in gallery.groups] == [f"c {c}" for c in range(failures.MAX_GROUPS)]
    assert gallery.groups[3].failures == [39, 38, 37, 36]
    assert (gallery.num_other_groups, gallery.num_other_failures) == (2, 2 + 1)
    few = failures.worst_first([Answered("", -1.0, 0.5, row) for row in range(20)], lambda row: row)
    assert len(few.groups[0].failures) == failures.FAILURES_OF_GROUP[1]


def test_of_categories_with_one_score_the_largest_stands_first():
    names = ["small", "small", "large", "large", "large"]
    answers = [Answered(name, -1.0, 0.5, row) for row, name in enumerate(names)]
    assert [group.name for group in failures.worst_first(answers, lambda row: row).groups] == ["large", "small"]


def test_a_category_of_one_picture_stands_last():
    answers = [Answered("one", -1, 0.5, 0), Answered("two", -1, 0.5, 1), Answered("two", 1, 0.5, 2)]
    assert [group.name for group in failures.worst_first(answers, lambda row: row).groups] == ["two", "one"]


def test_a_picture_is_shown_once():
    answers = [Answered("", margin, 0.5, picture) for margin, picture in [(-1, "a"), (-3, "b"), (-2, "b"), (-0.5, "c")]]
    (group,) = failures.worst_first(answers, lambda row: row).groups
    assert group.failures == [1, 0, 3]
    assert group.num_failures == 4


@pytest.mark.parametrize(
    ("scores", "texts"),
    [
        ((0.3, 0.2), ("0.300", "0.200")),
        ((0.30001, 0.30002), ("0.30001", "0.30002")),
        ((0.5, 0.5), ("0.500", "0.500")),
    ],
)
def test_scores_have_the_digits_that_tell_them_apart(scores, texts):
    assert failures.score_texts(*scores) == list(texts)
