"""COCO-Order and Flickr30k-Order in the official files, made small: colours stand for pictures."""

import json

import pytest
import torch

from vlp.data import order_sets, word_order
from vlp.evaluation.run import find_task
from vlp.evaluation.tasks import aro_order
from vlp.evaluation.tasks.base import SetEmbeddings
from vlp.types import UserError

RED, GREEN = "#ff0000", "#00ff00"
CAPTIONS = ["A brown dog chases a small cat.", "Two girls in red coats feed a white horse"]


@pytest.fixture
def coco(tmp_path, picture):
    pytest.importorskip("spacy", reason="needs the extra rewrite")
    folder = tmp_path / "coco" / "val2014"
    folder.mkdir(parents=True)
    for number, colour in enumerate((RED, GREEN)):
        (folder / f"{number}.jpg").write_bytes(picture(colour))
    items = [
        {"image": "val2014/0.jpg", "caption": [*CAPTIONS, "Dogs."]},
        {"image": "val2014/1.jpg", "caption": CAPTIONS},
    ]
    (tmp_path / "coco" / "coco_karpathy_test.json").write_text(json.dumps(items))
    return tmp_path / "coco"


@pytest.fixture
def given(tmp_path, picture):
    """The cases of ARO's reader, dumped: colours are captions."""
    folder = tmp_path / "flickr"
    (folder / "flickr30k-images").mkdir(parents=True)
    (folder / "flickr30k-images" / "1.jpg").write_bytes(picture(RED))
    cases = [
        [RED, GREEN, GREEN + " a", GREEN + " b", GREEN + " c"],
        [RED, GREEN, GREEN, RED + " a", GREEN],  # the fourth ties
        [GREEN, RED, None, RED, GREEN],  # the last is the caption again
    ]
    items = [{"image": "flickr30k-images/1.jpg", "caption_options": options} for options in cases]
    (folder / "flickr30k_order.json").write_text(json.dumps(items))
    return folder


def read(path):
    task = find_task(path)
    assert isinstance(task, aro_order.Task)
    return task


def options(task):
    return [[task.texts[row] for row in (choice.caption, *choice.wrong)] for choice in task.choices]


def test_captions_are_cleaned_and_shuffled_in_four_ways(coco):
    task = read(coco)
    assert [image.path.name for image in task.images] == ["0.jpg", "1.jpg"]
    assert [len(choice.wrong) for choice in task.choices] == [4] * 4  # "Dogs." has no other order
    assert task.left_out == 4
    first, second, third, fourth = options(task)
    assert (first, second) == (third, fourth)  # a draw depends on the caption only
    assert first[0] == "a brown dog chases a small cat"
    for caption, *wrong in (first, second):
        assert all(sorted(text.split()) == sorted(caption.split()) and text != caption for text in wrong)
    assert task.category_of_wrong == [*word_order.SHUFFLES] * 4
    assert task.label() == "true caption first of 5 (micro: all 4); 4 shuffles that are the caption again left out"


def test_shuffles_are_kept_and_made_anew_for_other_captions(coco, monkeypatch):
    made = coco / "coco_order.made_by_vlp.json"
    before = options(read(coco))
    content = json.loads(made.read_text())
    assert content["made_by"] == "vlp"
    assert content["items"][2] == {"image": "val2014/0.jpg", "caption_options": ["dogs", None, None, None, None]}
    assert not list(coco.glob("*.partial"))
    with monkeypatch.context() as without_spacy:
        without_spacy.setattr(word_order, "shuffles", None)
        assert options(read(coco)) == before

    for change in (
        '{"cut": ',
        "[]",
        json.dumps({**content, "sha256": "of others"}),
        json.dumps({**content, "version": 0}),
    ):
        made.write_text(change)
        assert options(read(coco)) == before
        assert json.loads(made.read_text()) == content
    (coco / "coco_karpathy_test.json").write_text(json.dumps([{"image": "val2014/0.jpg", "caption": CAPTIONS[:1]}]))
    assert options(read(coco)) == before[:1]
    assert len(json.loads(made.read_text())["items"]) == 1


def test_a_directory_that_cannot_be_written_is_read_all_the_same(coco, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(order_sets.os, "replace", refuse)
    assert len(read(coco).choices) == 4
    assert "coco_order.made_by_vlp.json cannot be written (Permission denied)" in capsys.readouterr().err
    assert not list(coco.glob("*.partial"))


def test_precision_at_1_and_each_shuffle(given, encoder):
    scores = read(given).run(encoder, batch_size=4)
    assert scores.metrics == pytest.approx(
        {
            "text_acc": 1 / 3,
            "text_acc_nouns_and_adj": 2 / 3,
            "text_acc_allbut_nouns_and_adj": 1,
            "text_acc_within_trigrams": 1 / 3,
            "text_acc_trigrams": 1,
        }
    )
    assert scores.tie_rate == 1 / 3
    assert scores.labels["text_acc"] == (
        "true caption first of 3 to 5 (micro: all 3); 2 shuffles that are the caption again left out"
    )
    assert scores.chance["text_acc_trigrams"] == 1 / 2
    # Of the second only two false captions differ, of the third only one.
    assert scores.chance["text_acc"] == pytest.approx((1 / 5 + 1 / 3 + 1 / 2) / 3)
    assert [(row.table, row.name, row.number) for row in scores.categories] == [
        ("shuffle", name, number) for name, number in zip(word_order.SHUFFLES, (3, 2, 3, 2), strict=True)
    ]
    assert scores.log["flickr/micro_accuracy"] == 1 / 3


def test_precision_agrees_with_the_official_evaluation_where_nothing_ties(coco):
    """Its definition: of five scores, the true caption's first, the first is highest."""
    task = read(coco)
    generator = torch.Generator().manual_seed(0)
    right = 0
    for _ in range(20):
        image_ND, text_ND = (torch.randn(len(x), 8, generator=generator) for x in (task.images, task.texts))
        found = task.score(SetEmbeddings(image_ND, text_ND, 1.0))
        official = [
            int((text_ND[[choice.caption, *choice.wrong]] @ image_ND[choice.image]).argmax()) == 0
            for choice in task.choices
        ]
        assert found.metrics["text_acc"] == sum(official) / len(official)
        right += sum(official)
    assert 0 < right < 80


def test_a_constant_model_scores_zero(coco, given):
    for task in (read(coco), read(given)):
        constant = (torch.full((len(inputs), 192), 0.3) for inputs in (task.images, task.texts))
        scores = task.score(SetEmbeddings(*constant, 1.0))
        assert set(scores.metrics.values()) == {0}
        assert scores.tie_rate == 1


def test_the_users_options_stand_before_the_captions(coco):
    case = {"image": "val2014/1.jpg", "caption_options": ["a b", "b a"]}
    (coco / "coco_order.json").write_text(json.dumps([case]))
    task = read(coco)
    assert (options(task), task.category_of_wrong, task.name) == ([["a b", "b a"]], ["option_1"], "coco")
    assert not (coco / "coco_order.made_by_vlp.json").exists()
    named = read(coco / "coco_karpathy_test.json")
    assert (len(named.choices), named.name) == (4, "coco_karpathy_test")
    # What vlp keeps is in the form of the options.
    (coco / "coco_order.made_by_vlp.json").rename(coco / "coco_order.json")
    assert options(read(coco)) == options(named)


def test_two_sets_in_one_directory_go_by_their_files(coco):
    (coco / "flickr30k_test.json").write_text("[]")
    with pytest.raises(
        UserError, match=r"two sets: name the file of one, .*coco_karpathy_test\.json or .*flickr30k_te"
    ):
        find_task(coco)
    assert len(read(coco / "coco_karpathy_test.json").choices) == 4


def test_damaged_files_are_named(coco, given):
    captions, options = coco / "coco_karpathy_test.json", given / "flickr30k_order.json"
    for path, content, message in [
        (captions, "{}", r"karpathy_test\.json is no list of pictures with captions: .* github\.com/salesforce/BLIP"),
        (captions, '[{"image": "a.jpg", "caption": "one"}]', r"item 0 of .* needs image and caption: .*BLIP"),
        (
            captions,
            '[{"image": "val2014/9.jpg", "caption": ["a b"]}]',
            r"val2014/9\.jpg is missing, which .* COCO's pi",
        ),
        (captions, '[{"image": "val2014/1.jpg", "caption": ["dog"]}]', r"no caption whose words can stand in another"),
        (options, "[]", r"flickr30k_order\.json is no list of items: write \[{image, caption_options"),
        (options, '[{"image": "1.jpg", "caption_options": ["a"]}]', r"item 0 of .* needs image and caption_options"),
        (options, '[{"image": "1.jpg", "caption_options": [null, "a"]}]', r"item 0 of .* needs image and caption_opti"),
        (options, '[{"image": "1.jpg", "caption_options": ["a", 1]}]', r"item 0 of .* needs image and caption_options"),
    ]:
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            find_task(path.parent)
