"""Slot accuracy on the scenes that ``vlp data scenes`` draws, and on captions that are not as they should be."""

import json
from collections import Counter

import pytest

from data_tools._scenes_grammar import parse, phrase
from data_tools._scenes_options import ScenesOptions
from data_tools._scenes_slots import slots as written
from data_tools._scenes_world import Scene, Thing, generator, holds
from data_tools.scenes import write_scenes
from vlp.data.benchmark_sets import read_retrieval_set
from vlp.evaluation import slots
from vlp.evaluation.slots import Slots, accuracies, baseline, read, score
from vlp.types import UserError

RED, BLUE = Thing("circle", "red", "small"), Thing("square", "blue", "large")
PAIR = Scene((RED, BLUE), ("left of",))
NEITHER = {"relation": (0, 1), "count": (0, 1)}
NOTHING = dict.fromkeys(("colour", "shape", "size"), (0, 2)) | NEITHER
PERFECT = {"colour": (2, 2), "shape": (2, 2), "size": (2, 2), "relation": (1, 1), "count": (1, 1)}


def slots_of(*scenes: Scene, grammar: str = "A", textures: tuple[str, ...] = ("plain",)) -> Slots:
    world = ScenesOptions("unused", textures=textures).world()
    return Slots.model_validate(json.loads(json.dumps(written(scenes, grammar, world))))


def scored(caption: str, scene: Scene, grammar: str = "A") -> dict[str, tuple[int, int]]:
    found = slots_of(scene, grammar=grammar)
    return score(read(caption, found), found.pictures[0], found).slots


@pytest.mark.parametrize(
    ("grammar", "caption"),
    [
        ("A", "a small red circle left of a large blue square"),
        ("A", "there is a large blue square to the right of a small red circle"),
        ("A", "A small red circle, left of a large blue square."),
        ("B", "to the left of the big azure box sits a tiny crimson disc"),
        ("B", "on the right side of the tiny crimson disc lies a big azure box"),
    ],
)
def test_the_order_of_a_true_caption_is_free(grammar, caption):
    assert scored(caption, PAIR, grammar) == PERFECT


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a small red circle right of a large blue square", {"relation": (0, 1)}),
        ("a large blue square left of a small red circle", {"relation": (0, 1)}),
        ("a small red circle above a large blue square", {"relation": (0, 1)}),
        ("a small green circle left of a large blue square", {"colour": (1, 2)}),
        ("a small blue circle left of a large red square", {"colour": (0, 2)}),  # right colours of the wrong objects
        ("a red circle left of a blue square", {"size": (0, 2)}),  # left out is not right
        ("a small red circle left of a large blue", {"shape": (1, 2)}),
        ("a small red large circle left of a large blue square", {"size": (1, 2)}),  # says two sizes, so none
        ("a small red circle", dict.fromkeys(("colour", "shape", "size"), (1, 2)) | NEITHER),
        (
            "a small red circle left of a large blue square left of a large blue square",
            {"colour": (2, 3), "shape": (2, 3), "size": (2, 3), "relation": (1, 2), "count": (0, 1)},
        ),
        ("left of left of", NOTHING | {"relation": (0, 2)}),
        ("dog", NOTHING),
        ("", NOTHING),
        # Both stand where no sentence puts them: what holds between them is not said.
        ("a small red circle a large blue square left of", {"relation": (0, 1)}),
    ],
)
def test_a_caption_loses_what_it_says_wrongly_and_nothing_else(caption, wrong):
    assert scored(caption, PAIR) == PERFECT | wrong


def test_who_says_everything_is_not_right():
    caption = " left of ".join(f"a small {colour} circle" for colour in ("red", "green", "blue", "black") * 5)
    found = scored(caption, Scene((RED,)))
    assert found == {"colour": (1, 20), "shape": (1, 20), "size": (1, 20), "relation": (0, 19), "count": (0, 1)}


def test_what_is_denied_is_not_said():
    alone = Scene((RED,))
    right = {"colour": (1, 1), "shape": (1, 1), "size": (1, 1), "count": (1, 1)}
    assert scored("a small red circle and no blue square", alone) == right
    assert scored("no blue square but a small red circle", alone) == right
    assert scored("without any azure box, here sits a tiny crimson disc", alone, "B") == right
    assert scored("a blue square and no red circle", alone)["colour"] == (0, 1)


def test_several_equal_objects_are_counted():
    three = Scene((RED,), count=3)
    right = {"colour": (1, 1), "shape": (1, 1), "size": (1, 1), "count": (1, 1)}
    assert scored("three small red circles", three) == right
    assert scored("here lies a trio of tiny crimson discs", three, "B") == right
    for caption in ("two small red circles", "a small red circle", "small red circles"):
        assert scored(caption, three) == right | {"count": (0, 1)}
    assert scored("a lone tiny crimson disc", Scene((RED,)), "B") == right


def test_a_relation_that_follows_from_two_others_is_true():
    row = Scene((RED, BLUE, Thing("star", "green", "large")), ("left of", "left of"))
    caption = "a small red circle left of a large green star, which is right of a large blue square"
    assert scored(caption, row)["relation"] == (2, 2)
    assert scored(caption.replace("right of", "left of"), row)["relation"] == (1, 2)


def test_a_texture_that_nobody_says_is_plain():
    found = slots_of(PAIR, textures=("plain", "dotted"))
    for caption, right in (("a red circle", 1), ("a dotted red circle", 0)):
        assert score(read(caption, found), found.pictures[0], found).slots["texture"] == (right, 2)


@pytest.mark.parametrize("grammar", ["A", "B"])
def test_scoring_agrees_with_the_grammar_of_the_tool(grammar):
    """Captions of all kinds, true or not, of scenes of all kinds: without a fault exactly if whole and true."""
    options = ScenesOptions("unused", objects="1-3", textures=("plain", "striped"), image_size=64)
    world = options.world()
    scenes = [world.draw(generator(0, "test", n)) for n in range(60)]
    scenes += [world.training_count(generator(0, "count", n)) for n in range(20)]
    found = Slots.model_validate(written(scenes, grammar, world))
    seen: Counter[bool] = Counter()
    for n, (scene, truth) in enumerate(zip(scenes, found.pictures, strict=True)):
        near = world.draw(generator(0, "test", n + 1), num_objects=(len(scene.objects),))
        for told in (scene, scene.reverse(), near):
            caption = phrase(told, grammar, generator(0, "words", n))
            assert found.is_sentence(caption)
            said = parse(caption, grammar)
            is_true = holds(said, scene) and all(thing.size for thing in said.objects) and said.count == scene.count
            seen[is_true] += 1
            assert (not score(read(caption, found), truth, found).wrong) == is_true, caption
    assert min(seen.values()) > 50


@pytest.mark.parametrize(
    ("caption", "is_sentence"),
    [
        ("a small red circle left of a large blue square", True),
        ("A red circle  left of a blue square. ", True),
        ("a red circle and no blue square, mark 7", True),
        ("two red circles", True),
        ("two red circle", False),
        ("a red circle left of", False),
        ("a circle", False),
        ("here sits a crimson disc", False),
        ("", False),
    ],
)
def test_sentences_of_the_grammar(caption, is_sentence):
    assert slots_of(PAIR).is_sentence(caption) is is_sentence


def test_accuracies_are_means_over_slots_with_intervals():
    found = slots_of(*[PAIR] * 4)
    captions = ["a small red circle left of a large blue square"] * 3 + ["a small red circle above a large green star"]
    shares = accuracies([score(read(c, found), t, found) for c, t in zip(captions, found.pictures, strict=True)])
    assert {name: accuracy.share for name, accuracy in shares.items()} == pytest.approx(
        {"mean": 0.9, "colour": 7 / 8, "shape": 7 / 8, "size": 1, "relation": 3 / 4, "count": 1, "all": 3 / 4}
    )
    assert shares["size"].interval == pytest.approx((0.025 ** (1 / 4), 1))
    assert shares["colour"].interval[0] < 7 / 8 <= shares["colour"].interval[1]


def test_the_baseline_says_the_most_frequent_values():
    green = Scene((Thing("circle", "green", "small"), Thing("star", "red", "large")), ("right of",))
    up = Scene((Thing("circle", "red", "small"), Thing("square", "red", "small")), ("above",))
    found = slots_of(PAIR, green, up, Scene((RED,)), PAIR)
    told = baseline(found)
    assert [thing.attributes for thing in told.objects] == [{"colour": "red", "shape": "circle", "size": "small"}] * 2
    assert told.relations == [(0, "left of", 1)]
    shares = accuracies([score(told, truth, found) for truth in found.pictures])
    assert {name: accuracy.share for name, accuracy in shares.items()} == pytest.approx(
        # Two equal objects beside each other: true of those that are left or right, as nobody says which is which.
        {"mean": (0.6 + 0.5 + 0.6 + 0.6 + 0.8) / 5, "colour": 6 / 10, "shape": 5 / 10, "size": 6 / 10}
        | {"relation": 3 / 5, "count": 4 / 5, "all": 0}
    )


def test_the_sets_of_the_tool_are_whole(tmp_path):
    options = ScenesOptions(
        tmp_path / "s",
        num_train=1,
        num_eval=20,
        hold_out=("red circle",),
        grammar="A",
        counting=0.5,
        eval_grammar="B",
    )
    counts = write_scenes(options)["eval"]
    assert {name: counts[name] for name in counts if "captions" in name} == {
        f"{held}captions{suffix}": 20 for held in ("", "held_out_") for suffix in ("", "_grammar_A")
    }
    seen = []
    for name in ("captions", "captions_grammar_A", "held_out_captions"):
        directory = tmp_path / "s/eval" / name
        images = read_retrieval_set(directory)
        found = slots.read_slots(directory / "slots.json", len(images.images))
        assert images.image_of_text == list(range(20))
        assert len(set(images.texts)) == 20
        assert all(found.is_sentence(text) for text in images.texts)
        scores = [score(read(t, found), truth, found) for t, truth in zip(images.texts, found.pictures, strict=True)]
        assert [one.wrong for one in scores] == [[]] * 20
        seen.append({truth.number for truth in found.pictures})
    assert seen[0] == seen[1] == {1, 2, 3, 4}
    assert seen[2] == {2}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pictures": []}, "tells of 0 pictures, but the set has 1"),
        ({"version": 2}, "version: must be 1"),
        ({"sentences": ["(a"]}, "is damaged"),
        ({"noum": "shape"}, "unknown key 'noum', did you mean 'noun'"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, change, sentence):
    path = tmp_path / "slots.json"
    path.write_text(json.dumps(slots_of(PAIR).model_dump() | change))
    with pytest.raises(UserError, match=rf"slots\.json.*{sentence}"):
        slots.read_slots(path, 1)
    path.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        slots.read_slots(path, 1)
