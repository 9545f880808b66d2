import json

import pytest
from PIL import Image

from vlp.data.benchmark_sets import StoredFile
from vlp.data.choice_sets import Choice, Item, choice_set, pair_files, read_pair_set
from vlp.data.write import CaptionPair, encode_image, write_pairs
from vlp.types import UserError


def picture(extension="png") -> bytes:
    return encode_image(Image.new("RGB", (5, 4), "#ff0000"), extension)


@pytest.fixture
def pairs(tmp_path):
    pair = CaptionPair(picture(), "png", "true", "false")
    write_pairs(tmp_path / "set", {"swap_att": [pair, pair], "swap_obj": [pair]})
    return tmp_path / "set"


def test_what_items_share_is_listed_once(tmp_path):
    one, other = (StoredFile(tmp_path / name, name) for name in "ab")
    found = choice_set([Item(one, "x", ["y", "z"], "k"), Item(other, "y", ["x"]), Item(one, "z", ["z"])])
    assert (found.images, found.texts) == ([one, other], ["x", "y", "z"])
    assert found.choices == [Choice(0, 0, (1, 2), "k"), Choice(1, 1, (0,)), Choice(0, 2, (2,))]


def test_pairs_round_trip(pairs):
    found = read_pair_set(pairs)
    assert found.texts == ["true", "false"]
    assert found.choices == [
        Choice(0, 0, (1,), "swap_att"),
        Choice(1, 0, (1,), "swap_att"),
        Choice(2, 0, (1,), "swap_obj"),
    ]
    assert found.images[0].load().size == (5, 4)


def test_sugarcrepe_as_published(tmp_path):
    # The JSON lies in data/ and its keys skip; the pictures are COCO's val2017, shared by several items.
    (tmp_path / "data").mkdir()
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "000000000001.jpg").write_bytes(picture("jpg"))
    item = {"filename": "000000000001.jpg", "caption": "a", "negative_caption": "b"}
    (tmp_path / "data" / "add_att.json").write_text(json.dumps({"0": item, "7": {**item, "negative_caption": "c"}}))
    found = read_pair_set(tmp_path)
    assert len(found.images) == 1
    assert found.choices == [Choice(0, 0, (1,), "add_att"), Choice(0, 0, (2,), "add_att")]


def test_other_json_is_no_pair_set(tmp_path):
    (tmp_path / "results.json").write_text('{"metrics": {}}')
    assert pair_files(tmp_path) == []


def test_other_json_at_the_top_does_not_hide_data(tmp_path):
    (tmp_path / "results.json").write_text('{"metrics": {}}')
    (tmp_path / "data").mkdir()
    (tmp_path / "x.png").write_bytes(picture())
    item = {"filename": "x.png", "caption": "a", "negative_caption": "b"}
    file = tmp_path / "data" / "add_att.json"
    file.write_text(json.dumps({"0": item}), encoding="utf-8-sig")
    assert pair_files(tmp_path) == pair_files(file) == [file]
    assert read_pair_set(file) == read_pair_set(tmp_path)
    assert pair_files(tmp_path / "x.png") == pair_files(tmp_path / "results.json") == []


def test_damaged_pairs_are_named(pairs):
    (pairs / "images" / "swap_obj_000000.png").unlink()
    with pytest.raises(UserError, match=r"swap_obj_000000\.png is neither in"):
        read_pair_set(pairs)
    whole = {"filename": "x.png", "caption": "a", "negative_caption": "b"}
    for name, value in [("negative_caption", None), ("caption", " "), ("filename", ""), ("negative_caption", 3)]:
        (pairs / "swap_obj.json").write_text(json.dumps({"0": {**whole, name: value}}))
        with pytest.raises(UserError, match=rf"item 0 of .*swap_obj\.json has no {name}"):
            read_pair_set(pairs)
    (pairs / "swap_obj.json").write_text(json.dumps({"0": {**whole, "caption": "b"}}))
    with pytest.raises(UserError, match=r"item 0 of .*swap_obj\.json has the same caption and negative_caption"):
        read_pair_set(pairs)
    (pairs / "swap_obj.json").write_text('{"0": {')
    with pytest.raises(UserError, match=r"swap_obj\.json is not valid JSON"):
        read_pair_set(pairs)
