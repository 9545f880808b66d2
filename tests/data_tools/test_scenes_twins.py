"""eval/twins (Winoground's layout) and eval/order of ``vlp data scenes``."""

import io
import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from data_tools import scenes
from data_tools._scenes_draw import PAINT
from data_tools._scenes_grammar import parse
from data_tools._scenes_options import ScenesOptions, parse_hold_out
from data_tools._scenes_twins import shuffle_words
from data_tools._scenes_world import OPPOSITE, holds
from vlp.types import UserError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("twins") / "scenes"
    scenes.write_scenes(ScenesOptions(out, num_train=20, num_eval=100, hold_out=("red circle",)))
    return out


def examples(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "examples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["twins", "held_out_twins"])
def test_twins_come_in_the_official_layout(drawn, name):
    found = examples(drawn / "eval" / name)
    assert [example["id"] for example in found] == list(range(100))
    assert Counter(example["tag"] for example in found) == {"attribute": 33, "object": 33, "relation": 34}
    for example in found:
        assert list(example)[:5] == ["id", "image_0", "image_1", "caption_0", "caption_1"]
        assert (example["collapsed_tag"], example["secondary_tag"]) == (example["tag"], "")
        assert example["num_main_preds"] == 1
        assert example["image_1"] == f"ex_{example['id']}_img_1"
        for side in (0, 1):
            picture = Image.open(drawn / "eval" / name / "images" / f"{example[f'image_{side}']}.png")
            assert (picture.size, picture.format) == ((32, 32), "PNG")
    assert len(list((drawn / "eval" / name / "images").iterdir())) == 200


def test_the_captions_of_a_twin_exclude_each_other_and_its_tag_says_how(drawn):
    for example in examples(drawn / "eval/twins"):
        captions = [example["caption_0"], example["caption_1"]]
        one, other = (parse(caption, "A") for caption in captions)
        assert not holds(one, other)
        assert not holds(other, one)
        same_words = sorted(captions[0].split()) == sorted(captions[1].split())
        if example["tag"] == "object":
            assert same_words
            assert one.objects == other.objects[::-1]
        elif example["tag"] == "attribute":
            assert same_words
            assert [thing.shape for thing in one.objects] == [thing.shape for thing in other.objects]
        else:
            assert (one.objects, OPPOSITE[one.relations[0]]) == (other.objects, other.relations[0])


def test_each_picture_shows_its_own_caption(drawn):
    """The first object's colour lies on the side that the caption names."""
    checked = 0
    for example in examples(drawn / "eval/twins"):
        for side in (0, 1):
            scene = parse(example[f"caption_{side}"], "A")
            if scene.objects[0].colour == scene.objects[1].colour:
                continue
            file = drawn / "eval/twins/images" / f"{example[f'image_{side}']}.png"
            pixels = np.asarray(Image.open(io.BytesIO(file.read_bytes()))).astype(int)
            centres = []
            for thing in scene.objects:
                rows, columns = np.nonzero(np.abs(pixels - np.array(PAINT[thing.colour])).max(axis=2) <= 25)
                assert len(rows) > 4
                centres.append((columns.mean(), rows.mean()))
            (x, y), (u, v) = centres
            assert {"left of": x < u, "right of": x > u, "above": y < v, "below": y > v}[scene.relations[0]]
            checked += 1
    assert checked > 120


def test_held_out_twins_show_what_training_never_did(drawn):
    claim = parse_hold_out("red circle")
    for example in examples(drawn / "eval/held_out_twins"):
        assert any(holds(claim, parse(example[f"caption_{side}"], "A")) for side in (0, 1))
    for example in examples(drawn / "eval/twins"):
        assert not holds(claim, parse(example["caption_0"], "A"))


def test_shuffled_words_are_the_same_words_and_no_sentence(drawn):
    assert [path.name for path in (drawn / "eval/order").glob("*.json")] == ["shuffled_words.json"]
    entries = list(json.loads((drawn / "eval/order/shuffled_words.json").read_text()).values())
    assert len(entries) == 100
    for entry in entries:
        parse(entry["caption"], "A")
        assert sorted(entry["negative_caption"].split()) == sorted(entry["caption"].split())
        with pytest.raises(ValueError, match="not a sentence"):
            parse(entry["negative_caption"], "A")
    assert not (drawn / "eval/held_out_order").exists()


def test_a_shuffle_that_makes_a_sentence_is_shuffled_again():
    """One of the six orders of these words is the caption itself."""
    found = {shuffle_words("a red circle", "A", Random(seed)) for seed in range(200)}
    assert found == {"a circle red", "red a circle", "red circle a", "circle a red", "circle red a"}


def test_an_odd_number_of_items_is_refused_as_half_a_twin_remains(tmp_path):
    with pytest.raises(UserError, match=r"--num-eval 7 is odd, .*: give 8"):
        scenes.write_scenes(ScenesOptions(tmp_path / "odd", num_train=10, num_eval=7))
    assert not (tmp_path / "odd").exists()
