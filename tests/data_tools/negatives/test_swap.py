from __future__ import annotations

import builtins
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from data_tools._english import tagger
from data_tools._negatives import inflect
from data_tools._negatives.base import Captioned, Place
from data_tools._negatives.generators.swap import KINDS, Generator
from data_tools._negatives.judge import judge
from vlp.types import UserError

pytest.importorskip("spacy", reason="needs the extra negatives")
pytest.importorskip("lemminflect", reason="needs the extra negatives")

PLACE = Place("negatives")
MANY = 1000


def changed(caption: str, *kinds: str, others: Sequence[str] = (), per_kind: int = MANY, seed: int = 0) -> list[str]:
    generator = Generator(kinds=kinds, per_kind=per_kind)
    (found,) = generator.negatives("", [Captioned(caption, tuple(others))], Place("negatives", seed=seed))
    assert {negative.kind for negative in found} <= set(kinds or KINDS)
    return [negative.text for negative in found]


@pytest.mark.parametrize(
    ("kind", "caption", "texts"),
    [
        ("swap relation", "A cat on a mat.", ["A mat on a cat."]),
        ("swap relation", "a red circle left of a blue square", ["a blue square left of a red circle"]),
        ("swap relation", "A girl is riding an old horse", ["An old horse is riding a girl"]),
        ("swap relation", "an owl above a cup of tea", ["a cup of tea above an owl"]),
        ("swap nouns", "a red circle left of a blue square", ["a red square left of a blue circle"]),
        ("swap nouns", "An owl above two dogs", ["A dog above two owls"]),
        ("swap nouns", "two men behind a woman", ["two women behind a man"]),
        ("swap nouns", "A tennis racket under a bus", ["A bus under a tennis racket"]),
        ("swap nouns", "a dog in the snow", []),
        ("swap adjectives", "a red circle left of a blue square", ["a blue circle left of a red square"]),
        ("swap adjectives", "an old dog under a white car", ["a white dog under an old car"]),
        ("swap adjectives", "two dogs behind three cats", ["three dogs behind two cats"]),
        ("swap adjectives", "two dogs behind one cat", []),
        ("swap adjectives", "a white dog behind a white cat", []),
        (
            "swap verbs",
            "A man is eating a pizza while a woman drinks a beer.",
            ["A man is drinking a pizza while a woman eats a beer."],
        ),
        (
            "swap verbs",
            "A man sitting on a bench and a woman looking at a dog.",
            ["A man looking at a bench and a woman sitting on a dog."],
        ),
        ("swap verbs", "Two birds, one is sitting and the other is sleeping", []),
        (
            "swap adverbs",
            "a man slowly eating pizza and a woman quickly drinking water",
            ["a man quickly eating pizza and a woman slowly drinking water"],
        ),
        (
            "swap noun phrases",
            "A small dog on a mat near an owl",
            [
                "A mat on a small dog near an owl",
                "A small dog on an owl near a mat",
                "An owl on a mat near a small dog",
            ],
        ),
        ("swap noun phrases", "a lamb (a young sheep)", []),
        ("swap noun phrases", "A mouse. It likes cheese.", []),
        ("swap noun phrases", "a moth is an insect", []),
        ("swap nouns", "kiss: man, man, light skin tone, medium-dark skin tone", []),
        ("swap nouns", "person: light skin tone, curly hair", []),
        ("swap adjectives", "person: light skin tone, curly hair", []),
        ("swap nouns", "man in manual wheelchair", []),
        ("swap relation", "man in manual wheelchair", ["manual wheelchair in man"]),
        ("swap nouns", "dog above cats", []),
        ("swap nouns", "dog above cat", ["cat above dog"]),
        ("swap nouns", 'a "Fuji" apple', []),
        ("swap relation", "man raising hand", []),
        ("swap relation", "woman in lotus position", []),
        ("swap relation", "man in lotus position: dark skin tone", []),
        ("swap relation", "A rake for a leaf.", []),
        ("swap relation", "A bus behind a tram in Lisbon.", ["A tram behind a bus in Lisbon."]),
        ("swap relation", "The sign for the letter B in American Sign Language.", []),
        ("swap noun phrases", "The sign for the letter B in American Sign Language.", []),
        ("swap relation", "A pie is a food in the UK.", []),
        ("replace relation", "A treat in the United States.", []),
        (
            "replace relation",
            "A treat in the bowl.",
            [f"A treat {at} the bowl." for at in ("behind", "in front of", "outside")],
        ),
        ("replace size", "a big dog", ["a small dog"]),
        ("replace size", "a short man", ["a tall man"]),
        ("replace size", "a short road", ["a long road"]),
        ("replace relation", "a cat under the table", ["a cat above the table", "a cat on top of the table"]),
        ("replace relation", "a circle to the left of a square", ["a circle to the right of a square"]),
        ("replace relation", "a red arrow pointing left", ["a red arrow pointing right"]),
        ("replace relation", "a photo on a sunny day", []),
        ("replace relation", "a man in a hat", []),
        ("replace relation", "a left-right arrow", []),
        ("replace antonym", "an old man", ["a young man", "an old woman"]),
        ("replace antonym", "an old car", ["a new car"]),
        (
            "replace antonym",
            "Two men are sitting",
            ["Two men are lying", "Two men are standing", "Two women are sitting"],
        ),
        ("replace antonym", "a bowl standing on a table", []),
        ("replace antonym", "a man and his dog", []),
        ("replace antonym", "a hot dog", []),
        ("replace material", "a brick house", ["a glass house", "a metal house", "a plastic house", "a wooden house"]),
        ("replace time", "a street in summer", ["a street in winter"]),
        (
            "replace number",
            "one",
            [f"{n}" for n in sorted(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])],
        ),
        ("replace number", "the second row", ["the fifth row", "the first row", "the fourth row", "the third row"]),
        ("replace number", "8 apples", sorted(f"{n} apples" for n in (5, 6, 7, 9, 10, 11))),
        ("replace number", "one owl", ["four owls", "three owls", "two owls"]),
        ("replace number", "there is one owl", []),
    ],
)
def test_all_changes_of_a_kind(kind, caption, texts):
    assert sorted(changed(caption, kind)) == texts


def test_another_colour_is_none_that_the_picture_has():
    assert sorted(changed("a red and blue car", "replace colour", others=["a crimson, navy and white car"])) == sorted(
        f"{'an' if first == 'orange' else 'a'} {first} and {second} car"
        for new in ("black", "green", "brown", "yellow", "orange", "pink", "purple", "grey")
        for first, second in ((new, "blue"), ("red", new))
    )


@pytest.mark.parametrize(
    "caption",
    ["An orange.", "a peeled orange on a table", "a glass of orange juice", "red hair", "a woman with red hair"],
)
def test_what_is_no_colour_or_a_matter_of_taste_stays(caption):
    assert changed(caption, "replace colour") == []


def test_colours_are_changed_before_nouns_and_after_is():
    assert "the car is blue" in changed("the car is red", "replace colour")
    assert "the flag is red and blue" in changed("the flag is red and white", "replace colour")
    assert "a blue thing" in changed("an orange thing", "replace colour")
    hair = changed("a man with brown hair", "replace colour")
    assert "a man with white hair" in hair
    assert "a man with black hair" not in hair


def test_frequent_colours_are_drawn_more_often():
    drawn = [changed("a red car", "replace colour", per_kind=1, seed=seed)[0] for seed in range(300)]
    assert drawn.count("a white car") > 2 * drawn.count("a purple car") > 0


def test_capitals_and_spaces_belong_to_the_place():
    assert changed("A Dog Under A Table", "swap relation") == ["A Table Under A Dog"]
    assert changed("A DOG UNDER TWO OWLS", "swap nouns") == ["AN OWL UNDER TWO DOGS"]
    assert changed("The cat  (white) under  a dog.", "swap relation") == []
    assert changed("Fido under a table.", "swap relation") == ["A table under fido."]
    assert changed("An elephant above London.", "swap relation") == ["London above an elephant."]
    assert changed("In London, a bus behind an owl!", "swap nouns") == ["In London, an owl behind a bus!"]
    assert changed("A Red car.", "replace colour", per_kind=1)[0].split()[1].istitle()


def test_a_text_that_two_kinds_give_counts_as_the_first():
    (found,) = Generator(kinds=("swap nouns", "swap relation")).negatives("", [Captioned("a cat on a mat")], PLACE)
    assert [(one.kind, one.text) for one in found] == [("swap relation", "a mat on a cat")]


@pytest.mark.parametrize(
    "caption",
    ["crab", "a crab", "roller skate", "the of and", "🦀", "🦀 🦞", "螃蟹 和 龙虾", "Привет мир", "", ".", "-", "'s"],
)
def test_where_nothing_can_be_changed_nothing_is(caption):
    assert changed(caption) == []


@pytest.mark.parametrize(
    "caption",
    [
        "a red 🦀 under a table",
        "x" * 3000,
        "\ud800 a red cat",
        "a\u200bred cat\u00a0on a mat",
        "((a red cat))",
        "a red red red cat",
    ],
)
def test_unusual_captions_are_no_error(caption):
    for text in changed(caption):
        assert text.strip() != caption


def test_long_captions_get_as_many_changes_as_others():
    caption = " and ".join(f"a red dog{number} under a small blue table" for number in range(40))
    found = Generator(per_kind=3).negatives("", [Captioned(caption)], PLACE)[0]
    assert max(sum(one.kind == kind for one in found) for kind in KINDS) == 3


def test_changes_depend_on_seed_and_caption_alone():
    captions = ["A man in a red shirt rides a brown horse near two dogs.", "a big cat on a small table", "a crab"]
    items = [Captioned(caption) for caption in captions]
    first = Generator().negatives("a.tar", items, PLACE)
    assert Generator().negatives("b.tar", items[::-1], PLACE)[::-1] == first
    assert [Generator().negatives("c.tar", [item], PLACE)[0] for item in items] == first
    assert Generator().negatives("a.tar", items, Place("negatives", seed=1)) != first


def test_fewer_a_kind_are_some_of_all():
    caption = "A man in a red shirt rides a brown horse near two dogs."
    (few,), (many,) = (
        Generator(kinds=("swap nouns", "replace colour"), per_kind=number).negatives("", [Captioned(caption)], PLACE)
        for number in (1, MANY)
    )
    assert [one.kind for one in few] == ["swap nouns", "replace colour"]
    assert set(few) < set(many)


def test_nearly_all_changes_pass_the_judge():
    captions = [
        "A man in a red shirt riding a brown horse on the beach.",
        "A woman is holding a tennis racket while a young boy throws a ball.",
        "An old wooden bench sits under a tall tree near the lake.",
        "The old train pulled three empty wagons through a dark tunnel.",
    ]
    items = [Captioned(caption) for caption in captions]
    verdicts = [judge(item, own) for item, own in zip(items, Generator().negatives("", items, PLACE), strict=True)]
    reasons = [verdict.reason for own in verdicts for verdict in own]
    assert reasons.count("") > 0.9 * len(reasons) > 30
    assert "ungrammatical" not in reasons


def test_unknown_kinds_are_refused():
    with pytest.raises(ValidationError, match="no kind 'swap letters'; known: swap relation, swap nouns,"):
        Generator(kinds=("swap letters",))


def test_kinds_are_asked_in_one_order():
    assert Generator(kinds=("replace size", "swap nouns")).kinds == ("swap nouns", "replace size")


def test_the_fields_load_nothing_heavy():
    code = "import sys, data_tools._negatives.generators.swap; print({'torch', 'spacy', 'numpy'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("package", ["spacy", "lemminflect"])
def test_a_missing_package_is_named_before_any_work(monkeypatch, package):
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    tagger.tagger.cache_clear()
    inflect.form.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        UserError, match=rf"^the generator swap needs (spaCy|{package}): pip install 'vlp\[negatives\]'$"
    ):
        Generator().prepare([], "txt", PLACE)
