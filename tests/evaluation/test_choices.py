import json
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vlp.data.benchmark_sets import StoredFile
from vlp.data.choice_sets import Item, choice_set
from vlp.evaluation.choices import ChoiceTask, Mean
from vlp.evaluation.run import find_task
from vlp.evaluation.tasks import aro_relation, pairs
from vlp.evaluation.tasks.base import SetEmbeddings
from vlp.types import UserError


class Choosing(ChoiceTask):
    """Choices among ``items``, which are on no disk."""

    table = "kind"

    def __init__(self, path, items):
        super().__init__(path)
        found = choice_set(items)
        self.images, self.texts, self.choices = found.images, found.texts, found.choices

    @staticmethod
    def detects(path):
        return False

    def means(self):
        return {"macro": Mean("mean", tuple(dict.fromkeys(choice.category for choice in self.choices)))}

    def scored(self, image, text):
        """Scores with given features of pictures and texts by name."""
        image_ND = torch.tensor([image[file.name] for file in self.images], dtype=torch.float)
        text_ND = torch.tensor([text[name] for name in self.texts], dtype=torch.float)
        return self.score(SetEmbeddings(image_ND, text_ND, 1.0))


def stored(path, name):
    return StoredFile(path / name, name)


def drawn(task, seed=0):
    """Random features of dimension 16, as a model would give them."""
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(len(n), 16, generator=generator) for n in (task.images, task.texts))
    return SetEmbeddings(F.normalize(image, dim=1), F.normalize(text, dim=1), 1.0)


@pytest.fixture
def three(tmp_path):
    a, b = (stored(tmp_path, name) for name in "ab")
    items = [Item(a, "x", ["y", "z"], "k"), Item(a, "y", ["x"], "k"), Item(b, "z", ["y"], "l")]
    return Choosing(tmp_path, items)


def test_right_is_above_the_best_false_caption(three):
    image, text = {"a": [1, 0], "b": [0, 1]}, {"x": [0.5, 0], "y": [0.25, 0.5], "z": [0.75, 1]}
    scores = three.scored(image, text)
    assert scores.details["margin"] == [-0.25, -0.25, 0.5]
    assert scores.metrics == {"text_acc": 1 / 3, "text_acc_macro": 1 / 2}
    assert scores.chance == {
        "text_acc": (1 / 3 + 1 / 2 + 1 / 2) / 3,
        "text_acc_macro": ((1 / 3 + 1 / 2) / 2 + 1 / 2) / 2,
    }
    assert [(row.table, row.name, row.number, row.score) for row in scores.categories] == [
        ("kind", "k", 2, 0),
        ("kind", "l", 1, 1),
    ]
    assert scores.categories[0].chance == (1 / 3 + 1 / 2) / 2
    assert math.isnan(scores.categories[0].interval[0])  # both of k are about one picture
    assert scores.intervals["text_acc"] == (0, 1)
    name = three.name
    assert scores.log == {f"{name}/micro_accuracy": 1 / 3, f"{name}/macro_accuracy": 1 / 2}


def test_equal_scores_are_wrong_and_counted_as_ties(three):
    scores = three.scored({"a": [1, 0], "b": [0, 1]}, {"x": [0.5, 0.5], "y": [0.5, 0.5], "z": [0, 0.75]})
    assert scores.details["margin"] == [0, 0, 0.25]
    assert scores.metrics["text_acc"] == 1 / 3
    assert scores.tie_rate == 2 / 3
    assert three.scored({"a": [0, 0], "b": [0, 0]}, {name: [1, 0] for name in "xyz"}).metrics["text_acc"] == 0


def test_nan_is_wrong(three):
    nan = math.nan
    scores = three.scored({"a": [1, 0], "b": [0, 1]}, {"x": [1, 0], "y": [0, 0], "z": [nan, 1]})
    assert scores.metrics["text_acc"] == 0
    assert [math.isnan(margin) for margin in scores.details["margin"]] == [True, False, True]


def test_the_same_false_caption_twice_is_one_chance(tmp_path):
    scores = Choosing(tmp_path, [Item(stored(tmp_path, "a"), "x", ["y", "y"])])
    assert scores.scored({"a": [1]}, {"x": [1], "y": [0]}).chance["text_acc"] == 1 / 2


def test_neither_the_order_of_options_nor_of_items_matters(tmp_path):
    torch.manual_seed(0)
    draw = random.Random(3)
    texts = [f"t{number}" for number in range(30)]
    features = {name: F.normalize(torch.randn(8), dim=0).tolist() for name in [*texts, *"abcdef"]}
    items = []
    for number in range(40):
        caption, *wrong = draw.sample(texts, 4)
        items.append(Item(stored(tmp_path, draw.choice("abcdef")), caption, wrong, f"k{number % 3}"))
    other = [item._replace(wrong=draw.sample(item.wrong, 3)) for item in draw.sample(items, 40)]
    first, second = (Choosing(tmp_path, some).scored(features, features) for some in (items, other))
    assert first.metrics == pytest.approx(second.metrics)
    assert sorted(first.details["margin"]) == sorted(second.details["margin"])
    assert {(row.name, row.score) for row in first.categories} == {(row.name, row.score) for row in second.categories}


def test_many_choices_are_scored_in_parts(three, monkeypatch):
    embeddings = drawn(three)
    whole = three.score(embeddings)
    monkeypatch.setattr("vlp.evaluation.choices.ROWS", 2)
    assert repr(three.score(embeddings)) == repr(whole)


@pytest.fixture
def sugarcrepe(tmp_path):
    """The seven official files, made small: keys skip, pictures are shared between files."""
    (tmp_path / "data").mkdir()
    (tmp_path / "val2017").mkdir()
    draw = random.Random(1)
    for number in range(12):
        Image.new("RGB", (4, 4), (20 * number, 0, 0)).save(tmp_path / "val2017" / f"{number:012d}.jpg")
    for suite, count in zip(pairs.SUGARCREPE, (6, 12, 8, 10, 9, 6, 5), strict=True):
        table = {
            str(2 * key): {
                "filename": f"{draw.randrange(12):012d}.jpg",
                "caption": f"{suite} {draw.randrange(20)} true",
                "negative_caption": f"{suite} {draw.randrange(20)} false",
            }
            for key in range(count)
        }
        (tmp_path / "data" / f"{suite}.json").write_text(json.dumps(table))
    return tmp_path


def test_sugarcrepe_agrees_with_the_rule_of_its_own_script(sugarcrepe):
    """Its script: of each file the share of items with score(caption) > score(negative_caption)."""
    task = pairs.Task(sugarcrepe)
    embeddings = drawn(task)
    image = {file.path.name: row for file, row in zip(task.images, embeddings.image_ND.tolist(), strict=True)}
    text = dict(zip(task.texts, embeddings.text_ND.tolist(), strict=True))
    share = {}
    for path in (sugarcrepe / "data").glob("*.json"):
        items = json.loads(path.read_text()).values()
        right = [
            np.dot(text[item["caption"]], image[item["filename"]])
            > np.dot(text[item["negative_caption"]], image[item["filename"]])
            for item in items
        ]
        share[path.stem] = sum(right) / len(right)
    found = task.score(embeddings).metrics
    assert {name: found[f"text_acc_{name}"] for name in share} == pytest.approx(share)
    assert found["text_acc_add"] == pytest.approx((share["add_att"] + share["add_obj"]) / 2)
    replaced = [share[f"replace_{kind}"] for kind in ("att", "obj", "rel")]
    assert found["text_acc_replace"] == pytest.approx(sum(replaced) / 3)
    assert found["text_acc_swap"] == pytest.approx((share["swap_att"] + share["swap_obj"]) / 2)
    assert found["text_acc_macro"] == pytest.approx(sum(share.values()) / 7)


def test_sugarcrepe_agrees_with_clip_benchmark_where_nothing_ties(sugarcrepe):
    evaluator = pytest.importorskip("clip_benchmark.metrics.image_caption_selection")
    task = pairs.Task(sugarcrepe)
    embeddings = drawn(task)

    class Model:
        """Pictures and texts are the numbers of their features."""

        def encode_image(self, image_NCHW):
            return embeddings.image_ND[image_NCHW[:, 0, 0, 0].long()]

        def encode_text(self, text_NL):
            return embeddings.text_ND[text_NL[:, 0]]

    def tokenizer(texts):
        return torch.tensor([[task.texts.index(text)] for text in texts])

    found = task.score(embeddings)
    assert found.tie_rate == 0
    for suite in pairs.SUGARCREPE:
        choices = [choice for choice in task.choices if choice.category == suite]
        images = torch.tensor([choice.image for choice in choices]).view(-1, 1, 1, 1)
        captions = [[task.texts[row] for row in (choice.caption, *choice.wrong)] for choice in choices]
        reference = evaluator.evaluate(Model(), [(images, captions)], tokenizer, "cpu", amp=False)
        assert found.metrics[f"text_acc_{suite}"] == pytest.approx(reference["text_acc"])


@pytest.mark.parametrize("name", ["swap_obj.json.old", "swap_object.json"])
def test_a_missing_or_renamed_file_of_sugarcrepe_is_named_and_single_files_can_be(sugarcrepe, name):
    (sugarcrepe / "data" / "swap_obj.json").rename(sugarcrepe / "data" / name)
    with pytest.raises(UserError, match=r"data/swap_obj\.json is missing: copy it from data/ of github\.com/RAIVNLab"):
        pairs.Task(sugarcrepe)
    task = find_task(sugarcrepe / "data" / "swap_att.json")
    assert (type(task), task.name) == (pairs.Task, "swap_att")
    scores = task.score(drawn(task))
    assert scores.labels["text_acc_macro"] == "mean of the only suite (macro)"
    assert scores.metrics.keys() == {"text_acc", "text_acc_macro", "text_acc_swap_att"}


def test_crops_of_one_picture_are_drawn_together(tmp_path):
    """Ten crops of each of four pictures: no more than four independent answers."""
    items = []
    for number in range(40):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{number % 4}.png")
        box = {"bbox_x": number // 4, "bbox_y": 0, "bbox_w": 5, "bbox_h": 5}
        captions = {"true_caption": "a on b", "false_caption": "b on a", "relation_name": "on"}
        items.append({"image_path": f"{number % 4}.png", **box, **captions})
    (tmp_path / "images").symlink_to(tmp_path)
    (tmp_path / "visual_genome_relation.json").write_text(json.dumps(items))
    task = aro_relation.Task(tmp_path)
    assert len(task.images) == 40
    image_ND, text_ND = torch.ones(40, 1), torch.tensor([[1.0], [0.0]])
    assert task.score(SetEmbeddings(image_ND, text_ND, 1.0)).intervals["text_acc"] == (pytest.approx(0.025**0.25), 1)
