from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools._english.words import word_set
from data_tools._negatives.articles import article
from data_tools._negatives.base import Captioned, Negative
from data_tools._negatives.judge import REASONS, judge

CIRCLES = "a red circle left of a blue square"
ANIMALS = "a dog next to a cat on a couch"


def reason(caption: str, text: str, *others: str) -> str:
    (verdict,) = judge(Captioned(caption, others), [Negative(text, "kind")])
    return verdict.reason


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        (CIRCLES, "a blue circle left of a red square"),
        (CIRCLES, "a red square left of a blue circle"),
        (CIRCLES, "a blue square left of a red circle"),
        (CIRCLES, "a red circle right of a blue square"),
        (CIRCLES, "to the left of a red circle is a blue square"),
        (CIRCLES, "a red circle left of a green square"),
        (ANIMALS, "a dog on top of a cat on a couch"),
        (ANIMALS, "a couch next to a cat on a dog"),
        (ANIMALS, "a dog far from a cat on a couch"),
        (ANIMALS, "a dog next to two cats on a couch"),
        ("two dogs and three cats", "three dogs and two cats"),
        ("a black dog next to a white cat", "a white dog next to a black cat"),
        ("a man and a woman with a hat", "a hat and a woman with a man"),
        ("a dog bites a man", "a man bites a dog"),
        ("a dog bites a man", "a dog is bitten by a man"),
        ("a road without cars", "a road with cars"),
        ("a road without cars", "cars"),
        ("no dogs allowed", "dogs allowed"),
        ("a man pushing a car", "a man pulling a car"),
        ("a dog running after a cat and a mouse", "a cat running after a dog and a mouse"),
        ("a small dog", "a big dog"),
        ("a dog chasing cats", "cats chasing a dog"),
        ("a red building behind a dog", "a red dog behind a building"),
        ("a red car", "an orange car"),
        ("🐶🐱", "🐱🐶"),
        ("一只狗", "一只猫"),
    ],
)
def test_what_is_false_passes(caption, text):
    assert reason(caption, text) == ""


@pytest.mark.parametrize("text", ["A Dog next to the cat, on a couch!", "a  dog next to a cat on\na couch"])
def test_the_caption_itself_is_rejected(text):
    assert reason(ANIMALS, text) == "identical"


@pytest.mark.parametrize("text", ["", "  ", "...", '"', "\u200b"])
def test_nothing_is_rejected(text):
    assert reason(ANIMALS, text) == "empty"


def test_other_true_captions_of_the_picture_are_rejected():
    assert reason("a dog", "a cat on a mat") == ""
    assert reason("a dog", "The cat on a mat.", "a cat on a mat") == "other_caption"
    assert reason("a dog", "a cat", "a cat on a mat") == "other_caption"
    assert reason("a dog", "a rug under a cat", "a bird", "a cat above a carpet") == "other_caption"
    assert reason("a dog", "a mat on a cat", "a cat on a mat") == ""


@pytest.mark.parametrize("text", ["a dog", "a dog and a cat", "a cat on a couch", "a dog on a couch"])
def test_a_part_of_the_caption_is_true_as_well(text):
    assert reason(ANIMALS, text) == "says_less"


def test_a_part_without_its_denial_is_false():
    assert reason("a road without cars", "a road") == "says_less"
    assert reason("a dog that is not brown on a road", "a dog on a road") == ""


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        (ANIMALS, "a cat next to a dog on a couch"),
        (ANIMALS, "a cat beside the dog on a sofa"),
        (ANIMALS, "a dog on a couch next to a cat"),
        (ANIMALS, "on a couch, a dog next to a cat"),
        (ANIMALS, "there is a dog next to a cat on a couch"),
        (CIRCLES, "a blue square right of a red circle"),
        (CIRCLES, "a blue square to the right of a red circle"),
        (CIRCLES, "to the left of a blue square is a red circle"),
        (CIRCLES, "a crimson disc to the left of an azure box"),
        (CIRCLES, "a blue square next to a red circle"),
        ("a lamp above a table", "a table under a lamp"),
        ("a dog in front of a house", "a house behind a dog"),
        ("a man and a woman riding horses", "a woman and a man riding horses"),
        ("a man, a woman and a child", "a child, a woman and a man"),
        ("a dog. a cat.", "a cat. a dog."),
        ("a boy talking to a girl", "a girl talking to a boy"),
        ("a dog bites a man", "a man is bitten by a dog"),
        ("a man is bitten by a dog", "a dog bites a man"),
        ("a dog runs", "a dog is running"),
        ("a large red ball", "a red large ball"),
        ("a large red ball", "a big red ball"),
        ("2 dogs", "two dogs"),
        ("a gold ring", "a golden ring"),
        ("a woman with a poodle", "a person with a dog"),
        ("a man holding a ball", "a man with a ball"),
        ("a man in a hat", "a man wearing a hat"),
        ("leftwards pushing hand", "hand pushing leftwards"),
        ("a sleeping cat on a mat", "a cat sleeping on a mat"),
        ("a parked car", "a car parked"),
        ("a woman with red hair", "a woman with orange hair"),
    ],
)
def test_what_says_the_same_is_a_paraphrase(caption, text):
    assert reason(caption, text) == "paraphrase"


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        (ANIMALS, "a dog next to an horse on a couch"),
        (ANIMALS, "a dog next to a owl on a couch"),
        (ANIMALS, "a dog next to the the bird on a couch"),
        (ANIMALS, "a dog next to a horses on a couch"),
        (ANIMALS, "two dog next to a bird on a couch"),
        (ANIMALS, "a dog next to a bird on a couch and"),
        (ANIMALS, "a dog next to a the bird on a couch"),
        (ANIMALS, "a dog next to a on a couch bird"),
        (ANIMALS, "a dog next to a bird , on a couch"),
        ("a dog is sitting on a couch", "a dog are lying on a couch"),
        ("two dogs are sitting on a couch", "two dogs is lying on a couch"),
        ("there is a dog on a couch", "there is two cats on a couch"),
    ],
)
def test_what_is_broken_is_ungrammatical(caption, text):
    assert reason(caption, text) == "ungrammatical"


@pytest.mark.parametrize(
    "text",
    [
        "two sheep and a bus next to an hour glass",
        "two women with a glass of wine",
        "a man and a woman are on a beach",
        "there is a dog and two cats",
        "these people are in the first row",
        "a letter A in a square",
        "an X-ray of a unicorn and an honest user",
        "three red and two blue balls",
        "two people standing",
        "that that is",
        "a group of dogs is here",
    ],
)
def test_sound_english_is_no_mistake(text):
    assert reason("a bird", text) == ""


def test_mistakes_that_the_caption_has_may_stay():
    assert reason("a red elephants on a unicorn's an back", "a blue elephants on a unicorn's an back") == ""


def test_of_equal_negatives_the_first_counts():
    texts = ["a bird", "A bird.", "a horse", "the bird"]
    verdicts = judge(Captioned("a dog"), [Negative(text, f"kind {text}") for text in texts])
    assert [(one.text, one.kind, one.reason) for one in verdicts] == [
        ("a bird", "kind a bird", ""),
        ("A bird.", "kind A bird.", "repeated"),
        ("a horse", "kind a horse", ""),
        ("the bird", "kind the bird", "repeated"),
    ]


def test_a_rejected_one_does_not_make_later_ones_repeated():
    verdicts = judge(Captioned("a dog"), [Negative(text, "") for text in ("a owl", "an owl")])
    assert [one.reason for one in verdicts] == ["ungrammatical", ""]


def test_the_detail_says_what_the_rule_stumbled_over():
    def detail(caption: str, text: str) -> str:
        return judge(Captioned(caption), [Negative(text, "")])[0].detail

    assert detail(ANIMALS, "a cat next to a dog on a couch") == "near"
    assert detail("a big dog", "a large dog") == "large for big"
    assert detail(ANIMALS, "a dog and a cat") == "on couch"
    assert detail(ANIMALS, "a dog next to a owl on a couch") == "a owl"


def test_spaces_are_put_in_order():
    assert judge(Captioned("a dog"), [Negative(" a \n bird ", "")])[0].text == "a bird"


@pytest.mark.parametrize("caption", ["", "🐶", "dog " * 400, "的" * 50, "and or with", "a", "()", "left of", "<and>"])
@pytest.mark.parametrize("text", ["", "🐱", "cat " * 400, "and and", "by", "a b", "<near>"])
def test_unusual_texts_get_a_verdict(caption, text):
    assert reason(caption, text) in ("", *REASONS)


WORDS = st.lists(
    st.sampled_from(sorted(word_set("a the dog cat red and next to left of on is by bitten bites , ."))), max_size=9
)


@given(WORDS.map(" ".join), WORDS.map(" ".join))
@settings(max_examples=300, deadline=None)
def test_any_text_gets_a_verdict_and_a_copy_none_as_false(caption, text):
    assert reason(caption, text) in ("", *REASONS)
    assert reason(caption, caption) in ("empty", "identical")


def test_a_long_caption_is_judged_in_reasonable_work():
    words = [f"thing{number} and" for number in range(140)]
    caption, text = " ".join([*words, "end"]), " ".join([*words[::-1], "end"])
    assert reason(caption, text) in ("", *REASONS)


AN = "hour honest heir umbrella uncle unusual unidentified X-ray FM 8 11 18 80 owl"
A = "horse user unicorn European one UFO USB UK T-shirt 1 100 1800 bee university"


@pytest.mark.parametrize("word", sorted(word_set(AN)))
def test_an(word):
    assert article(word) == "an"


@pytest.mark.parametrize("word", sorted(word_set(A)))
def test_a(word):
    assert article(word) == "a"
