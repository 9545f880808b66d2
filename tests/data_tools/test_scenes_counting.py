"""--counting and --negation of ``vlp data scenes``: the words, the truth, the pictures and the sets."""

import argparse
import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_tools import scenes
from data_tools._language_models.base import Request, Sampling
from data_tools._language_models.engines.scenes import Engine
from data_tools._scenes_changes import changes, is_drawable
from data_tools._scenes_draw import PAINT, arrange
from data_tools._scenes_grammar import GRAMMARS, Style, parse, phrase, read
from data_tools._scenes_options import ScenesOptions, parse_hold_out
from data_tools._scenes_record import scene_of
from data_tools._scenes_training import training_sample
from data_tools._scenes_world import COUNTS, SIZES, TEXTURES, Scene, Thing, World, holds
from vlp.types import UserError

OPTIONS = ScenesOptions(
    "unset",
    num_train=600,
    num_eval=80,
    grammar="both",
    eval_grammar="B",
    counting=0.3,
    negation=0.4,
    caption_noise=0.1,
    hold_out=("red circle",),
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("counting") / "scenes"
    scenes.write_scenes(replace(OPTIONS, out=out, eval_grammar="A"))
    return out


def records(out: Path) -> list[dict]:
    with tarfile.open(out / "train/00000.tar") as tar:
        return [json.load(tar.extractfile(m)) for m in tar.getmembers() if m.name.endswith(".json")]


def pairs(out: Path, name: str) -> list[dict]:
    return list(json.loads((out / f"eval/{name}/{name}.json").read_text()).values())


def _is_sentence(caption: str, grammar: str) -> bool:
    try:
        parse(caption, grammar)
    except ValueError:
        return False
    return True


@st.composite
def told_scenes(draw_value):
    """Counted scenes and others, with or without a denial."""
    random = Random(draw_value(st.integers(0, 10**9)))
    world = World(0, (1, 2, 3), TEXTURES)
    scene = world.training_count(random) if draw_value(st.booleans()) else world.draw(random)
    if draw_value(st.booleans()):
        scene = replace(scene, absent=world.missing(scene, random))
    return replace(scene, mark=draw_value(st.none() | st.integers(0, 99)))


# --- words ---------------------------------------------------------------------------------------------------------


def test_examples_of_both_grammars():
    two = Scene((Thing("cross", "red", "small"),), count=2)
    assert phrase(two, "A") == "two small red crosses"
    assert phrase(two, "B") == "here sits a pair of tiny crimson pluses"
    assert parse("there is one red circle", "A") == Scene((Thing("circle", "red", None),), count=1)
    assert parse("there are four striped red circles", "A").count == 4
    denied = replace(two, absent=Thing("square", "blue", None, None))
    assert phrase(denied, "A") == "two small red crosses and no blue square"
    assert phrase(denied, "A", style=Style(denial_first=True)) == "no blue square but two small red crosses"
    assert phrase(denied, "B") == "here sits a pair of tiny crimson pluses, without any azure box"
    assert (
        phrase(denied, "B", style=Style(denial_first=True))
        == "without any azure box, here sits a pair of tiny crimson pluses"
    )


@given(told_scenes(), st.sampled_from(sorted(GRAMMARS)), st.booleans())
def test_parse_inverts_the_canonical_captions(scene, grammar, denial_first):
    assert parse(phrase(scene, grammar, style=Style(denial_first=denial_first)), grammar) == scene


@given(told_scenes(), st.sampled_from(sorted(GRAMMARS)), st.integers(0, 10**6))
def test_parse_inverts_every_variant(scene, grammar, seed):
    said = parse(phrase(scene, grammar, Random(seed)), grammar)
    assert said in (scene, replace(scene, objects=tuple(replace(thing, size=None) for thing in scene.objects)))
    assert holds(said, scene)


@given(told_scenes(), st.sampled_from(sorted(GRAMMARS)), st.integers(0, 10**6))
def test_a_caption_is_read_with_its_style(scene, grammar, seed):
    caption = phrase(scene, grammar, Random(seed))
    said, style = read(caption, grammar)
    assert phrase(said, grammar, style=style) == caption


def test_another_scene_in_the_same_style():
    for caption, changed in (
        ("there is a red circle to the left of a blue square", "there is a red circle to the right of a blue square"),
        ("there are two red circles", "there are three red circles"),
        ("no blue square but a red circle", "no red circle but a blue square"),
    ):
        said, style = read(caption, "A")
        assert changed in [phrase(other, "A", style=style) for _, other in changes(said)]


@pytest.mark.parametrize(
    "caption",
    [
        "two red circle",
        "one red circles",
        "five red circles",
        "there is two red circles",
        "there are one red circle",
        "two red circles left of a blue square",
        "no blue square",
        "a red circle and no small blue square",
        "no blue square but a red circle and no blue star",
        "a red circle and no blue square and no blue star",
        "a red circle, mark 3 and no blue square",
    ],
)
def test_parse_refuses_what_is_no_sentence(caption):
    with pytest.raises(ValueError, match="grammar A"):
        parse(caption, "A")


def test_grammars_share_no_number():
    a, b = (" ".join(GRAMMARS[name].numbers.values()).split() for name in "AB")
    assert not set(a) & set(b)


def test_the_paraphraser_says_counts_and_denials_in_other_words():
    for caption in ("two small red crosses", "a red circle and no blue square", "no blue square but one red circle"):
        answers = Engine().complete([Request(caption, k, "", k) for k in range(20)], Sampling())
        texts = {completion.text for _, completion in answers}
        assert caption not in texts
        assert len(texts) >= 2
        for text in texts:
            grammar = "A" if _is_sentence(text, "A") else "B"
            assert parse(text, grammar) == parse(caption, "A")


# --- truth ---------------------------------------------------------------------------------------------------------


def test_a_number_is_exact_and_an_article_is_not():
    three = parse("three small red circles", "A")
    for claim in ("three red circles", "a red circle", "three small red circles and no blue square"):
        assert holds(parse(claim, "A"), three), claim
    for claim in ("two red circles", "four red circles", "one red circle", "three large red circles"):
        assert not holds(parse(claim, "A"), three), claim
    pair = parse("a small red circle left of a large blue circle", "A")
    assert holds(parse("one red circle", "A"), pair)
    assert not holds(parse("two red circles", "A"), pair)


def test_a_denial_is_false_of_what_is_there():
    scene = parse("a small red circle left of a large striped blue square", "A")
    assert holds(parse("a red circle and no green square", "A"), scene)
    assert not holds(parse("a red circle and no blue square", "A"), scene)
    assert not holds(parse("a green circle and no blue star", "A"), scene)


def test_the_changes_of_counts_and_denials_by_hand():
    counted = {kind: [] for kind in ("replace count", "swap negation")}
    for kind, changed in changes(parse("two small red circles and no blue square", "A")):
        counted.setdefault(kind, []).append(phrase(changed, "A"))
    assert counted["replace count"] == [
        "one small red circle and no blue square",
        "three small red circles and no blue square",
        "four small red circles and no blue square",
    ]
    assert counted["swap negation"] == ["two small blue squares and no red circle"]
    kinds = Counter(kind for kind, _ in changes(parse("a red circle left of a green star and no blue square", "A")))
    assert kinds["swap negation"] == 2
    assert "replace count" not in kinds


@given(told_scenes())
def test_every_change_is_false_and_could_be_drawn(scene):
    for kind, changed in changes(scene):
        assert not holds(changed, scene), kind
        assert is_drawable(changed), kind
        assert parse(phrase(changed, "B"), "B") == changed


# --- pictures ------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.sampled_from(COUNTS), st.sampled_from(SIZES), st.sampled_from([1, 2, 3]), st.integers(0, 10**6))
def test_equal_objects_are_apart_and_inside(count, size, max_objects, seed):
    scene = Scene((Thing("ring", "red", size),), count=count)
    places = arrange(scene, Random(seed), 32, max_objects)
    assert len(places) == count
    for k, place in enumerate(places):
        for centre in (place.x, place.y):
            assert place.diameter / 2 <= centre <= 32 - place.diameter / 2
        assert all(place.is_apart(other, 0.04 * 32) for other in places[:k])


def test_the_number_is_in_the_pixels():
    """The colour fills as much as so many objects do, and lies round each of the places."""
    options = replace(OPTIONS, counting=1.0)
    world = options.world()
    areas: dict[tuple, dict[int, list[float]]] = {}
    for index in range(300):
        image, _, factors = training_sample(options, world, index)
        thing = factors["objects"][0]
        pixels = np.asarray(Image.open(io.BytesIO(image))).astype(int)
        painted = np.abs(pixels - np.array(PAINT[thing["colour"]])).max(axis=2) <= 25
        area = 0
        for place in factors["objects"]:
            left, top = (round(place[axis] - place["diameter"] / 2) for axis in "xy")
            side = round(place["diameter"])
            inside = painted[top : top + side, left : left + side].sum()
            assert inside > 4
            area += inside
        assert painted.sum() <= 1.3 * area
        areas.setdefault((thing["shape"], thing["size"]), {}).setdefault(factors["count"], []).append(painted.sum())
    for by_count in areas.values():
        one = np.mean([area / count for count, found in by_count.items() for area in found])
        assert all(abs(np.mean(found) / one - count) < 0.4 for count, found in by_count.items()), by_count


# --- data sets -----------------------------------------------------------------------------------------------------


def test_shards_hold_counts_and_denials(drawn):
    found = records(drawn)
    assert abs(sum(record["count"] is not None for record in found) / 600 - 0.3) < 0.06
    assert abs(sum(record["absent"] is not None for record in found) / 600 - 0.4) < 0.07
    held_out = parse_hold_out("red circle")
    for record in found:
        scene, said = scene_of(record), parse(record["original_caption"], record["grammar"])
        assert holds(said, scene)
        assert said.count == scene.count == record["count"]
        assert len(record["objects"]) == (record["count"] or len(scene.objects))
        assert not holds(held_out, scene)
        denied = said.absent and {"shape": said.absent.shape, "colour": said.absent.colour}
        assert record["absent"] == denied != {"shape": "circle", "colour": "red"}
        if record["noise"]:
            sayings = [parse(record["caption"], g) for g in GRAMMARS if _is_sentence(record["caption"], g)]
            assert len(sayings) == 1
            assert not holds(sayings[0], scene)
    counts = Counter(record["count"] for record in found)
    assert all(counts[count] > 20 for count in COUNTS)


def test_without_the_options_nothing_changes(drawn, tmp_path):
    """Pictures that are not counted are those that are drawn without the option, and so are the other sets."""
    scenes.write_scenes(replace(OPTIONS, out=tmp_path / "x", eval_grammar="A", counting=0.0, negation=0.0))
    with_options, without = records(drawn), records(tmp_path / "x")
    assert not {"count", "absent"} & without[0].keys()
    for one, other in zip(with_options, without, strict=True):
        if one["count"] is None:
            assert one["objects"] == other["objects"]
            if one["absent"] is None and not one["noise"]:
                assert one["caption"] == other["caption"]
    assert not (tmp_path / "x/eval/counting").exists()
    assert not (tmp_path / "x/eval/negation").exists()
    for name in ("swaps/swap_relation.json", "twins/examples.jsonl", "colour/test/0.tar"):
        assert (drawn / "eval" / name).read_bytes() == (tmp_path / "x/eval" / name).read_bytes()


def test_things_of_the_counting_set_are_never_counted_in_training(drawn):
    trained = {parse(r["original_caption"], r["grammar"]).objects for r in records(drawn) if r["count"] is not None}
    world = replace(OPTIONS, out="unset").world()
    found = pairs(drawn, "counting")
    assert len(found) == 80
    for entry in found:
        true, false = parse(entry["caption"], "A"), parse(entry["negative_caption"], "A")
        assert true.count != false.count
        assert replace(false, count=true.count) == true
        assert true.objects not in trained
        assert world.is_reserved(true)


def test_denials_change_places_in_the_negation_set(drawn):
    found = pairs(drawn, "negation")
    for entry in found:
        true, false = parse(entry["caption"], "A"), parse(entry["negative_caption"], "A")
        assert sorted(entry["caption"].split()) == sorted(entry["negative_caption"].split())
        assert (true.objects[0].kind(), true.absent) == (false.absent, false.objects[0].kind())
        assert not holds(parse_hold_out("red circle"), true)
    assert sum(entry["caption"].startswith("no ") for entry in found) == 40
    assert [e["caption"].startswith("no ") for e in found] == [e["negative_caption"].startswith("no ") for e in found]


@pytest.mark.parametrize("name", ["counting", "negation"])
def test_a_scorer_that_never_looks_gets_half(drawn, name):
    """Each caption is as often true as false, so a preference for some captions is right as often as wrong."""
    found = pairs(drawn, name)
    trues, falses = (Counter(entry[key] for entry in found) for key in ("caption", "negative_caption"))
    assert trues == falses
    taste = {caption: Random(caption).random() for caption in trues}
    assert sum(taste[entry["caption"]] > taste[entry["negative_caption"]] for entry in found) == 40


def test_both_phrasings_show_the_same_pictures(tmp_path):
    scenes.write_scenes(replace(OPTIONS, out=tmp_path / "x", num_train=10, num_eval=8, grammar="A"))
    for name in ("counting", "negation"):
        folders = [tmp_path / f"x/eval/{name}{suffix}" for suffix in ("", "_grammar_A")]
        tables = [json.loads((folder / f"{name}.json").read_text()) for folder in folders]
        for b, a in zip(*(table.values() for table in tables), strict=True):
            assert parse(a["caption"], "A") == parse(b["caption"], "B")
            assert (folders[0] / "images" / b["filename"]).read_bytes() == (
                folders[1] / "images" / a["filename"]
            ).read_bytes()


# --- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"counting": 1.5}, "--counting 1.5 must lie between 0 and 1"),
        ({"negation": -0.1}, "--negation -0.1 must lie between 0 and 1"),
        ({"counting": 0.1, "shortcut": 8}, "--counting and --shortcut exclude each other"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(UserError, match=message):
        ScenesOptions("out", **values)


def test_nothing_left_to_count_is_refused_before_anything_is_written(tmp_path):
    small_and_large = tuple(f"{size} {shape}" for size in SIZES for shape in GRAMMARS["A"].shapes)
    with pytest.raises(UserError, match="leaves no"):
        scenes.write_scenes(ScenesOptions(tmp_path / "x", num_train=5, hold_out=small_and_large, counting=0.5))
    assert not (tmp_path / "x").exists()


def test_command_line(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    scenes.add_arguments(parser)
    arguments = f"{tmp_path / 'x'} --num-train 20 --num-eval 10 --objects 1 --counting 0.5 --negation 0.5"
    scenes.run(parser.parse_args(arguments.split()))
    assert "eval/counting" in capsys.readouterr().out
    summary = json.loads((tmp_path / "x/scenes.json").read_text())
    assert summary["eval"] == {"captions": 10, "colour": 10, "shape": 10, "counting": 10, "negation": 10}
    assert (summary["options"]["counting"], summary["options"]["negation"]) == (0.5, 0.5)
