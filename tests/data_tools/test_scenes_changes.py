from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from data_tools._scenes_changes import changes, is_drawable
from data_tools._scenes_grammar import parse, phrase
from data_tools._scenes_world import TEXTURES, Scene, World, holds


@st.composite
def random_scenes(draw_value):
    return World(0, (1, 2, 3), TEXTURES).draw(Random(draw_value(st.integers(0, 10**9))))


def captions_by_kind(caption: str, grammar: str = "A") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for kind, changed in changes(parse(caption, grammar)):
        found.setdefault(kind, []).append(phrase(changed, grammar))
    return found


def test_the_changes_of_a_caption_by_hand():
    found = captions_by_kind("a small red circle left of a large blue square")
    assert found["swap attribute"] == [
        "a small blue circle left of a large red square",
        "a large red circle left of a small blue square",
    ]
    assert found["swap relation"] == [
        "a large blue square left of a small red circle",
        "a small red circle right of a large blue square",
    ]
    assert found["replace relation"] == [
        "a small red circle above a large blue square",
        "a small red circle below a large blue square",
    ]
    assert found["replace size"] == [
        "a large red circle left of a large blue square",
        "a small red circle left of a small blue square",
    ]
    assert len(found["replace colour"]) == len(found["replace shape"]) == 14
    assert "a small red circle left of a large cyan square" in found["replace colour"]


def test_what_the_caption_leaves_out_stays_out():
    found = captions_by_kind("a red circle left of a blue square")
    assert "replace size" not in found
    assert found["swap attribute"] == ["a blue circle left of a red square"]


def test_objects_alike_are_not_made():
    found = captions_by_kind("a red circle left of a blue circle")
    assert "a blue circle left of a blue circle" not in found["replace colour"]
    assert len(found["replace colour"]) == 12
    assert found["swap attribute"] == ["a blue circle left of a red circle"]


def test_one_object_can_only_be_replaced():
    assert Counter(kind for kind, _ in changes(parse("here sits a tiny crimson disc", "B"))) == {
        "replace colour": 7,
        "replace shape": 7,
        "replace size": 1,
    }


@given(random_scenes(), st.sampled_from("AB"), st.booleans())
def test_every_change_is_false_of_the_picture_and_a_caption(scene, grammar, sized):
    said = scene if sized else replace(scene, objects=tuple(replace(thing, size=None) for thing in scene.objects))
    found = changes(said, scene)
    assert found == changes(said, scene)
    for kind, changed in found:
        assert not holds(changed, scene), kind
        assert is_drawable(changed)
        assert parse(phrase(changed, grammar), grammar) == changed
    assert len({phrase(changed, grammar) for _, changed in found}) == len(found)


def test_the_picture_decides_where_it_shows_more_than_the_caption_says():
    picture = parse("a red circle left of a blue square, which is left of a red star", "A")
    said = Scene(picture.objects[:2], ("left of",))
    kinds = dict.fromkeys(kind for kind, _ in changes(said))
    assert list(kinds) == ["swap attribute", "swap relation", "replace colour", "replace shape", "replace relation"]
    turned = Scene((picture.objects[2], picture.objects[1]), ("left of",))  # true of neither, until the picture says so
    assert turned not in [changed for _, changed in changes(said, turned.reverse())]
