"""Tables and folders of captions that people have at hand."""

import pytest

from vlp.evaluation.run import evaluate, find_task
from vlp.evaluation.tasks import caption_folder, caption_table
from vlp.types import UserError

COLOURS = ["#ff0000", "#00ff00", "#0000ff"]
TEXTS = ["#ff0000, red", "#ff0000 again", '#00ff00 "green"', "#0000ff"]


@pytest.fixture
def directory(tmp_path, picture):
    (tmp_path / "set" / "images").mkdir(parents=True)
    for name, colour in zip("abc", COLOURS, strict=True):
        (tmp_path / "set" / "images" / f"{name}.png").write_bytes(picture(colour))
    return tmp_path / "set"


TABLES = {
    "captions.csv": 'image,caption\na.png,"#ff0000, red"\nb.png,"#00ff00 ""green"""\n'
    "a.png,#ff0000 again\nc.png,#0000ff\n",
    "train.tsv": 'filepath\ttitle\nimages/a.png\t#ff0000, red\nimages/b.png\t"#00ff00 ""green"""\n'
    "images/a.png\t#ff0000 again\nimages/c.png\t#0000ff\n",
    "captions.txt": '\ufeffimage,caption\r\na.png,"#ff0000, red"\r\na.png,#ff0000 again\r\n'
    'b.png,"#00ff00 ""green"""\r\nc.png,#0000ff\r\n',
    "results.csv": "image_name| comment_number| comment\na.png| 0| #ff0000, red\na.png| 1| #ff0000 again\n"
    'b.png| 0|"#00ff00 ""green"""\nc.png| 0| #0000ff\n',
    "splits.csv": 'split,image,caption\ntrain,x.png,none\ntest,a.png,"#ff0000, red"\ntest,a.png,#ff0000 again\n'
    'test,b.png,"#00ff00 ""green"""\nval,y.png,none\ntest,c.png,#0000ff\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_a_picture_are_its_captions(directory, encoder, name):
    (directory / name).write_text(TABLES[name])
    task = find_task(directory)
    assert type(task) is caption_table.Task
    assert (task.texts, task.image_of_text) == (TEXTS, [0, 0, 1, 2])
    assert [image.path.name for image in task.images] == ["a.png", "b.png", "c.png"]
    (result,) = evaluate(encoder, [directory / name], 4, "tiny", "none")
    assert (result.dataset, result.scores.metrics["text_retrieval_recall@1"]) == (name.partition(".")[0], 1)


def fails(directory, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        find_task(directory)
    assert "\n" not in str(error.value)


def test_several_tables_have_to_be_named(directory):
    (directory / "one.csv").write_text(TABLES["captions.csv"])
    (directory / "two.tsv").write_text(TABLES["train.tsv"])
    fails(directory, r"holds 2 tables of captions: name one of \S+one\.csv, \S+two\.tsv")
    (directory / "test.csv").write_text(TABLES["captions.csv"])
    assert len(find_task(directory).texts) == 4


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("image,caption\nd.png,grey\n", r"captions\.csv names the picture d\.png, which is neither beside it nor in"),
        ("image,caption\na.png, \n", r"captions\.csv has no caption for the picture a\.png: add one"),
        ("image,caption\n,red\n", r"line 2 of \S+captions\.csv lacks its picture or its caption: fill it in"),
        ("image,caption\na.png\n", r"line 2 of \S+captions\.csv lacks its picture or its caption: fill it in"),
        ("image,caption\n", "names no picture with its captions"),
        ("image,caption,split\na.png,red,val\n", "has no rows of the split 'test', only of val: write some"),
    ],
)
def test_a_table_must_be_whole(directory, table, sentence):
    (directory / "captions.csv").write_text(table)
    fails(directory, sentence)


def test_other_tables_are_not_of_captions(directory):
    (directory / "labels.csv").write_text("image,colour\na.png,red\n")
    fails(directory, "has no known layout")
    fails(f"caption_table:{directory}/labels.csv", "has no columns of pictures and captions: name them image and capt")


@pytest.fixture
def folder(directory):
    for name, lines in {"a": TEXTS[:2], "b": TEXTS[2:3], "c": TEXTS[3:]}.items():
        (directory / "images" / f"{name}.txt").write_text("\n".join([*lines, "", ""]))
    return directory / "images"


def test_a_folder_with_texts_beside_the_pictures(folder, encoder):
    task = find_task(folder)
    assert type(task) is caption_folder.Task
    assert (task.texts, task.image_of_text) == (TEXTS, [0, 0, 1, 2])
    assert task.run(encoder, 4).metrics["image_retrieval_recall@1"] == 1
    assert task.name == "images"


def test_folders_of_classes_are_none_of_captions(directory, picture):
    for colour in COLOURS:
        (directory / "classes" / colour).mkdir(parents=True)
        (directory / "classes" / colour / "1.png").write_bytes(picture(colour))
    (directory / "classes" / "README.txt").write_text("pictures of three colours")
    assert not caption_folder.Task.detects(directory / "classes")
    assert not caption_folder.Task.detects(directory / "images")  # pictures alone


def test_a_folder_must_be_whole(folder, picture):
    (folder / "notes.txt").write_text("thoughts")
    fails(folder, r"notes\.txt has no picture of its name beside it: add it, or remove the text")
    (folder / "notes.txt").unlink()
    (folder / "d.png").write_bytes(picture("#123456"))
    fails(folder, r"d\.txt is missing: write the captions of d\.png there, one a line")
    (folder / "d.txt").write_text(" \n")
    fails(folder, r"images has no caption for the picture d\.png: add one")
    (folder / "d.txt").write_bytes(b"\xff\xfe#")
    fails(folder, r"d\.txt is not UTF-8 text")
    (folder / "d.png").rename(folder / "a.jpg")
    (folder / "d.txt").unlink()
    fails(folder, r"holds a\.jpg and a\.png, but one a\.txt: rename one of them")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("image,caption\na.png,a dog, running\n", "line 2 of .* has more cells than its header"),
        ('image,caption\na.png,"Hello\nb.png,world\nc.png,say "so"\n', "cannot be read as a table"),
        ("image,caption,split\na.png,one\nb.png,two,test\n", "line 2 of .* says nothing in its column split"),
    ],
)
def test_no_caption_is_cut_or_swallowed(directory, table, sentence):
    (directory / "test.csv").write_text(table)
    fails(directory, sentence)


def test_pictures_of_every_kind_need_captions(folder, picture):
    (folder / "other.bmp").write_bytes(picture("#ff0000"))
    fails(folder, "other.txt is missing")
