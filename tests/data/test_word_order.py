import importlib.util
import sys
from collections import Counter

import pytest

from vlp.data import word_order
from vlp.data.word_order import MAX_WORDS, SHUFFLES, cleaned, cut, same_order, shuffles
from vlp.types import UserError

CAPTIONS = [
    "A man with a small dog rides a big wave on top of a white surfboard.",
    "Two young women, holding red umbrellas, walk past the parked cars.",
    "The cat's toy is under a wooden table near an old-fashioned lamp!",
]

needs_spacy = pytest.mark.skipif(
    not any(map(importlib.util.find_spec, word_order._MODELS)), reason="needs the extra rewrite"
)


def test_captions_are_cleaned_as_blip_does():
    assert cleaned('  A "Red"  (car): #1; *new*!  Big. ~') == "a red car 1 new big"
    assert cleaned("the cat's toy, old-fashioned?\n") == "the cat's toy, old-fashioned?"


def test_long_captions_lose_their_last_words():
    caption = " ".join(f"word{number} ." for number in range(40))
    assert len(cut(caption).split()) == 2 * MAX_WORDS
    assert cleaned(cut(caption)).split() == [f"word{number}" for number in range(MAX_WORDS)]
    assert cut("short one.") == "short one."


@pytest.mark.parametrize(("other", "same"), [("a red haired dog", True), ("A red-haired dog.", True), ("dog a", False)])
def test_an_order_is_of_letters_whatever_stands_between(other, same):
    assert same_order("a red - haired dog", other) is same


@needs_spacy
def test_each_shuffle_moves_what_it_says():
    caption = CAPTIONS[0]
    true = cleaned(caption).split()
    nouns, adjectives = {"man", "dog", "wave", "top", "surfboard"}, {"small", "big", "white"}
    (found,) = shuffles([caption])
    by_name = dict(zip(SHUFFLES, (text.split() for text in found), strict=True))
    assert all(Counter(shuffled) == Counter(true) for shuffled in by_name.values())
    for place, word in enumerate(by_name["nouns_and_adj"]):
        group = next((group for group in (nouns, adjectives) if true[place] in group), {true[place]})
        assert word in group
    for place, word in enumerate(by_name["allbut_nouns_and_adj"]):
        assert (true[place] == word) if true[place] in nouns | adjectives else (word not in nouns | adjectives)
    threes = [true[start : start + 3] for start in range(0, len(true), 3)]
    within = [by_name["within_trigrams"][start : start + 3] for start in range(0, len(true), 3)]
    assert [sorted(three) for three in within] == [sorted(three) for three in threes]
    assert all(" ".join(three) in " ".join(by_name["trigrams"]) for three in threes)


@needs_spacy
def test_no_shuffle_is_the_caption_and_none_is_given_where_it_must_be():
    assert all(not same_order(caption, text) for caption in CAPTIONS for text in next(shuffles([caption])))
    # One noun, or the same one twice, cannot change places; "dog." has one word that remains when cleaned.
    assert next(shuffles(["dog."])) == [None] * 4
    nouns, others, within, trigrams = next(shuffles(["a cat and a cat"]))
    assert nouns is None
    assert all((others, within, trigrams))
    assert next(shuffles(["Two dogs"])) == [None, None, "dogs two", None]
    # Two orders only, of which one is the caption: half of the first draws give it again.
    assert [next(shuffles([f"the {noun} of a house"]))[0] for noun in ("king", "man", "dog", "cat", "owl", "fish")] == [
        f"the house of a {noun}" for noun in ("king", "man", "dog", "cat", "owl", "fish")
    ]


@needs_spacy
def test_shuffles_depend_on_caption_and_seed_only():
    first = dict(zip(CAPTIONS, shuffles(CAPTIONS), strict=True))
    again = dict(zip(CAPTIONS[::-1], shuffles([*CAPTIONS[::-1]]), strict=True))
    assert first == again
    assert next(shuffles(CAPTIONS)) == first[CAPTIONS[0]]
    assert next(shuffles(CAPTIONS, seed=1)) != first[CAPTIONS[0]]
    # What earlier versions drew: figures of two versions of vlp must compare.
    assert first[CAPTIONS[0]][2:] == [
        "with man a a dog small a rides big on top wave a of white surfboard",
        "a man with of a white rides a big a small dog surfboard wave on top",
    ]


@needs_spacy
def test_the_words_of_a_long_caption_are_those_of_its_shuffles():
    short = cut(" ".join(CAPTIONS[:1] * 4))
    for text in next(shuffles([short])):
        assert len(text.split()) == MAX_WORDS
        assert Counter(text.split()) == Counter(cleaned(short).split())


@pytest.mark.parametrize("missing", ["spaCy", "a model of English for spaCy"])
def test_a_missing_package_is_named_with_its_cure(monkeypatch, missing):
    if missing == "spaCy":
        monkeypatch.setitem(sys.modules, "spacy", None)
    monkeypatch.setattr(word_order, "_MODELS", ("no_such_model",))
    word_order._tagger.cache_clear()
    with pytest.raises(
        UserError, match=rf"need {missing}: pip install 'vlp\[english\]', or give the shuffled captions"
    ):
        list(shuffles(["a dog"]))
    word_order._tagger.cache_clear()
