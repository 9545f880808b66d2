import pytest
from PIL import Image

from vlp.data.caption_tables import is_caption_table
from vlp.data.class_tables import is_class_table, read_class_table
from vlp.types import UserError


@pytest.fixture
def directory(tmp_path):
    for name in ("a.png", "images/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def test_words_as_classes(directory):
    (directory / "things.csv").write_text("image,label\na.png,cat\nb.png,a dog\na.png,cat\n")
    for path in (directory, directory / "things.csv"):
        assert is_class_table(path)
        found = read_class_table(path)
        assert found.classnames == ["a dog", "cat"]
        assert found.labels.tolist() == [1, 0, 1]
        assert [image.path.name for image in found.images] == ["a.png", "b.png", "a.png"]
        assert found.named_by == "the classes of the table"


def test_numbers_as_classes_and_tabs(directory):
    (directory / "test.tsv").write_text("Class\tFilepath\n2\ta.png\n0\timages/b.png\n")
    with pytest.raises(UserError, match=r"classnames.txt is missing: the classes of .*test.tsv are numbers"):
        read_class_table(directory)
    (directory / "classnames.txt").write_text("cat\ndog\ncow\n")
    found = read_class_table(directory)
    assert (found.classnames, found.labels.tolist()) == (["cat", "dog", "cow"], [2, 0])
    (directory / "classnames.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"has the class 2, but .* has 2 names"):
        read_class_table(directory)


def test_train_has_the_classes_of_test(directory):
    (directory / "test.csv").write_text("image,label\na.png,cat\na.png,dog\n")
    with pytest.raises(UserError, match=r"no train.csv"):
        read_class_table(directory, "train")
    (directory / "train.csv").write_text("image,label\na.png,dog\n")
    found = read_class_table(directory, "train")
    assert (found.classnames, found.labels.tolist()) == (["cat", "dog"], [1])
    assert len(read_class_table(directory).images) == 2
    (directory / "train.csv").write_text("image,label\na.png,cow\n")
    with pytest.raises(UserError, match=r"'cow', which is none of the set's \(cat, dog\)"):
        read_class_table(directory, "train")


def test_one_table_may_hold_both_splits(directory):
    (directory / "all.csv").write_text("image,label,split\na.png,cat,test\nb.png,dog,train\na.png,dog,test\n")
    for path in (directory, directory / "all.csv"):
        assert [image.path.name for image in read_class_table(path).images] == ["a.png", "a.png"]
        train = read_class_table(path, "train")
        assert ([image.path.name for image in train.images], train.labels.tolist()) == (["b.png"], [1])
        assert train.classnames == ["cat", "dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,label\nc.png,cat\n", r"csv names the picture c.png, which is neither"),
        ("image,label\na.png,\n", r"line 2 of .*test.csv lacks its class"),
        ("image,label\na.png\n", r"line 2 of .*test.csv lacks its class"),
        ("image,label\n", "has no rows"),
    ],
)
def test_what_is_missing_is_named(directory, content, message):
    (directory / "test.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_class_table(directory)


@pytest.mark.parametrize("header", ["image,caption", "filepath,title,label", "label,caption,image", "image", ""])
def test_tables_of_captions_are_left_to_retrieval(directory, header):
    (directory / "test.csv").write_text(f"{header}\n")
    assert not is_class_table(directory)
    assert not is_class_table(directory / "test.csv")


def test_of_several_tables_none_is_chosen(directory):
    for name in ("a.csv", "b.csv"):
        (directory / name).write_text("image,label\na.png,cat\n")
    assert not is_class_table(directory)
    assert not is_class_table(directory / "a.png")


def test_a_column_of_splits_is_known_in_any_letters(directory):
    (directory / "all.csv").write_text("image,label,Split\na.png,cat,train\nb.png,dog,test\n")
    assert read_class_table(directory).classnames == ["dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,label,split\na.png,cat,\nb.png,dog,test\n", "line 2 of .* lacks its split"),
        ("image,label\na.png,lynx, catamount\n", "line 2 of .* has more cells than its header: put .* into quotes"),
        ('image,label\na.png,"cat\nb.png,dog\nb.png,"x" y\n', "cannot be read as a table"),
    ],
)
def test_no_row_is_cut_or_swallowed(directory, content, message):
    (directory / "test.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_class_table(directory)


def test_two_tables_of_a_split_are_refused(directory):
    for name in ("test.csv", "test.tsv"):
        (directory / name).write_text("image\tlabel\na.png\tcat\n".replace("\t", "," if "csv" in name else "\t"))
    with pytest.raises(UserError, match=r"holds test.csv and test.tsv: remove one"):
        read_class_table(directory)


@pytest.mark.parametrize("column", ["text", "comment", "captions"])
def test_a_table_with_captions_is_one_of_classes_when_it_is_named(directory, column):
    (directory / "test.csv").write_text(f"image,label,{column}\na.png,cat,a cat\n")
    assert not is_class_table(directory)
    assert is_caption_table(directory)
    assert read_class_table(directory).classnames == ["cat"]
