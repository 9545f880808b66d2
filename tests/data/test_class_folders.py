import json

import pytest
from PIL import Image

from vlp.data.class_folders import is_class_directory, read_class_folders
from vlp.types import UserError


def put(*paths) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)


@pytest.fixture
def folders(tmp_path):
    put(*(tmp_path / f"set/{name}.png" for name in ("tabby_cat/a", "dog/deeper/b", "dog/a")))
    return tmp_path / "set"


def test_folders_are_classes_in_the_order_of_their_names(folders):
    assert is_class_directory(folders)
    found = read_class_folders(folders)
    assert found.classnames == ["dog", "tabby cat"]
    assert found.named_by == "folders"
    assert found.labels.tolist() == [0, 0, 1]
    assert [image.path.relative_to(folders).as_posix() for image in found.images] == [
        "dog/a.png",
        "dog/deeper/b.png",
        "tabby_cat/a.png",
    ]
    assert found.templates == []


@pytest.mark.parametrize("split", ["test", "val"])
def test_splits(tmp_path, split):
    put(*(tmp_path / f"{where}/{name}/{where}.png" for where in (split, "train") for name in "ab"))
    assert is_class_directory(tmp_path)
    assert [image.path.name for image in read_class_folders(tmp_path).images] == [f"{split}.png"] * 2
    assert [image.path.name for image in read_class_folders(tmp_path, "train").images] == ["train.png"] * 2
    assert read_class_folders(tmp_path).classnames == ["a", "b"]


def test_train_may_be_a_class(tmp_path):
    put(*(tmp_path / f"{name}/a.png" for name in ("bus", "train")))
    assert is_class_directory(tmp_path)
    assert read_class_folders(tmp_path).classnames == ["bus", "train"]
    put(*(tmp_path / f"split/test/{name}/a.png" for name in ("bus", "train")))
    assert read_class_folders(tmp_path / "split").classnames == ["bus", "train"]


def test_numbers_are_in_their_own_order(tmp_path):
    put(*(tmp_path / f"{number}/a.jpg" for number in (0, 1, 2, 10)))
    assert read_class_folders(tmp_path).classnames == ["0", "1", "2", "10"]


def test_names_and_templates_beside_the_folders(folders):
    (folders / "classnames.txt").write_text("hound\ntabby\n")
    (folders / "zeroshot_classification_templates.txt").write_text("my {c}\n")
    assert is_class_directory(folders)
    found = read_class_folders(folders)
    assert (found.classnames, found.templates, found.named_by) == (["hound", "tabby"], ["my {c}"], "classnames.txt")
    (folders / "classnames.txt").unlink()
    (folders / "classnames.json").write_text(json.dumps({"tabby_cat": "tabby", "dog": "hound", "cow": "cow"}))
    assert is_class_directory(folders)
    assert read_class_folders(folders).classnames == ["hound", "tabby"]
    (folders / "classnames.json").write_text(json.dumps(["hound", "tabby"]))
    assert read_class_folders(folders).classnames == ["hound", "tabby"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classnames.txt", "hound\n", "has 1 names, but there are 2 folders"),
        ("classnames.json", '{"dog": "hound"}', "no name for the folder 'tabby_cat'"),
        ("classnames.json", "{", "is no JSON"),
    ],
)
def test_names_that_do_not_fit(folders, name, content, message):
    (folders / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_class_folders(folders)


def test_what_is_missing_is_named(folders):
    (folders / "empty").mkdir()
    with pytest.raises(UserError, match=r"set/empty holds no picture"):
        read_class_folders(folders)
    with pytest.raises(UserError, match=r"set/train is missing"):
        read_class_folders(folders, "train")


@pytest.mark.parametrize("other", ["a/1.txt", "annotations.json", "list.csv", "test/nshards.txt", "00000.tar"])
def test_other_layouts_are_left_to_others(tmp_path, other):
    put(tmp_path / "a/1.png", tmp_path / "b/1.png")
    assert is_class_directory(tmp_path)
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_text("")
    (tmp_path / "b/1.txt").write_text("") if other == "a/1.txt" else None
    assert not is_class_directory(tmp_path)


def test_one_folder_of_pictures_or_none_is_no_set(tmp_path):
    put(tmp_path / "images/1.png")
    assert not is_class_directory(tmp_path)
    assert not is_class_directory(tmp_path / "images")
    assert not is_class_directory(tmp_path / "images/1.png")


def test_every_kind_of_picture_counts(tmp_path):
    put(*(tmp_path / f"{name}/{name}.{ending}" for name in "ab" for ending in ("bmp", "ppm", "tif", "png")))
    assert len(read_class_folders(tmp_path).images) == 8


def test_a_folder_that_ends_like_a_picture_is_none(tmp_path):
    put(tmp_path / "a/album.png/0.png", tmp_path / "a/1.png", tmp_path / "b/0.png")
    assert len(read_class_folders(tmp_path).images) == 3


def test_a_link_to_nowhere_is_named(folders):
    (folders / "dog/z.png").symlink_to(folders / "nowhere.png")
    with pytest.raises(UserError, match=r"z.png cannot be read \(No such file or directory\)"):
        [image.load() for image in read_class_folders(folders).images]


def test_the_folders_of_coco_are_no_classes(tmp_path):
    put(tmp_path / "val2014/a.png", tmp_path / "train2014/b.png")
    assert not is_class_directory(tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_name(folders):
    (folders / "classnames.txt").write_text("\ufeffhound\ncat\n", encoding="utf-8")
    assert read_class_folders(folders).classnames == ["hound", "cat"]


@pytest.mark.parametrize("name", [None, 5, " "])
def test_a_name_is_a_word(folders, name):
    (folders / "classnames.json").write_text(json.dumps({"dog": name, "tabby_cat": "cat"}))
    with pytest.raises(UserError, match="no name for the folder 'dog'"):
        read_class_folders(folders)
