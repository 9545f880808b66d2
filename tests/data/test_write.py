import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlp.data.write import (
    CaptionedTwins,
    CaptionPair,
    ShardWriter,
    encode_image,
    new_directory,
    write_classification_set,
    write_pairs,
    write_retrieval_set,
    write_twins,
)
from vlp.types import UserError

RED = encode_image(Image.new("RGB", (4, 4), "red"))


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def write_three_shards(directory: Path) -> None:
    with ShardWriter(directory, samples_per_shard=2) as shards:
        shards.write(RED, "png", "one", number=1, boxes=[1, 2], note=None, never=None)
        shards.write(RED, "png", "two", number=2, boxes=[], note=None, never=None)
        shards.write(RED, "png", "three", number=2.5, boxes=[3], note="seen", never=None)
        shards.write(RED, "png", "four", number=4, boxes=[3], note=None, never=None, late="x")
        shards.write(RED, "png", "fünf", boxes=[3], never=None)


def test_shards_are_img2datasets_layout(tmp_path):
    write_three_shards(tmp_path / "set")
    assert sorted(digests(tmp_path / "set")) == [
        f"{shard:05d}{end}" for shard in range(3) for end in (".parquet", ".tar", "_stats.json")
    ]
    found = members(tmp_path / "set/00002.tar")
    assert sorted(found) == ["000020000.json", "000020000.png", "000020000.txt"]
    assert found["000020000.txt"].decode() == "fünf"
    assert found["000020000.png"] == RED
    record = json.loads(found["000020000.json"])
    assert record["key"] == "000020000"
    assert (record["caption"], record["status"], record["boxes"]) == ("fünf", "success", [3])
    stats = [json.loads((tmp_path / f"set/0000{k}_stats.json").read_text()) for k in range(3)]
    assert [s["successes"] for s in stats] == [2, 2, 1]


def test_parquet_files_have_one_schema_and_all_values(tmp_path):
    write_three_shards(tmp_path / "set")
    tables = [pq.read_table(tmp_path / f"set/0000{k}.parquet") for k in range(3)]
    assert tables[0].schema == tables[1].schema == tables[2].schema
    assert {name: str(tables[0].schema.field(name).type) for name in ("number", "note", "never", "late")} == {
        "number": "double",
        "note": "string",
        "never": "string",
        "late": "string",
    }
    together = pa.concat_tables(tables).to_pydict()
    assert together["caption"] == ["one", "two", "three", "four", "fünf"]
    assert together["number"] == [1.0, 2.0, 2.5, 4.0, None]
    assert together["late"] == [None, None, None, "x", None]
    assert together["boxes"][0] == "[1, 2]"
    assert not list(tmp_path.rglob("*.partial"))


def test_shards_are_equal_to_the_byte(tmp_path):
    for name in ("a", "b"):
        write_three_shards(tmp_path / name)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_an_error_leaves_the_open_shard_partial(tmp_path):
    def fail_in_the_second_shard():
        with ShardWriter(tmp_path / "set", samples_per_shard=2) as shards:
            for _ in range(3):
                shards.write(RED, "png", "fine")
            raise RuntimeError("disk pulled")

    with pytest.raises(RuntimeError, match="disk pulled"):
        fail_in_the_second_shard()
    assert sorted(digests(tmp_path / "set")) == [
        "00000.parquet",
        "00000.tar",
        "00000_stats.json",
        "00001.tar.partial",
    ]


def test_an_error_leaves_the_evaluation_set_partial(tmp_path):
    def items():
        yield RED, "png", ["a caption"]
        raise RuntimeError("source gone")

    with pytest.raises(RuntimeError, match="source gone"):
        write_retrieval_set(tmp_path / "set", items())
    assert sorted(digests(tmp_path / "set")) == ["test/0.tar.partial"]


def test_large_shards_have_keys_that_sort(tmp_path):
    with ShardWriter(tmp_path, samples_per_shard=20_000) as shards:
        keys = [shards.write(RED, "png", "x") for _ in range(11)]
    assert keys[-1] == "0000000010"
    assert keys == sorted(keys)


def test_nothing_is_written_into_a_used_directory(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    for make in (new_directory, ShardWriter, lambda path: write_pairs(path, {})):
        with pytest.raises(UserError, match="not empty"):
            make(tmp_path)
    with pytest.raises(UserError, match="not empty"):
        new_directory(tmp_path / "mine.txt")
    with pytest.raises(UserError, match="samples_per_shard is 0"):
        ShardWriter(tmp_path / "new", samples_per_shard=0)


def test_retrieval_set_has_one_caption_a_line(tmp_path):
    items = [(RED, "png", ["one\ncaption  here", "another"]), (RED, "png", ["third"])]
    assert write_retrieval_set(tmp_path / "set", items) == 2
    found = members(tmp_path / "set/test/0.tar")
    assert found["000000000.txt"].decode() == "one caption here\nanother"
    assert found["000000001.png"] == RED
    assert (tmp_path / "set/dataset_type.txt").read_text().strip() == "retrieval"
    assert (tmp_path / "set/test/nshards.txt").read_text().strip() == "1"


@pytest.mark.parametrize("captions", [[], ["fine", " \n"]])
def test_a_picture_without_caption_is_named(tmp_path, captions):
    with pytest.raises(UserError, match=r"picture 1 for .*set has an empty caption or none"):
        write_retrieval_set(tmp_path / "set", [(RED, "png", ["a"]), (RED, "png", captions)])


def test_classification_set(tmp_path):
    items = [(RED, "png", 1), (RED, "png", 0)]
    assert write_classification_set(tmp_path / "set", items, ["cat", "dog"], ["a {c}", "one {c}"]) == 2
    found = members(tmp_path / "set/test/0.tar")
    assert [found[f"00000000{k}.cls"] for k in range(2)] == [b"1", b"0"]
    assert (tmp_path / "set/classnames.txt").read_text() == "cat\ndog\n"
    assert (tmp_path / "set/zeroshot_classification_templates.txt").read_text() == "a {c}\none {c}\n"
    assert not (tmp_path / "set/dataset_type.txt").exists()
    with pytest.raises(AssertionError, match="label 2 of 2"):
        write_classification_set(tmp_path / "bad", [(RED, "png", 2)], ["cat", "dog"], ["{c}"])


def test_pairs_are_sugarcrepes_layout(tmp_path):
    pair = CaptionPair(RED, "png", "a red dot", "a blue dot")
    write_pairs(tmp_path / "set", {"swap_att": [pair, pair], "swap_obj": [pair]})
    table = json.loads((tmp_path / "set/swap_att.json").read_text())
    assert list(table) == ["0", "1"]
    assert table["1"] == {
        "filename": "swap_att_000001.png",
        "caption": "a red dot",
        "negative_caption": "a blue dot",
    }
    names = {
        entry["filename"]
        for suite in ("swap_att", "swap_obj")
        for entry in json.loads((tmp_path / f"set/{suite}.json").read_text()).values()
    }
    assert names == {path.name for path in (tmp_path / "set/images").iterdir()}


def test_twins_are_winogrounds_layout(tmp_path):
    blue = encode_image(Image.new("RGB", (4, 4), "blue"))
    twins = [
        CaptionedTwins((RED, blue), ("red below blue", "blue below red"), "object"),
        CaptionedTwins((blue, RED), ("é", "e"), "relation"),
    ]
    assert write_twins(tmp_path / "set", twins) == 2
    lines = (tmp_path / "set/examples.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {
        "id": 0,
        "image_0": "ex_0_img_0",
        "image_1": "ex_0_img_1",
        "caption_0": "red below blue",
        "caption_1": "blue below red",
        "tag": "object",
        "secondary_tag": "",
        "num_main_preds": 1,
        "collapsed_tag": "object",
    }
    assert "é" in lines[1]
    assert {path.name: path.read_bytes() for path in (tmp_path / "set/images").iterdir()} == {
        "ex_0_img_0.png": RED,
        "ex_0_img_1.png": blue,
        "ex_1_img_0.png": blue,
        "ex_1_img_1.png": RED,
    }
    with pytest.raises(UserError, match="not empty"):
        write_twins(tmp_path / "set", twins)


def test_pictures_keep_what_the_format_can_hold():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    for extension, kind in (("png", "PNG"), ("webp", "WEBP"), ("jpg", "JPEG")):
        again = Image.open(io.BytesIO(encode_image(clear, extension)))
        assert again.format == kind
        if extension == "jpg":
            assert again.convert("RGB").getpixel((4, 4)) == (255, 255, 255)
        else:
            assert again.convert("RGBA").getpixel((4, 4))[3] == 0
    with pytest.raises(UserError, match="'tiff'"):
        encode_image(clear, "tiff")
