"""Karpathy's test splits in every file in which they are published, made small."""

import json

import pytest

from vlp.evaluation.run import evaluate, find_task
from vlp.evaluation.tasks.karpathy import Task
from vlp.types import UserError

COLOURS = [f"#{40 * i:02x}{250 - 40 * i:02x}80" for i in range(6)]
CAPTIONS = [[f"{colour} caption {n}" for n in range(7 if i == 2 else 5)] for i, colour in enumerate(COLOURS)]
CAPTIONS[4][1] = f'{COLOURS[4]} says "yes, no", and waits'


@pytest.fixture
def directory(tmp_path, picture):
    (tmp_path / "coco" / "val2014").mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        (tmp_path / "coco" / "val2014" / f"{number}.jpg").write_bytes(picture(colour))
    return tmp_path / "coco"


def own(directory, name="dataset_coco.json"):
    images = [
        {
            "filepath": "val2014",
            "filename": f"{number}.jpg",
            "imgid": number,
            "split": "test",
            "sentences": [{"raw": text, "tokens": text.split(), "sentid": 0, "imgid": number} for text in texts],
        }
        for number, texts in enumerate(CAPTIONS)
    ]
    others = [{**images[0], "filename": "none.jpg", "split": split} for split in ("train", "val", "restval")]
    (directory / name).write_text(json.dumps({"images": [*others, *images], "dataset": "coco"}))
    return directory / name


def coco_style(directory, name="coco_test_karpathy.json"):
    images = [{"id": 90 - number, "file_name": f"{number}.jpg"} for number in range(6)]
    rows = [(90 - number, text) for number, texts in enumerate(CAPTIONS) for text in texts]
    annotations = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(rows)]
    (directory / name).write_text(json.dumps({"images": images, "annotations": annotations}))
    return directory / name


def lines(directory, name="flickr30k_test_karpathy.txt"):
    rows = [f"{number}.jpg,{text}" for number, texts in enumerate(CAPTIONS) for text in texts]
    (directory / name).write_text("\n".join(["image,caption", *rows, ""]))
    return directory / name


def blip(directory, name="coco_karpathy_test.json"):
    rows = [{"image": f"val2014/{number}.jpg", "caption": texts} for number, texts in enumerate(CAPTIONS)]
    (directory / name).write_text(json.dumps(rows))
    return directory / name


@pytest.mark.parametrize("write", [own, coco_style, lines])
def test_every_file_gives_the_same_set(directory, write):
    file = write(directory)
    task = find_task(directory)
    assert type(task) is Task
    assert task.texts == [text for texts in CAPTIONS for text in texts]
    assert task.image_of_text == [number for number, texts in enumerate(CAPTIONS) for _ in texts]
    assert [image.path.name for image in task.images] == [f"{number}.jpg" for number in range(6)]
    assert find_task(file).texts == task.texts
    assert (task.name, find_task(file).name) == ("coco", file.stem)


def test_the_file_that_aro_reads_too_has_to_be_named(directory):
    blip(directory)
    assert find_task(directory).kind == "image_caption_selection"
    assert len(find_task(f"karpathy:{directory}/coco_karpathy_test.json").texts) == 32


def test_which_captions_are_kept_is_said(directory, encoder):
    own(directory)
    whole, five = (
        evaluate(encoder, [f"{task}:{directory}"], 8, "tiny", "none")[0] for task in ("karpathy", "karpathy5")
    )
    assert (whole.dataset, five.dataset) == ("coco", "coco_first5")
    assert whole.scores.notes == [
        "6 images, 32 texts, any-of; 1 image has more than 5 captions, of which all are kept (karpathy5:PATH keeps "
        "the first 5)"
    ]
    assert five.scores.notes == [
        "6 images, 30 texts, any-of; 1 image has more than 5 captions, of which the first 5 are kept"
    ]
    assert find_task(f"karpathy5:{directory}").texts[10:15] == CAPTIONS[2][:5]


def test_coco_has_the_mean_over_five_folds_and_flickr_has_not(directory, encoder):
    own(directory)
    scores = find_task(directory).run(encoder, 8)
    folds = [f"coco_1k_r{k}_{way}" for k in (1, 5, 10) for way in ("i2t", "t2i")]
    assert set(folds) < set(scores.metrics)
    assert scores.metrics.keys() == scores.chance.keys() == scores.labels.keys()
    # By hand: the last of the folds has two pictures with five captions each, the others one.
    assert scores.chance["coco_1k_r1_t2i"] == pytest.approx((4 * 1 + 1 / 2) / 5)
    assert scores.labels["coco_1k_r1_t2i"] == "text -> image R@1, 5 folds"
    (directory / "dataset_coco.json").unlink()
    lines(directory)
    assert not set(folds) & set(find_task(directory).run(encoder, 8).metrics)


def test_the_chinese_captions_say_their_language(directory, encoder):
    lines(directory, "flickr30k_test_zh.txt")
    (result,) = evaluate(encoder, [directory], 8, "tiny", "none")
    assert result.to_json()["language"] == "zh"


def fails(directory, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        find_task(directory)
    assert "\n" not in str(error.value)


def test_several_files_have_to_be_named(directory):
    own(directory)
    own(directory, "dataset_flickr30k.json")
    fails(directory, r"holds 2 files of captions: name one, \S+dataset_coco\.json or \S+dataset_flickr30k\.json")
    assert find_task(directory / "dataset_flickr30k.json").name == "dataset_flickr30k"
    (directory / "captions_val2014.json").write_text("{}")  # of ECCV Caption
    fails(directory, r"holds several evaluation sets: name the file of one \(\S+captions_val2014\.json or \S+dataset_c")


def test_a_set_must_be_whole(directory):
    own(directory)
    (directory / "val2014" / "3.jpg").rename(directory / "val2014" / "three.jpg")
    fails(directory, r"dataset_coco\.json names the picture val2014/3\.jpg, which is neither beside it nor in")
    (directory / "val2014" / "three.jpg").rename(directory / "val2014" / "3.jpg")
    content = json.loads((directory / "dataset_coco.json").read_text())
    content["images"][4]["sentences"] = [{"raw": " "}]
    (directory / "dataset_coco.json").write_text(json.dumps(content))
    fails(directory, r"dataset_coco\.json has no caption for the picture val2014/1\.jpg: add one, or leave")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("dataset_coco.json", '{"images": [{"split": "test"}]}', "'filename' is missing"),
        ("dataset_coco.json", '{"images": []}', "names no picture with its captions"),
        ("dataset_coco.json", "[1", "is damaged or no file of captions"),
        ("coco_test_karpathy.json", '{"images": [], "annotations": [{"id": 3}]}', "'image_id' is missing"),
        ("flickr8k_test_karpathy.txt", "image,caption\na picture.png,red\n", r"line 2 is not NAME\.jpg,caption"),
    ],
)
def test_what_cannot_be_read_is_named(directory, name, content, sentence):
    (directory / name).write_text(content)
    fails(directory, rf"{name}.*{sentence}")


def test_a_single_caption_may_stand_without_a_list(directory):
    rows = [{"image": f"val2014/{number}.jpg", "caption": texts[0]} for number, texts in enumerate(CAPTIONS)]
    (directory / "coco_karpathy_test.json").write_text(json.dumps(rows))
    assert find_task(f"karpathy:{directory}/coco_karpathy_test.json").texts == [texts[0] for texts in CAPTIONS]


def test_a_caption_that_is_no_text_is_named(directory):
    content = json.loads(own(directory).read_text())
    content["images"][-1]["sentences"][0]["raw"] = None
    (directory / "dataset_coco.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has no list of captions in words for the picture val2014/5.jpg"):
        find_task(directory)


def test_a_line_ends_at_its_end_only(directory):
    (directory / "flickr30k_test_karpathy.txt").write_text("image,caption\n0.jpg,one\u2028two\x85three\n")
    assert find_task(directory).texts == ["one two three"]


def test_the_papers_of_other_tools_are_no_captions(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    assert not Task.detects(tmp_path)
