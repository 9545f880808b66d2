"""Ids equal open_clip's for every text; memory is bounded; which model gets which tokenizer."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import pickle

import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

import vlp.encoders.tokenizer as module
from vlp.encoders import text_tower
from vlp.encoders.openclip import ModelOptions, build, load, save_openclip_directory
from vlp.encoders.tokenizer import FastTokenizer, openclip_tokenizer

THEIRS, OURS = SimpleTokenizer(), FastTokenizer()
CAPTIONS = [
    "A black and white cat sits on a wooden table, next to the girl's red bicycle at night.",
    "Two dogs run over green grass with a yellow ball between them",
    "an old photograph of 17 people in front of a small church, 1923",
    "the man isn't holding an umbrella; it's raining!",
]

# What cleaning, splitting or merging may treat in a way of its own.
NASTY = [
    *("<start_of_text>", "<END_OF_TEXT>", "<start_of_text", "< end_of_text >", "<\u017ftart_of_text>", "</w>", "w</w>"),
    *("'s", "'S", "'\u017f", "'re", "'ll", "n't", "''", "\u2019s", "\u02bcll", "\u201cquoted\u201d", "`", "\u00b4"),
    *(
        "&amp;",
        "&amp;amp;lt;",
        "&lt;b&gt;",
        "&#39;",
        "&#x2019;",
        "&nbsp;",
        "&eacute",
        "&nosuch;",
        "&",
        "&#0;",
        "<b>&amp;",
    ),
    *(
        "\u00c3\u00a9",
        "\u00e2\u20ac\u2122",
        "\u00e2\u0153\u201d",
        "\u00c2\u00a0",
        "voil\u00c3 le",
        "\u00f0\u0178\u02dc\u2026",
    ),
    *("\x00", "\x07", "\x0b", "\x0c", "\r", "\r\n", "\n", "\t", "\x1b[31m", "\x1c", "\x1f", "\x7f", "\x85", "\x9f"),
    *(
        "\u00a0",
        "\u180e",
        "\u200b",
        "\u200d",
        "\u2028",
        "\u2029",
        "\u202e",
        "\u3000",
        "\ufeff",
        "\ufffc",
        "\ufffd",
        "  ",
    ),
    *(
        "e\u0301",
        "\u0301",
        "\u00e9",
        "\u1e9e",
        "\u0130",
        "I\u0307",
        "\u212a",
        "\u212b",
        "\u03a3",
        "\u0345",
        "\u1100\u1161",
    ),
    *("\ufb01", "\u0133", "\u01c6", "\uff21\uff22", "\uff76\uff9e", "\u0663", "\u00bd", "\u00b2", "\u2167", "\u0e59"),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "\u2764\ufe0f", "\U0001f1e9\U0001f1ea"),
    *(
        "\u4e00\u53ea\u732b",
        "\u0444\u043e\u0442\u043e",
        "\u0639\u0631\u0628\u064a",
        "\u0939\u093f\u0928\u094d",
        "\U00010400",
    ),
    *(
        "\ud83d",
        "\udca9",
        "\ud83d\ude00",
        "\U000e0067",
        "\U0010ffff",
        "12345",
        "3.14",
        "x" * 40,
        "!" * 9,
        "_",
        "{}",
        "a-b",
    ),
    *("IMG_0042.JPG", "https://example.org/a?b=1&amp;c=2", "don't", "CAF\u00c9", "abcabcabc", "Stra\u00dfe", "word"),
]
PLAIN = st.text(st.characters(max_codepoint=127), max_size=60)
ANY = st.text(max_size=40)
PIECES = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=3)), max_size=14).flatmap(
    lambda pieces: st.sampled_from(["", " "]).map(lambda between: between.join(pieces))
)
MANY = settings(max_examples=800, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@MANY
@given(PLAIN)
def test_ids_of_ascii(text):
    assert torch.equal(OURS(text), THEIRS(text))


@MANY
@given(ANY)
def test_ids_of_any_unicode(text):
    assert torch.equal(OURS(text), THEIRS(text))


@MANY
@given(PIECES)
def test_ids_of_entities_mojibake_marks_and_special_tokens(text):
    assert torch.equal(OURS(text), THEIRS(text))


def test_ids_of_every_pair_of_ascii_characters():
    """What is not cleaned by ftfy is what ftfy would leave alone: its rules look at single characters or at `&...`."""
    texts = [f"{a}{b} {b}{a}" for a, b in itertools.combinations_with_replacement(map(chr, range(128)), 2)]
    assert torch.equal(OURS(texts), THEIRS(texts))


@pytest.mark.parametrize("clean", ["whitespace", "canonicalize"])
def test_the_other_ways_to_clean(clean):
    ours, theirs = FastTokenizer(clean=clean), SimpleTokenizer(clean=clean)
    texts = [*CAPTIONS, *NASTY, "".join(NASTY), " ".join(NASTY), "snake_case_Name & Co.", "'S 'LL <START_OF_TEXT>"]
    assert torch.equal(ours(texts), theirs(texts))
    assert not torch.equal(ours(["A. b"]), OURS(["A. b"])), "the way to clean must matter"


@pytest.mark.parametrize("length", [1, 2, 3, 8, 77])
def test_long_texts_keep_the_end_token(length):
    texts = ["", " ", "cat", "a cat", "a cat sat", "word " * 5000, "unspaced" * 30, "!" * 3000, "1" * 75, "1" * 76]
    ours = FastTokenizer(context_length=length)(texts)
    assert torch.equal(ours, SimpleTokenizer(context_length=length)(texts))
    assert torch.equal(ours, OURS(texts, context_length=length))
    assert (ours == OURS.eot_token_id).sum(1).tolist() == [1] * len(texts)


def test_shapes_and_mistakes():
    assert (OURS("a cat").shape, OURS("a cat").dtype) == ((1, 77), torch.int64)
    assert torch.equal(OURS([]), THEIRS([]))
    tokens = OURS(CAPTIONS)
    tokens.zero_()  # callers may write into what they get
    assert torch.equal(OURS(CAPTIONS), THEIRS(CAPTIONS))
    assert OURS.decode(OURS.encode("a cat")) == "a cat "
    with pytest.raises(TypeError):
        OURS([None])


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_MAX_WORDS", 40)
    tokenizer = FastTokenizer()
    texts = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)}, {'long' * i} <start_of_text>" for i in range(200)]
    for text in texts:
        assert torch.equal(tokenizer([text, *CAPTIONS]), THEIRS([text, *CAPTIONS]))
        assert len(tokenizer._word_ids) <= 40
        assert max(map(len, tokenizer._word_ids)) <= module._MAX_LENGTH
        assert len(tokenizer._word_ids._tokenizer.cache) < 40
    assert len(tokenizer.cache) == 2


def test_pickled_and_forked_tokenizers_give_the_same_ids():
    expected = THEIRS(CAPTIONS)
    assert torch.equal(pickle.loads(pickle.dumps(OURS))(CAPTIONS), expected)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(found == expected.tolist() for found in pool.map(_ids, [CAPTIONS] * 4))


def _ids(texts):
    return OURS(texts).tolist()


@pytest.mark.parametrize("extra", [{"reduction_mask": "simple"}, {"additional_special_tokens": ["a cat", "<x.*>"]}])
def test_what_looks_at_more_than_a_word_stays_with_openclip(extra):
    tokenizer = openclip_tokenizer(16, **extra)
    assert type(tokenizer) is SimpleTokenizer
    assert tokenizer.context_length == 16
    assert (
        tokenizer(["two <xy> a cat"]).tolist()
        == SimpleTokenizer(context_length=16, **extra)(["two <xy> a cat"]).tolist()
    )


def test_tokenizer_of_a_configuration():
    tokenizer = text_tower.tokenizer(
        {"text_cfg": {"context_length": 16, "tokenizer_kwargs": {"clean": "canonicalize"}}}
    )
    assert type(tokenizer) is FastTokenizer
    assert torch.equal(tokenizer(NASTY), SimpleTokenizer(context_length=16, clean="canonicalize")(NASTY))
    assert (
        type(text_tower.tokenizer({"text_cfg": {"tokenizer_kwargs": {"reduction_mask": "random"}}})) is SimpleTokenizer
    )
    assert text_tower.tokenizer({"text_cfg": {}}).context_length == 77


def test_a_transformers_text_tower_keeps_its_own_tokenizer(bert_model, tmp_path):
    model = build(ModelOptions(config=bert_model), seed=0)
    assert type(model.tokenizer) is HFTokenizer
    assert model.tokenizer(["a Red  circle &amp; <start_of_text>"])[0, :5].tolist() == [2, 5, 6, 8, 1]
    save_openclip_directory(model, tmp_path, final=tmp_path)
    assert type(load(str(tmp_path)).tokenizer) is HFTokenizer


def test_a_written_model_does_not_know_of_the_fast_tokenizer(tiny_model, tmp_path):
    model = build(ModelOptions(config=tiny_model), seed=0)
    assert type(model.tokenizer) is FastTokenizer
    save_openclip_directory(model, tmp_path)
    assert "tokenizer" not in json.dumps(json.loads((tmp_path / "open_clip_config.json").read_text()))
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    assert type(theirs) is SimpleTokenizer
    assert type(load(str(tmp_path)).tokenizer) is FastTokenizer
    assert torch.equal(model.tokenizer(NASTY), theirs(NASTY))
