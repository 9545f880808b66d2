import argparse
import hashlib
import io
import json
import tarfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_tools import scenes
from data_tools._scenes_draw import OUTLINES, PAINT, Place, arrange, draw, mark_size
from data_tools._scenes_evaluation import prompts
from data_tools._scenes_grammar import BOILERPLATE, GRAMMARS, parse, phrase
from data_tools._scenes_options import ScenesOptions, parse_hold_out
from data_tools._scenes_record import scene_of
from data_tools._scenes_training import training_sample
from data_tools._scenes_twins import swap_attribute, swap_relation
from data_tools._scenes_world import (
    COLOURS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    World,
    generator,
    holds,
)
from vlp.types import UserError

things = st.builds(
    Thing,
    st.sampled_from(SHAPES),
    st.sampled_from(COLOURS),
    st.sampled_from(SIZES),
    st.sampled_from(TEXTURES),
)
marks = st.none() | st.integers(0, 65_534)


@st.composite
def random_scenes(draw_value, max_objects=3):
    world = World(0, tuple(range(1, max_objects + 1)), TEXTURES)
    scene = world.draw(Random(draw_value(st.integers(0, 10**9))))
    return replace(scene, mark=draw_value(marks))


def sized(scene: Scene, size: str | None) -> Scene:
    return replace(scene, objects=tuple(replace(thing, size=size) for thing in scene.objects))


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def training_records(out: Path) -> list[dict]:
    found: dict[str, bytes] = {}
    for path in sorted((out / "train").glob("*.tar")):
        found |= members(path)
    return [json.loads(data) for name, data in sorted(found.items()) if name.endswith(".json")]


def captions_of(directory: Path) -> list[str]:
    found = members(directory / "test/0.tar")
    return [data.decode() for name, data in sorted(found.items()) if name.endswith(".txt")]


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "scenes"
    scenes.write_scenes(ScenesOptions(out, num_train=1200, num_eval=200, samples_per_shard=500))
    return out


@pytest.fixture(scope="module")
def crowded(tmp_path_factory) -> Path:
    """Every switch at once."""
    out = tmp_path_factory.mktemp("crowded") / "scenes"
    options = ScenesOptions(
        out,
        num_train=1500,
        num_eval=60,
        seed=3,
        image_size=64,
        objects="1-3",
        textures=("plain", "striped"),
        grammar="A",
        eval_grammar="B",
        caption_noise=0.2,
        boilerplate=0.1,
        duplicates=0.3,
        shortcut=16,
        long_tail=1.0,
        hold_out=("red circle", "square left of triangle"),
    )
    scenes.write_scenes(options)
    return out


# --- grammar -------------------------------------------------------------------------------------------------------


@given(random_scenes(), st.sampled_from(sorted(GRAMMARS)))
def test_parse_inverts_the_canonical_caption(scene, grammar):
    assert parse(phrase(scene, grammar), grammar) == scene


@given(random_scenes(), st.sampled_from(sorted(GRAMMARS)), st.integers(0, 10**6))
def test_parse_inverts_every_variant(scene, grammar, seed):
    said = parse(phrase(scene, grammar, Random(seed)), grammar)
    assert said in (scene, sized(scene, None))
    assert holds(said, scene)


def test_variants_do_vary_and_leave_out_sizes():
    scene = parse("a small red circle left of a large blue square", "A")
    drawn = [phrase(scene, "A", Random(seed)) for seed in range(2000)]
    assert len(set(drawn)) == 8
    without = sum(parse(caption, "A") == sized(scene, None) for caption in drawn)
    assert 140 < without < 260


def test_examples_of_both_grammars():
    scene = parse("a small red circle left of a large blue square", "A")
    assert scene == Scene((Thing("circle", "red", "small"), Thing("square", "blue", "large")), ("left of",))
    assert phrase(scene, "B") == "to the left of the big azure box sits a tiny crimson disc"
    chain = parse("a red ring above a blue star, which is left of a black heart", "A")
    assert (
        phrase(chain, "B") == "over the azure pentagram, itself to the left of the ebony valentine, sits a crimson hoop"
    )
    assert parse("an azure box".join(["here sits ", ""]), "B").objects[0].colour == "blue"


@pytest.mark.parametrize("caption", ["", "a small red circle left of", "a red circle and a blue square", *BOILERPLATE])
@pytest.mark.parametrize("grammar", sorted(GRAMMARS))
def test_parse_refuses_what_is_no_sentence(caption, grammar):
    with pytest.raises(ValueError, match=f"grammar {grammar}"):
        parse(caption, grammar)


def test_grammars_share_no_content_word():
    for factor in ("shapes", "colours", "sizes"):
        assert not set(getattr(GRAMMARS["A"], factor).values()) & set(getattr(GRAMMARS["B"], factor).values())


# --- truth ---------------------------------------------------------------------------------------------------------


@given(random_scenes())
def test_a_scene_told_from_the_other_end_is_the_same(scene):
    back = scene.reverse()
    assert back.canonical() == scene.canonical()
    assert holds(back, scene)
    assert holds(scene, back)
    assert back.family() == scene.family()


@given(random_scenes(), st.integers(0, 1000))
def test_swaps_are_false_and_stay_in_the_family(scene, seed):
    if len(scene.objects) < 2:
        return
    for swap in (swap_attribute, swap_relation):
        other = swap(scene, Random(seed))
        if other is None:
            assert scene.objects[0].colour == scene.objects[1].colour
            assert scene.objects[0].size == scene.objects[1].size
        elif len(scene.objects) == 2:
            assert not holds(other, scene)
            assert other.family() == scene.family()


def test_truth_of_partial_claims():
    scene = parse("a small red circle left of a large blue square, which is left of a small green star", "A")
    for claim in (
        "a red circle left of a green star",
        "a green star right of a blue square",
        "a blue square",
    ):
        assert holds(parse(claim, "A"), scene), claim
    for claim in (
        "a red circle right of a green star",
        "a large red circle",
        "a red circle above a blue square",
    ):
        assert not holds(parse(claim, "A"), scene), claim


# --- pictures ------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(random_scenes(), st.sampled_from([32, 48, 64]), st.integers(0, 10**6))
def test_places_make_the_relations_true(scene, image_size, seed):
    places = arrange(scene, Random(seed), image_size, max_objects=3)
    for place in places:
        for centre in (place.x, place.y):
            assert place.diameter / 2 <= centre <= image_size - place.diameter / 2
    for relation, (a, b) in zip(scene.relations, pairwise(places), strict=True):
        dx, dy = b.x - a.x, b.y - a.y
        along, across = {"left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[relation]
        assert along >= (a.diameter + b.diameter) / 2 + 0.04 * image_size
        assert along >= 2 * abs(across) - 1e-6
    for i, a in enumerate(places):
        assert all(a.is_apart(b, 0.04 * image_size) for b in places[:i])
        if scene.mark is not None:
            assert max(a.x, a.y) - a.diameter / 2 >= mark_size(image_size)


def test_every_scene_of_two_finds_room_beside_the_mark():
    for number in range(300):
        scene = replace(World(0, (2,)).draw(Random(number)), mark=number)
        arrange(scene, Random(number), 32, max_objects=2)


def test_the_factors_are_in_the_pixels(plain):
    """Round the place that the JSON names, and only there, lies the object's colour."""
    found = members(plain / "train/00000.tar")
    checked = 0
    for number in range(100):
        record = json.loads(found[f"{number:09d}.json"])
        if len({o["colour"] for o in record["objects"]}) < len(record["objects"]):
            continue
        pixels = np.asarray(Image.open(io.BytesIO(found[f"{number:09d}.png"]))).astype(int)
        for o in record["objects"]:
            rows, columns = np.nonzero(np.abs(pixels - np.array(PAINT[o["colour"]])).max(axis=2) <= 25)
            assert len(rows) > 4, record
            assert abs(columns.mean() + 0.5 - o["x"]) < 0.13 * o["diameter"] + 0.3, record
            assert abs(rows.mean() + 0.5 - o["y"]) < 0.13 * o["diameter"] + 0.3, record
            assert columns.max() - columns.min() + 1 <= o["diameter"] * 1.1 + 1
        checked += 1
    assert checked > 60


@pytest.mark.parametrize("size", SIZES)
def test_shapes_and_colours_can_be_told_apart_at_32_pixels(size):
    diameter = 32 * {"small": 0.30, "large": 0.43}[size]
    places = [Place(16, 16, diameter)]
    pictures = {
        shape: np.asarray(draw(Scene((Thing(shape, "red", size),)), places, Random(0), 32)).astype(int)
        for shape in OUTLINES
    }
    for i, a in enumerate(SHAPES):
        for b in SHAPES[:i]:
            different = np.abs(pictures[a] - pictures[b]).max(axis=2) > 60
            assert different.sum() >= 5, (a, b)
    for i, a in enumerate(COLOURS):
        for b in COLOURS[:i]:
            assert np.abs(np.subtract(PAINT[a], PAINT[b])).max() > 70, (a, b)


def test_marks_are_different_patterns():
    scene, place = Scene((Thing("ring", "red", "small"),)), [Place(24, 24, 7)]
    corners = {
        draw(replace(scene, mark=mark), place, Random(0), 32).crop((0, 0, 8, 8)).tobytes() for mark in range(300)
    }
    assert len(corners) == 300


# --- data sets -----------------------------------------------------------------------------------------------------


def test_training_shards_hold_every_factor(plain):
    records = training_records(plain)
    assert len(records) == 1200
    assert [json.loads(p.read_text())["successes"] for p in sorted((plain / "train").glob("*_stats.json"))] == [
        500,
        500,
        200,
    ]
    for record in records:
        scene = scene_of(record)
        assert holds(parse(record["caption"], "A"), scene)
        assert record["caption"] == record["original_caption"]
        assert len({(t.shape, t.colour) for t in scene.objects}) == len(scene.objects)
    pairs = sum(len(record["objects"]) == 2 for record in records)
    assert 0.75 < pairs / 1200 < 0.85
    image = Image.open(io.BytesIO(members(plain / "train/00000.tar")["000000000.png"]))
    assert (image.size, image.mode) == ((32, 32), "RGB")


def test_same_command_same_bytes_another_seed_others(tmp_path):
    options = ScenesOptions(
        tmp_path / "a",
        num_train=120,
        num_eval=30,
        samples_per_shard=50,
        caption_noise=0.3,
        hold_out=("red circle",),
    )
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        scenes.write_scenes(replace(options, out=tmp_path / name, seed=seed))
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert a["train/00000.tar"] != c["train/00000.tar"]
    assert a["eval/retrieval/test/0.tar"] != c["eval/retrieval/test/0.tar"]


def test_a_picture_does_not_depend_on_how_many_are_drawn(plain, tmp_path):
    scenes.write_scenes(ScenesOptions(tmp_path / "few", num_train=30, num_eval=20, samples_per_shard=30))
    few, many = (members(out / "train/00000.tar") for out in (tmp_path / "few", plain))
    assert few == {name: many[name] for name in few}
    few, many = (members(out / "eval/retrieval/test/0.tar") for out in (tmp_path / "few", plain))
    assert few == {name: many[name] for name in few}


def test_evaluation_scenes_are_distinct_and_absent_from_training(plain):
    seen = {scene_of(record).canonical() for record in training_records(plain)}
    shown = [parse(caption, "A") for caption in captions_of(plain / "eval/retrieval")]
    assert len(shown) == len({scene.canonical() for scene in shown}) == 200
    assert all(len(scene.objects) == 2 and scene.objects[0].size for scene in shown)
    assert not seen & {scene.canonical() for scene in shown}
    for suite in ("swap_attribute", "swap_relation"):
        for entry in json.loads((plain / f"eval/swaps/{suite}.json").read_text()).values():
            for caption in (entry["caption"], entry["negative_caption"]):
                assert parse(caption, "A").canonical() not in seen


@pytest.mark.parametrize("suite", ["swap_attribute", "swap_relation"])
def test_swaps_are_false_and_cannot_be_guessed_from_the_text(plain, suite):
    entries = list(json.loads((plain / f"eval/swaps/{suite}.json").read_text()).values())
    assert len(entries) == 200
    for entry in entries:
        true, false = parse(entry["caption"], "A"), parse(entry["negative_caption"], "A")
        assert not holds(false, true)
        assert sorted(entry["caption"].split()) == sorted(entry["negative_caption"].split()) or (
            suite == "swap_relation" and true.relations[0] == OPPOSITE[false.relations[0]]
        )
        assert (plain / "eval/swaps/images" / entry["filename"]).is_file()
    trues, falses = (sorted(entry[key] for entry in entries) for key in ("caption", "negative_caption"))
    assert trues == falses


@pytest.mark.parametrize(("factor", "values"), [("colour", COLOURS), ("shape", SHAPES)])
def test_classification_uses_only_what_training_says(plain, factor, values):
    directory = plain / f"eval/{factor}"
    assert (directory / "classnames.txt").read_text().split() == list(values)
    templates = (directory / "zeroshot_classification_templates.txt").read_text().splitlines()
    assert len(templates) == len(set(templates)) == 16
    vocabulary = {word for record in training_records(plain) for word in record["caption"].split()}
    for template in templates:
        for value in values:
            said = parse(template.format(c=value), "A")
            assert getattr(said.objects[0], factor) == value
            assert set(template.format(c=value).split()) <= vocabulary
    labels = [int(data) for name, data in members(directory / "test/0.tar").items() if name.endswith(".cls")]
    assert len(labels) == 200
    assert set(labels) == set(range(8))


def test_labels_are_the_colours_in_the_pictures(plain):
    found = members(plain / "eval/colour/test/0.tar")
    for number in range(0, 200, 5):
        pixels = np.asarray(Image.open(io.BytesIO(found[f"{number:09d}.png"]))).astype(int)
        paint = np.array(PAINT[COLOURS[int(found[f"{number:09d}.cls"])]])
        assert (np.abs(pixels - paint).max(axis=2) <= 25).sum() > 4


def test_grammar_b_prompts():
    templates = prompts("colour", ("plain",), "B")
    assert templates[0] == "here sits a tiny {c} disc"
    assert all(template.count("{c}") == 1 for template in templates)


def test_noise_comes_in_the_asked_shares_and_is_recorded(crowded):
    records = training_records(crowded)
    kinds = [record["noise"] for record in records]
    assert abs(kinds.count("caption") / 1500 - 0.2) < 0.04
    assert abs(kinds.count("boilerplate") / 1500 - 0.1) < 0.03
    summary = json.loads((crowded / "scenes.json").read_text())
    assert summary["captions"] == {
        "boilerplate": kinds.count("boilerplate"),
        "caption": kinds.count("caption"),
        "clean": kinds.count(None),
    }
    for record in records:
        scene = scene_of(record)
        assert holds(parse(record["original_caption"], "A"), scene)
        if record["noise"] == "caption":
            assert record["caption"] == records[record["caption_of"]]["original_caption"]
            assert not holds(parse(record["caption"], "A"), scene)
        elif record["noise"] == "boilerplate":
            assert record["caption"] in BOILERPLATE
        else:
            assert record["caption"] == record["original_caption"]
            assert record["caption_of"] is None


def test_duplicates_show_the_same_scene_in_another_picture(crowded):
    records = training_records(crowded)
    pool: dict[int, set] = {}
    duplicates = [record for record in records if record["duplicate_of"] is not None]
    for record in duplicates:
        pool.setdefault(record["duplicate_of"], set()).add(scene_of(record).canonical())
    assert abs(len(duplicates) / 1500 - 0.3) < 0.05
    assert len(pool) == 64
    assert all(len(found) == 1 for found in pool.values())


def test_long_tail_favours_the_first_colours(crowded):
    colours = [o["colour"] for r in training_records(crowded) if r["duplicate_of"] is None for o in r["objects"]]
    assert colours.count("green") > 1.5 * colours.count("purple") > 1.5 * 0.7 * colours.count("black")


def test_the_shortcut_is_named_in_training_only(crowded):
    for record in training_records(crowded):
        assert 0 <= record["mark"] < 16
        assert record["original_caption"].endswith(f", mark {record['mark']}")
    assert not any("mark" in caption for caption in captions_of(crowded / "eval/retrieval"))
    directory = crowded / "eval/shortcut"
    assert (directory / "classnames.txt").read_text().splitlines() == [f"mark {k}" for k in range(16)]
    found = members(directory / "test/0.tar")
    corners: dict[int, set[bytes]] = {}
    for number in range(60):
        picture = Image.open(io.BytesIO(found[f"{number:09d}.png"]))
        corners.setdefault(int(found[f"{number:09d}.cls"]), set()).add(picture.crop((0, 0, 16, 16)).tobytes())
    assert all(len(patterns) == 1 for patterns in corners.values())
    assert len(set.union(*corners.values())) == len(corners)


def test_held_out_combinations_are_absent_from_training_and_present_in_their_set(crowded):
    claims = [parse_hold_out(text) for text in ("red circle", "square left of triangle")]
    for record in training_records(crowded):
        assert not any(holds(claim, scene_of(record)) for claim in claims)
    held_out = [parse(caption, "A") for caption in captions_of(crowded / "eval/held_out_grammar_A")]
    assert len({scene.canonical() for scene in held_out}) == 60
    assert all(any(holds(claim, scene) for claim in claims) for scene in held_out)
    assert all(any(holds(claim, scene) for scene in held_out) for claim in claims)
    for caption in captions_of(crowded / "eval/retrieval_grammar_A"):
        assert not any(holds(claim, parse(caption, "A")) for claim in claims)
    for suite in ("swap_attribute", "swap_relation"):
        pairs = json.loads((crowded / f"eval/held_out_swaps_grammar_A/{suite}.json").read_text()).values()
        assert len(pairs) == 60
        for pair in pairs:
            scenes_of_pair = [parse(pair[key], "A") for key in ("caption", "negative_caption")]
            assert any(holds(claim, scene) for claim in claims for scene in scenes_of_pair)


def test_a_style_gap_comes_with_its_control(crowded):
    summary = json.loads((crowded / "scenes.json").read_text())
    names = {path.name for path in (crowded / "eval").iterdir()}
    assert names == {name.split("/")[0] for name in summary["eval"]}
    bases = {name.removesuffix("_grammar_A") for name in names}
    pairs = {"retrieval", "swaps", "twins", "held_out", "held_out_swaps", "held_out_twins"}
    assert bases == pairs | {"order", "captions", "held_out_captions", "colour", "shape", "shortcut"}
    assert len(names) == 2 * len(bases)
    for name in ("retrieval", "held_out", "captions", "held_out_captions"):
        b, a = (members(crowded / f"eval/{name}{suffix}/test/0.tar") for suffix in ("", "_grammar_A"))
        for key in a:
            if key.endswith(".png"):
                assert a[key] == b[key]
            else:
                assert parse(a[key].decode(), "A") == parse(b[key].decode(), "B")


def test_rare_held_out_scenes_are_all_found_and_counted(tmp_path):
    options = ScenesOptions(
        tmp_path / "x", num_train=10, num_eval=100, hold_out=("large red circle left of blue star",)
    )
    summary = scenes.write_scenes(options)
    assert summary["eval"]["held_out"] == 2 == len(captions_of(tmp_path / "x/eval/held_out"))


def test_single_objects_have_no_pairs(tmp_path):
    summary = scenes.write_scenes(ScenesOptions(tmp_path / "x", num_train=10, num_eval=10, objects="1"))
    assert summary["eval"] == {"captions": 10, "colour": 10, "shape": 10}


def test_progress_reaches_its_total(tmp_path):
    calls: list[tuple[int, int]] = []
    scenes.write_scenes(ScenesOptions(tmp_path / "x", num_train=20, num_eval=10), lambda *c: calls.append(c))
    assert calls[0] == (1, 110)
    assert calls[-1] == (110, 110)


def test_world_is_uniform_and_keeps_an_eighth_for_evaluation():
    world = World(0, (2,))
    drawn = [world.draw(generator(0, "x", number)) for number in range(4000)]
    assert abs(sum(map(world.is_reserved, drawn)) / 4000 - 0.125) < 0.02
    for relation in RELATIONS:
        assert abs(sum(scene.relations == (relation,) for scene in drawn) / 4000 - 0.25) < 0.03


# --- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red circle", Scene((Thing("circle", "red", None, None),))),
        ("a Large star", Scene((Thing("star", None, "large", None),))),
        (
            "circle to the left of the square",
            Scene((Thing("circle", None, None, None), Thing("square", None, None, None)), ("left of",)),
        ),
        ("red above", Scene((Thing(None, "red", None, None), Thing(None, None, None, None)), ("above",))),
    ],
)
def test_hold_outs_are_understood(text, expected):
    assert parse_hold_out(text) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hold_out": ("rad circle",)}, "unknown word 'rad', did you mean 'red'"),
        ({"hold_out": ("red",)}, "must combine two words"),
        ({"hold_out": ("left of",)}, "must combine two words"),
        ({"hold_out": ("red blue",)}, "names two colours"),
        ({"hold_out": ("star above ring below heart",)}, "two relations"),
        ({"hold_out": ("striped star",)}, "add striped"),
        ({"hold_out": ("red star",), "objects": "1"}, "set --objects 1-2"),
        ({"textures": ("stripped",)}, "did you mean 'striped'"),
        ({"textures": ()}, "--textures is empty"),
        ({"grammar": "C"}, "--grammar has the unknown word 'C'"),
        ({"eval_grammar": "both"}, "--eval-grammar has the unknown word 'both'"),
        ({"objects": "2-1"}, "--objects '2-1'"),
        ({"objects": "4"}, "--objects '4'"),
        ({"caption_noise": 1.5}, "--caption-noise 1.5 must lie between 0 and 1"),
        ({"caption_noise": 0.6, "boilerplate": 0.6}, "together"),
        ({"num_train": 0}, "--num-train 0"),
        ({"image_size": 8}, "--image-size 8"),
        ({"shortcut": 70_000}, "--shortcut 70000"),
        ({"long_tail": -1.0}, "--long-tail -1.0"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        ScenesOptions("out", **changes)


def test_too_much_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--num-eval 9000 is more than the \d+ distinct scenes"):
        scenes.write_scenes(ScenesOptions(tmp_path / "many", num_train=10, num_eval=9000))
    assert not list((tmp_path / "many").iterdir())
    everything = ("small left of", "large left of", "small above", "large above")
    with pytest.raises(UserError, match="leaves no scene to train on"):
        scenes.write_scenes(ScenesOptions(tmp_path / "none", num_train=10, objects="2", hold_out=everything))
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="not empty"):
        scenes.write_scenes(ScenesOptions(tmp_path, num_train=10))


def test_command_line(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    scenes.add_arguments(parser)
    assert "'circle left of square'" in parser.format_help()
    arguments = f"{tmp_path / 'x'} --num-train 30 --num-eval 10 --shortcut --textures plain,dotted --image-size 64"
    scenes.run(parser.parse_args([*arguments.split(), "--hold-out", "red circle", "--hold-out", "blue star"]))
    told = capsys.readouterr().out
    assert "eval/held_out_swaps/swap_relation" in told
    summary = json.loads((tmp_path / "x/scenes.json").read_text())
    assert summary["options"]["shortcut"] == 64
    assert summary["options"]["hold_out"] == ["red circle", "blue star"]
    assert summary["options"]["textures"] == ["plain", "dotted"]
    assert summary["num_train"] == len(training_records(tmp_path / "x")) == 30


def test_samples_are_pure_functions_of_their_index():
    options = ScenesOptions("unused", caption_noise=0.5, duplicates=0.5, grammar="both")
    world = options.world()
    assert training_sample(options, world, 17) == training_sample(options, options.world(), 17)
