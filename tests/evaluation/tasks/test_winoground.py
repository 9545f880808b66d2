"""The official files in both published forms, made small: colours stand for pictures, captions begin with one."""

import io
import json
import math
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlp.evaluation.run import find_task
from vlp.evaluation.tasks.winoground import Task
from vlp.types import UserError

RED, GREEN, BLUE = "#ff0000", "#00ff00", "#0000ff"

# Colours of the two pictures, the two captions, and the tags of the official file.
ROWS = [
    ((RED, GREEN), (f"{RED} a", f"{GREEN} a"), "Object", 1, ""),
    ((RED, BLUE), (f"{BLUE} a", f"{RED} a"), "Object", 2, "Series"),
    ((BLUE, GREEN), (f"{BLUE} a", f"{BLUE} b"), "Relation", 1, ""),
]
EXPECTED = {"text_acc": 1 / 3, "image_acc": 1 / 3, "acc": 1 / 3}


def example(number, captions, collapsed_tag, num_main_preds, secondary_tag):
    return {
        "id": number,
        "image_0": f"ex_{number}_img_0",
        "image_1": f"ex_{number}_img_1",
        "caption_0": captions[0],
        "caption_1": captions[1],
        "tag": "Noun",
        "secondary_tag": secondary_tag,
        "num_main_preds": num_main_preds,
        "collapsed_tag": collapsed_tag,
    }


def write_lines(folder, examples):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")


@pytest.fixture
def examples():
    return [example(number, *row[1:]) for number, row in enumerate(ROWS)]


@pytest.fixture
def pictures(picture):
    return {f"ex_{n}_img_{i}.png": picture(row[0][i]) for n, row in enumerate(ROWS) for i in (0, 1)}


@pytest.fixture
def unpacked(tmp_path, examples, pictures):
    directory = tmp_path / "winoground"
    write_lines(directory, examples)
    (directory / "images").mkdir()
    for name, data in pictures.items():
        (directory / "images" / name).write_bytes(data)
    return directory


def as_downloaded(directory, examples, pictures):
    """As in the repository of the data set before it was converted: all in data/, the pictures in a ZIP."""
    write_lines(directory / "data", examples)
    with zipfile.ZipFile(directory / "data" / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in pictures.items():
            archive.writestr(f"images/{name}", data)
    return directory


def as_parquet(directory, examples, pictures, groups=2):
    """As in the repository today: pictures are {bytes, path} inside."""
    rows = [
        row
        | {side: {"bytes": pictures[row[side] + ".png"], "path": row[side] + ".png"} for side in ("image_0", "image_1")}
        for row in examples
    ]
    (directory / "data").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(rows), directory / "data" / "test-00000-of-00001.parquet", row_group_size=groups
    )
    return directory


def test_the_scores_and_tables_of_the_official_files(unpacked, encoder):
    task = find_task(unpacked)
    assert isinstance(task, Task)
    scores = task.run(encoder, batch_size=4)
    assert (task.kind, scores.num_images, scores.num_texts) == ("image_caption_selection", 6, 4)
    assert scores.metrics == pytest.approx(EXPECTED)
    # Of the third example the two captions have one embedding: its text questions tie, its image questions do not.
    assert scores.tie_rate == pytest.approx(2 / 12)
    assert scores.log == pytest.approx(
        {"winoground/text_score": 1 / 3, "winoground/image_score": 1 / 3, "winoground/group_score": 1 / 3}
    )
    group = [(r.table, r.name, r.number, r.score) for r in scores.categories if "group" in r.table]
    assert group == [
        ("collapsed_tag, group score", "Object", 2, 1 / 2),
        ("collapsed_tag, group score", "Relation", 1, 0),
        ("num_main_preds, group score", "1", 2, 1 / 2),
        ("num_main_preds, group score", "2", 1, 0),
        ("secondary_tag, group score", "Series", 1, 0),
    ]
    assert [twin.category for twin in task.twins] == ["Object", "Object", "Relation"]


@pytest.mark.parametrize("write", [as_downloaded, as_parquet])
def test_the_published_forms_hold_the_same(tmp_path, unpacked, examples, pictures, encoder, write):
    other = find_task(write(tmp_path / "other", examples, pictures))
    expected = find_task(unpacked)
    assert (other.twins, other.texts, other.tables) == (expected.twins, expected.texts, expected.tables)
    assert [image.read() for image in other.images] == [image.read() for image in expected.images]
    assert other.run(encoder, batch_size=2).metrics == pytest.approx(EXPECTED)


def test_a_constant_model_scores_zero(unpacked, constant_encoder):
    scores = Task(unpacked).run(constant_encoder, batch_size=4)
    assert set(scores.metrics.values()) == {0}
    assert {row.score for row in scores.categories} == {0}
    assert scores.tie_rate == 1


def test_tags_and_extensions_may_be_there_or_not(tmp_path, picture, encoder):
    # As our scenes are written: no tags, names with their extension, pictures that two examples share.
    row = {"image_0": "a.webp.png", "image_1": "b", "caption_0": f"{RED}", "caption_1": f"{GREEN}"}
    back = {"image_0": "b", "image_1": "a.webp.png", "caption_0": f"{GREEN}", "caption_1": f"{RED}"}
    write_lines(tmp_path / "twins", [row, back])
    (tmp_path / "twins" / "images").mkdir()
    (tmp_path / "twins" / "images" / "a.webp.png").write_bytes(picture(RED))
    (tmp_path / "twins" / "images" / "b.jpg").write_bytes(picture(GREEN))
    task = find_task(tmp_path / "twins")
    scores = task.run(encoder, batch_size=4)
    assert (scores.num_images, scores.num_texts, scores.categories) == (2, 2, [])
    assert scores.metrics["acc"] == 1
    assert not any(math.isnan(end) for ends in scores.intervals.values() for end in ends)


def test_separators_inside_a_caption_do_not_end_the_line(unpacked, examples):
    examples[0]["caption_0"] = f"{RED} a\u2028b"
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in examples)
    (unpacked / "examples.jsonl").write_text(lines, encoding="utf-8-sig")
    assert Task(unpacked).texts[0] == f"{RED} a\u2028b"


def fails(directory, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        find_task(directory)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named_with_its_source(unpacked, examples):
    (unpacked / "images" / "ex_1_img_0.png").rename(unpacked / "images" / "1_0.png")
    fails(unpacked, r"images/ex_1_img_0\.png is missing .* copy images\.zip from .*facebook/winoground")
    (unpacked / "examples.jsonl").rename(unpacked / "metadata.jsonl")
    fails(unpacked, r"winoground/examples\.jsonl is missing: copy it from .*facebook/winoground")


def test_damaged_lines_are_named(unpacked, examples):
    del examples[1]["caption_1"]
    write_lines(unpacked, examples)
    fails(unpacked, r"line 2 of .*examples\.jsonl has no caption_1")
    (unpacked / "examples.jsonl").write_text('{"id": 0', encoding="utf-8")
    fails(unpacked, r"line 1 of .*examples\.jsonl is not valid JSON")
    (unpacked / "examples.jsonl").write_text("\n", encoding="utf-8")
    fails(unpacked, r"hold no examples: copy them again from .*facebook/winoground")
    (unpacked / "examples.jsonl").write_bytes(b"\xff\xfe{}")
    fails(unpacked, r"examples\.jsonl is not UTF-8 text")


def test_damaged_zips_are_named(tmp_path, examples, pictures):
    directory = as_downloaded(tmp_path / "zipped", examples, pictures)
    path = directory / "data" / "images.zip"
    whole = path.read_bytes()
    member = find_task(directory).images[0]
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        start = archive.getinfo("images/ex_0_img_0.png").header_offset + 60
    path.write_bytes(whole[:start] + b"\0\0\0\0" + whole[start + 4 :])
    with pytest.raises(UserError, match=r"images/ex_0_img_0\.png cannot be read .*images\.zip again"):
        member.load()
    path.write_bytes(whole[:-30])
    fails(directory, r"images\.zip is not a whole ZIP .*facebook/winoground")


def test_parquet_without_captions_or_bytes_is_named(tmp_path, examples, pictures):
    path = as_parquet(tmp_path / "parquet", examples, pictures) / "data" / "test-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("image_1"), path)
    fails(tmp_path / "parquet", r"parquet has no column 'image_1': copy it again from .*facebook/winoground")
    empty = pa.array([{"bytes": None, "path": "a.png"}] * 3, table.schema.field("image_0").type)
    pq.write_table(table.set_column(table.schema.get_field_index("image_0"), "image_0", empty), path)
    with pytest.raises(UserError, match=r"image_0 in row 0 of row group 0 of .* holds no bytes"):
        find_task(tmp_path / "parquet").image(0)
    pq.write_table(table.drop_columns("caption_0"), path)
    fails(tmp_path / "parquet", "no known layout")  # any Parquet file could be that


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    fails(
        tmp_path, r"test-00000-of-00001\.parquet is not a whole Parquet file: copy it again from .*facebook/winoground"
    )
