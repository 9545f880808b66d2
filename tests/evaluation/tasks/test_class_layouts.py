"""Sets with classes in all their layouts, from files to figures, and beside CLIP_benchmark on the same files."""

import io
import json
import math
import shutil
import tarfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from vlp.data.write import write_classification_set
from vlp.encoders.openclip import ModelOptions, build
from vlp.evaluation.classification_options import ClassificationOptions
from vlp.evaluation.run import EvaluateOptions, find_task, open_tasks
from vlp.evaluation.tasks import class_folders, class_table, classification
from vlp.types import UserError

COLOURS = ["#ff0000", "#00ff00", "#0000ff", "#ffff00", "#00ffff", "#ff00ff"]


def write_webdataset(directory, items, classnames=COLOURS, templates=("{c}",)):
    write_classification_set(directory, items, classnames, templates)
    return directory


def write_multilabel(directory, items, classnames) -> None:
    """Items are a picture and a row of 0 and 1."""
    for split in ("test",):
        (directory / split).mkdir(parents=True)
        with tarfile.open(directory / split / "0.tar", "w") as tar:
            for number, (image, shown) in enumerate(items):
                buffer = io.BytesIO()
                np.save(buffer, np.array(shown))
                for name, content in ((f"{number}.png", image), (f"{number}.npy", buffer.getvalue())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        (directory / split / "nshards.txt").write_text("1")
    (directory / "dataset_type.txt").write_text("multilabel")
    (directory / "classnames.txt").write_text("\n".join(classnames))
    (directory / "zeroshot_classification_templates.txt").write_text("{c}")


def write_split(directory, items, classnames=COLOURS):
    """A webdataset set as the split train/ of ``directory``."""
    write_webdataset(directory.with_name("train-set"), items, classnames)
    (directory.with_name("train-set") / "test").rename(directory / "train")


# ---- Each layout is one task's, and the same pictures have the same figures


@pytest.fixture
def layouts(tmp_path, picture):
    """The same four pictures of three classes, one of them wrong, in each layout."""
    shown = [(0, 0), (1, 1), (2, 2), (1, 2)]  # colour, class
    names = sorted(COLOURS[:3])
    rank = [names.index(colour) for colour in COLOURS[:3]]
    items = [(picture(COLOURS[colour]), rank[label]) for colour, label in shown]
    write_webdataset(tmp_path / "webdataset", [(image, "png", label) for image, label in items], names)
    for number, (image, label) in enumerate(items):
        for place in (f"folders/{names[label]}", f"split/val/{names[label]}", "table/images"):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            (tmp_path / place / f"{number}.png").write_bytes(image)
    rows = "".join(f"images/{number}.png,{names[label]}\n" for number, (_, label) in enumerate(items))
    (tmp_path / "table/test.csv").write_text("image,label\n" + rows)
    for name in ("folders", "split", "table"):
        (tmp_path / name / "zeroshot_classification_templates.txt").write_text("{c}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("webdataset", classification.Task),
        ("folders", class_folders.Task),
        ("split", class_folders.Task),
        ("table", class_table.Task),
        ("table/test.csv", class_table.Task),
    ],
)
def test_layouts_are_told_apart_and_score_alike(layouts, encoder, name, task):
    found = find_task(layouts / name)
    assert type(found) is task
    scores = found.run(encoder, batch_size=4)
    assert scores.metrics["acc1"] == 3 / 4
    assert scores.metrics["mean_per_class_recall"] == pytest.approx(5 / 6)
    assert scores.num_images == 4
    assert scores.intervals["acc1"][0] < 3 / 4 < scores.intervals["acc1"][1]
    assert scores.notes[0] == "prompts: 1 template of the set"


def test_a_set_of_folders_may_have_class_names_beside_them(layouts):
    (layouts / "folders/classnames.txt").write_text("\n".join(COLOURS[:3]))
    assert type(find_task(layouts / "folders")) is class_folders.Task
    (layouts / "table/classnames.txt").write_text("\n".join(COLOURS[:3]))
    assert type(find_task(layouts / "table")) is class_table.Task


def test_a_subset_of_imagenet_in_folders_has_the_right_names(tmp_path, picture):
    for id in ("n02123045", "n01440764"):
        (tmp_path / "imagenet-a" / id).mkdir(parents=True)
        (tmp_path / "imagenet-a" / id / "0.png").write_bytes(picture("#ff0000"))
    task = find_task(tmp_path / "imagenet-a")
    assert isinstance(task, classification.Task)
    assert task.classnames == ["tench", "tabby cat"]
    assert len(task.prompts.of_class[0]) == 80


# ---- Options


def test_options_reach_the_task(layouts, encoder, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("\n".join(sorted(COLOURS[:3], reverse=True)))
    options = EvaluateOptions(
        sets=[str(layouts / "folders")], classification=ClassificationOptions(classnames=str(file))
    )
    (task,) = open_tasks(options)
    assert task.run(encoder, 4).metrics["acc1"] < 3 / 4


def test_options_without_a_set_of_classes_are_refused():
    with pytest.raises(UserError, match=r"no evaluation set has classes: leave out knn, probe"):
        open_tasks(EvaluateOptions(classification=ClassificationOptions(probe=True, knn=3)))


# ---- Classes of the same name


def test_of_classes_with_the_same_name_the_first_one_wins(tmp_path, picture, encoder):
    """As the pairs "missile" and "sunglasses" of ImageNet's names; for all other classes both stand in the way."""
    names = ["#ff0000", "#00ff00", "#ff0000", "#0000ff", "#ffff00", "#ff00ff"]
    items = [(picture("#ff0000"), "png", 0), (picture("#ff0000"), "png", 2), (picture("#00ff00"), "png", 1)]
    task = find_task(write_webdataset(tmp_path / "set", [*items, (picture("#fe0001"), "png", 3)], names))
    scores = task.run(encoder, 4)
    assert scores.details["rank_of_label"] == [1, 2, 1, 5]  # the last after both of red, yellow and magenta
    assert scores.tie_rate < 1 / 2
    assert "never told: '#ff0000'" in scores.notes[2]


def test_a_collapsed_model_still_scores_zero(tmp_path, picture, constant_encoder):
    items = [(picture("#ff0000"), "png", number) for number in range(3)]
    task = find_task(write_webdataset(tmp_path / "set", items, ["#ff0000", "#00ff00", "#ff0000"]))
    scores = task.run(constant_encoder, 4)
    assert scores.metrics["acc1"] == 0
    assert scores.tie_rate == 1


# ---- Probes of train/


def test_probes_of_the_train_split(tmp_path, picture, encoder):
    """The text side is wrong about all classes; what the image tower knows is not."""
    wrong = COLOURS[1:] + COLOURS[:1]
    items = [(picture(COLOURS[number % 6]), "png", number % 6) for number in range(12)]
    directory = write_webdataset(tmp_path / "set", items, wrong)
    write_split(directory, [(picture(COLOURS[number % 6]), "png", number % 6) for number in range(60)], wrong)
    task = classification.Task(directory, ClassificationOptions(probe=True, knn=5))
    scores = task.run(encoder, batch_size=8)
    assert scores.metrics["acc1"] == 0
    expected = ("lp_acc1", "lp_acc5", "lp_mean_per_class_recall", "knn_acc1", "knn_mean_per_class_recall")
    assert {name: scores.metrics[name] for name in expected} == dict.fromkeys(expected, 1)
    assert scores.chance["lp_acc1"] == 1 / 6
    assert scores.log["set/lp_acc1"] == 1
    assert any("linear probe: strength" in note for note in scores.notes)
    assert any("nearest: 5 pictures" in note for note in scores.notes)
    assert encoder.num_images_seen == 12 + 60  # once, for all figures together


def test_what_probes_lack_is_named(tmp_path, picture):
    directory = write_webdataset(tmp_path / "set", [(picture(COLOURS[0]), "png", 0)])
    with pytest.raises(UserError, match=r"train/nshards.txt is missing"):
        classification.Task(directory, ClassificationOptions(probe=True))
    write_split(directory, [(picture(COLOURS[0]), "png", 0)])
    with pytest.raises(UserError, match=r"knn 20 is more than the 1 pictures"):
        classification.Task(directory, ClassificationOptions(knn=20))


def test_a_constant_model_scores_zero_by_its_neighbours_too(tmp_path, picture, constant_encoder):
    items = [(picture(COLOURS[number % 6]), "png", number % 6) for number in range(12)]
    directory = write_webdataset(tmp_path / "set", items)
    write_split(directory, items)
    scores = classification.Task(directory, ClassificationOptions(probe=True, knn=3)).run(constant_encoder, 8)
    assert scores.metrics["knn_acc1"] == 0
    assert scores.metrics["lp_acc1"] <= 1 / 6


# ---- Several classes a picture


def test_several_classes_a_picture(tmp_path, picture, encoder):
    items = [(picture("#ff0000"), [1, 0]), (picture("#00ff00"), [0, 1]), (picture("#ff2000"), [1, 1])]
    write_multilabel(tmp_path / "voc", items, ["#ff0000", "#00ff00"])
    task = find_task(tmp_path / "voc")
    scores = task.run(encoder, 4)
    assert scores.metrics == {"mean_average_precision": 1}
    assert scores.chance == {"mean_average_precision": pytest.approx(2 / 3)}
    assert scores.details["class_average_precision"] == [1, 1]
    assert math.isnan(scores.tie_rate)
    with pytest.raises(UserError, match="several classes a picture, which probe and knn do not take"):
        classification.Task(tmp_path / "voc", ClassificationOptions(probe=True))


def test_a_class_that_no_picture_shows_is_told(tmp_path, picture, encoder):
    write_multilabel(tmp_path / "voc", [(picture("#ff0000"), [1, 0])] * 2, ["#ff0000", "#00ff00"])
    scores = find_task(tmp_path / "voc").run(encoder, 4)
    assert scores.metrics == {"mean_average_precision": 1}
    assert "1 classes that no picture shows are left out of the mean" in scores.notes


@pytest.mark.parametrize(("row", "message"), [([1, 0, 1], r"shape is \(3,\)"), ([1, 2], "other numbers")])
def test_rows_of_classes_that_do_not_fit(tmp_path, picture, row, message):
    write_multilabel(tmp_path / "voc", [(picture("#ff0000"), row)], ["#ff0000", "#00ff00"])
    with pytest.raises(UserError, match=message):
        find_task(tmp_path / "voc")


# ---- Beside CLIP_benchmark


@pytest.fixture
def model(tiny_model):
    return build(ModelOptions(config=tiny_model), seed=0).eval()


@contextmanager
def of_today():
    """CLIP_benchmark 1.6.2 makes a float of an array of one number, which numpy refuses from 2.4 on."""
    numpy = torch.Tensor.numpy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "numpy", lambda one: numpy(one)[0] if one.shape == (1,) else numpy(one))
        yield


def of_clip_benchmark(model, directory):
    """Its figures of the directory, read by its own reader."""
    evaluator = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    builder = pytest.importorskip("clip_benchmark.datasets.builder")

    def transform(image):
        return model.normalise(model.eval_transform(image.convert("RGB"))[None])[0]

    found = builder.build_dataset("wds/set", root=str(directory), transform=transform, split="test", download=False)
    loader = torch.utils.data.DataLoader(found.batched(16), batch_size=None)
    loader.dataset.classes, templates = found.classes, found.templates
    with of_today():
        return evaluator.evaluate(model.clip, loader, model.tokenizer, found.classes, templates, "cpu", amp=False)


@pytest.fixture
def noise():
    """Pictures that a model of random weights tells apart."""
    import PIL.Image

    from vlp.data.write import encode_image

    def make(seed):
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return encode_image(PIL.Image.fromarray(coarse).resize((32, 32), PIL.Image.Resampling.NEAREST))

    return make


NAMES = ["cat", "big dog", "cow", "red car", "a green tree", "house", "sky"]
TEMPLATES = ["a photo of a {c}.", "{c}!", "the {c} of the year"]


@pytest.mark.parametrize("num_classes", [7, 3])
def test_figures_are_those_of_clip_benchmark_to_the_last_digit(tmp_path, model, noise, num_classes):
    labels = [seed * seed % num_classes for seed in range(150)]
    items = [(noise(seed), "png", label) for seed, label in enumerate(labels)]
    write_webdataset(tmp_path / "set", items, NAMES[:num_classes], TEMPLATES)
    theirs = of_clip_benchmark(model, tmp_path / "set")
    ours = find_task(tmp_path / "set").run(model, 16).metrics
    assert 0 < theirs["acc1"] < 1
    assert json.dumps(ours) == json.dumps(theirs)


def test_so_is_mean_average_precision(tmp_path, model, noise):
    shown = np.random.default_rng(0).integers(0, 2, (100, 3))
    write_multilabel(tmp_path / "set", [(noise(seed), row) for seed, row in enumerate(shown)], NAMES[:3])
    theirs = of_clip_benchmark(model, tmp_path / "set")
    ours = find_task(tmp_path / "set").run(model, 16).metrics
    assert ours == {"mean_average_precision": pytest.approx(theirs["mean_average_precision"], abs=1e-6)}  # fp32


def test_ties_differ_which_is_why(constant_encoder, tmp_path, picture):
    """A collapsed model: topk takes some class for every picture, ours gives nothing for what it does not know."""
    evaluator = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    with of_today():
        assert evaluator.accuracy(torch.ones(6, 6), torch.arange(6), topk=(1, 5)) == [1 / 6, 5 / 6]
    items = [(picture(COLOURS[0]), "png", number) for number in range(6)]
    task = find_task(write_webdataset(tmp_path / "set", items))
    scores = task.run(constant_encoder, 4)
    assert (scores.metrics["acc1"], scores.metrics["acc5"], scores.tie_rate) == (0, 0, 1)


@pytest.mark.parametrize("other", ["split", "table"])
def test_two_layouts_in_one_directory_are_refused(layouts, other):
    shutil.copytree(layouts / other, layouts / "webdataset", dirs_exist_ok=True)
    if other == "split":
        (layouts / "webdataset/val").rename(layouts / "webdataset/moved")
        shutil.copytree(layouts / "webdataset/moved", layouts / "webdataset/test", dirs_exist_ok=True)
        shutil.rmtree(layouts / "webdataset/moved")
    with pytest.raises(UserError, match="several evaluation sets"):
        find_task(layouts / "webdataset")
