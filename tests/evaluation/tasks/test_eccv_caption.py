"""COCO's files and ECCV Caption's lists in their official formats, made small: 10 pictures with 5 captions each."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlp.evaluation.run import evaluate, find_task
from vlp.evaluation.tasks.base import SetEmbeddings
from vlp.evaluation.tasks.eccv_caption import Task
from vlp.types import UserError

NUM_IMAGES = 10
IMAGE_IDS = [900 - 7 * i for i in range(NUM_IMAGES)]
CAPTION_IDS = [1_000_000 + 13 * (29 * t % 50) for t in range(5 * NUM_IMAGES)]
COLOURS = [f"#{25 * i:02x}{250 - 25 * i:02x}80" for i in range(NUM_IMAGES)]
OWN = {caption: IMAGE_IDS[t // 5] for t, caption in enumerate(CAPTION_IDS)}


def filename(image_id):
    return f"COCO_val2014_{image_id:012d}.jpg"


def lists():
    """CxC adds the next picture's first caption, and lacks one; ECCV Caption asks of some, with more."""
    cxc = {image: [c for c, own in OWN.items() if own == image] for image in IMAGE_IDS}
    for i, image in enumerate(IMAGE_IDS):
        cxc[image].append(CAPTION_IDS[(5 * i + 5) % 50])
    cxc[IMAGE_IDS[3]].remove(CAPTION_IDS[17])
    eccv = {IMAGE_IDS[i]: [*cxc[IMAGE_IDS[i]], *CAPTION_IDS[3 * i : 3 * i + 4]] for i in (1, 4, 7, 9)}
    eccv[IMAGE_IDS[4]].append(999_999)  # outside the test split, as two of the real list are
    asked = {CAPTION_IDS[t]: [OWN[CAPTION_IDS[t]], IMAGE_IDS[t % 7], IMAGE_IDS[-1]] for t in (0, 8, 9, 33, 41)}
    return {
        "cxc_image_to_caption": cxc,
        "cxc_caption_to_image": turned(cxc),
        "eccv_image_to_caption": eccv,
        "eccv_caption_to_image": asked,
    }


def turned(table):
    other = {}
    for query, ids in table.items():
        for number in ids:
            other.setdefault(number, []).append(query)
    return other


@pytest.fixture
def directory(tmp_path, picture):
    directory = tmp_path / "coco"
    (directory / "val2014").mkdir(parents=True)
    (directory / "eccv_caption").mkdir()
    for image_id, colour in zip(IMAGE_IDS, COLOURS, strict=True):
        (directory / "val2014" / filename(image_id)).write_bytes(picture(colour))
    np.save(directory / "eccv_caption" / "coco_test_ids.npy", np.array(CAPTION_IDS))
    for name, table in lists().items():
        (directory / "eccv_caption" / f"{name}.json").write_text(json.dumps(table))
    write_official(directory)
    return directory


def text_of(caption):
    return f"{COLOURS[IMAGE_IDS.index(OWN[caption])]} caption {caption}"


def write_official(directory):
    """With pictures and captions that are not in the split, and in another order."""
    content = {
        "images": [{"file_name": filename(i), "id": i, "height": 1} for i in [*sorted(IMAGE_IDS), 5]],
        "annotations": [{"image_id": OWN[c], "id": c, "caption": text_of(c)} for c in sorted(CAPTION_IDS)]
        + [{"image_id": 5, "id": 1, "caption": "another split"}],
    }
    (directory / "captions_val2014.json").write_text(json.dumps(content))


def write_karpathy(directory):
    images = [
        {
            "filepath": "val2014",
            "filename": filename(i),
            "imgid": 0,
            "split": "test",
            "cocoid": i,
            "sentences": [{"raw": text_of(c), "tokens": [], "sentid": c} for c, own in OWN.items() if own == i],
        }
        for i in IMAGE_IDS
    ]
    (directory / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))


def random_embeddings(noise, dimensions=8):
    generator = torch.Generator().manual_seed(0)
    image_ND = torch.randn(NUM_IMAGES, dimensions, generator=generator)
    text_ND = image_ND.repeat_interleave(5, dim=0) + noise * torch.randn(50, dimensions, generator=generator)
    return SetEmbeddings(F.normalize(image_ND, dim=1), F.normalize(text_ND, dim=1), 10.0)


def test_the_set_keeps_the_order_of_the_test_ids(directory):
    task = find_task(directory)
    assert isinstance(task, Task)
    assert task.texts == [text_of(caption) for caption in CAPTION_IDS]
    assert task.image_of_text == [t // 5 for t in range(50)]
    assert [image.path.name for image in task.images] == [filename(i) for i in IMAGE_IDS]
    eccv = task.set.eccv.image_to_text
    assert eccv.queries == [1, 4, 7, 9]
    assert eccv.number == [8, 11, 10, 10]
    assert [len(rows) for rows in eccv.right] == [8, 10, 10, 10]
    assert task.set.eccv.text_to_image.right[0] == [0, 9]  # a picture that is named twice counts once


def test_both_files_of_captions_say_the_same(directory):
    expected = Task(directory)
    write_karpathy(directory)
    (directory / "captions_val2014.json").unlink()
    task = find_task(directory)
    assert (task.texts, task.image_of_text, task.images) == (expected.texts, expected.image_of_text, expected.images)
    (directory / "dataset_coco.json").unlink()
    (directory / "annotations").mkdir()
    write_official(directory / "annotations")
    assert find_task(directory).texts == expected.texts
    by_file = find_task(directory / "annotations" / "captions_val2014.json")
    assert (by_file.texts, by_file.images) == (expected.texts, expected.images)


def test_beside_another_set_the_file_names_the_set(directory):
    (directory / "coco_karpathy_test.json").write_text("[]")  # of ARO's COCO-Order, which shows the same pictures
    fails(directory, r"several evaluation sets: name the file of one \(\S+captions_val2014\.json or \S+coco_karpathy")
    assert isinstance(find_task(directory / "captions_val2014.json"), Task)


def test_names_chance_and_intervals(directory, encoder):
    (result,) = evaluate(encoder, [directory], 8, "tiny", "none")
    scores = result.scores
    assert result.task == "zeroshot_retrieval"
    names = [*("eccv_map_at_r", "eccv_rprecision", "eccv_r1"), *(f"cxc_r{k}" for k in (1, 5, 10))]
    both = [f"{name}_{way}" for name in names for way in ("i2t", "t2i")]
    folds = [f"coco_1k_r{k}_{way}" for k in (1, 5, 10) for way in ("i2t", "t2i")]
    coco = [f"{found}_retrieval_recall@{k}" for found in ("image", "text") for k in (1, 5, 10)]
    assert scores.metrics.keys() == {*both, *folds, *coco}
    assert scores.intervals.keys() == {*both, *coco}
    assert scores.metrics.keys() == scores.chance.keys() == scores.labels.keys()
    assert scores.labels["eccv_map_at_r_i2t"] == "image -> text ECCV mAP@R"
    assert scores.log["coco/image_to_text_eccv_map_at_r"] == scores.metrics["eccv_map_at_r_i2t"]
    assert scores.log["coco/text_to_image_R@1"] == scores.metrics["image_retrieval_recall@1"]
    for name, (low, high) in scores.intervals.items():
        assert low <= scores.metrics[name] <= high
    # By hand: captions lie on their own pictures, so only own captions come first.
    assert scores.metrics["eccv_r1_i2t"] == scores.metrics["coco_1k_r1_i2t"] == 1
    assert scores.chance["coco_1k_r1_t2i"] == 1 / 2
    assert scores.chance["eccv_r1_t2i"] == pytest.approx((2 + 2 + 3 + 3 + 3) / 5 / 10)


def test_a_constant_model_scores_zero(directory, constant_encoder):
    scores = Task(directory).run(constant_encoder, batch_size=16)
    # Of two pictures in a fold all recalls at 5 are right by the number of candidates alone.
    assert {name for name, value in scores.metrics.items() if value > 0} <= {
        name for name, chance in scores.chance.items() if chance == 1
    }
    assert scores.tie_rate == 1


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_agrees_with_the_package_on_the_same_scores(directory, noise):
    package = pytest.importorskip("eccv_caption")
    embeddings = random_embeddings(noise)
    ours = Task(directory).score(embeddings)
    assert ours.tie_rate == 0  # else the package's answer would hang on the order that its user sorts ties in

    reference = package.Metrics()
    folder = directory / "eccv_caption"
    reference.set_eccv_gts(folder / "eccv_image_to_caption.json", folder / "eccv_caption_to_image.json")
    reference.set_cxc_gts(folder / "cxc_image_to_caption.json", folder / "cxc_caption_to_image.json")
    reference.coco_ids = np.load(folder / "coco_test_ids.npy")
    own = {image: [caption for caption, other in OWN.items() if other == image] for image in IMAGE_IDS}
    reference.coco_gts = {"i2t": own, "t2i": {caption: [image] for caption, image in OWN.items()}}
    score_IT = embeddings.image_ND.double() @ embeddings.text_ND.double().T
    i2t = {IMAGE_IDS[i]: [CAPTION_IDS[t] for t in row.argsort(descending=True)] for i, row in enumerate(score_IT)}
    t2i = {CAPTION_IDS[t]: [IMAGE_IDS[i] for i in row.argsort(descending=True)] for t, row in enumerate(score_IT.T)}
    wanted = ("eccv_map_at_r", "eccv_rprecision", "eccv_r1", "cxc_recalls", "coco_5k_recalls", "coco_1k_recalls")
    expected = reference.compute_all_metrics(i2t, t2i, target_metrics=wanted, Ks=(1, 5, 10))
    assert len(expected) == 3 + 3 * 3
    for name, both in expected.items():
        for way, found in (("i2t", "text"), ("t2i", "image")):
            metric = f"{found}_retrieval_recall@{name[9:]}" if name.startswith("coco_5k") else f"{name}_{way}"
            assert ours.metrics[metric] == pytest.approx(both[way]), metric


def test_the_lists_of_the_installed_package_are_taken(directory):
    """They are COCO's real ones, which the made captions do not have."""
    pytest.importorskip("eccv_caption")
    (directory / "eccv_caption").rename(directory / "elsewhere")
    fails(directory, r"captions_val2014\.json lacks 25000 of the 25000 captions of the test split, first id 770337")


def fails(directory, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        find_task(directory)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named_with_its_source(directory):
    (directory / "val2014" / filename(893)).rename(directory / "val2014" / "893.jpg")
    fails(directory, r"val2014/COCO_val2014_000000000893\.jpg is missing: copy it from COCO's val2014\.zip")
    (directory / "captions_val2014.json").rename(directory / "captions.json")
    fails(directory, r"captions_val2014\.json is missing: take it from COCO's annotations_trainval2014\.zip")


def test_without_lists_the_package_is_named(directory, monkeypatch):
    (directory / "eccv_caption").rename(directory / "elsewhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fails(directory, r"neither installed nor in .*coco/eccv_caption: pip install eccv_caption")


@pytest.mark.parametrize("name", ["cxc_image_to_caption.json", "eccv_caption_to_image.json", "coco_test_ids.npy"])
def test_missing_and_damaged_lists_are_named(directory, name):
    path = directory / "eccv_caption" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    fails(directory, rf"eccv_caption/{name} is .*: copy it again")
    path.unlink()
    fails(directory, rf"eccv_caption/{name} is missing: copy it from eccv_caption/data of .*naver-ai/eccv-caption")


def test_other_files_of_that_name_are_named(directory):
    (directory / "eccv_caption" / "eccv_image_to_caption.json").write_text('{"77": [1000000]}')
    fails(directory, r"eccv_image_to_caption\.json is another file than it should be, 77 is missing")
    (directory / "captions_val2014.json").write_text('{"images": []}')
    fails(directory, r"captions_val2014\.json is another file than it should be, 'annotations' is missing")
    (directory / "captions_val2014.json").write_text("[]")
    fails(directory, r"captions_val2014\.json is damaged or another file")
