"""Measures of captions: against figures worked out by hand, and against the library used directly."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from pathlib import Path

import psutil
import pytest
import torch
import torch.nn.functional as F

from data_tools._scenes_grammar import phrase
from data_tools._scenes_options import ScenesOptions
from data_tools._scenes_world import generator
from vlp.evaluation import caption_metrics, caption_words
from vlp.evaluation.caption_metrics import clip_scores, ref_clip_scores, repetition, score_captions

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None, reason="the extra `captions` is not installed"
)
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java")

# As people write captions of photographs, stamps and emoji: all that the stand-in tokenizer has rules for.
CAPTIONS = [
    "A man riding a wave on top of a surfboard.",
    "A woman's hand, holding a “cell phone”; it's new!",
    "The dogs' bowls aren't full & can't be… cannot be.",
    "They're at 3:30 p.m. in St. Paul, on 5th Ave. (U.S.A.)",
    "a black-and-white photo -- of a red/white 'stop' sign - 50% off, 1,000 left",
    "clock face six o’clock: the dog’s don’t walk",
    "A European coin of 2 euros (2 €). A US penny ($.01) or £5.",
    "What's this?! Boom!!! A dog...",
    "flag: Côte d’Ivoire, [UNK] {x} 5x7 t-shirt 1920's 10-year-old 6x7=42 *star* #12",
    "日本語 テキスト, über groß",
    "a man's dog's bone\u2028and another line\x85of it",
    "   spaces , before\tcomma .",
    "...",
    "",
]


@pytest.fixture
def without_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def broken_java(monkeypatch, tmp_path):
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\necho 'no such virtual machine' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


# ---- Words


@needs_java
def test_words_are_those_of_the_library_whatever_ends_a_line():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    found, name = caption_words.tokenised(CAPTIONS)
    assert name == caption_words.PTB
    # The library itself takes U+2028 for the end of a caption, and gives every later one that of its neighbour.
    lines = [" ".join(text.split()) for text in CAPTIONS]
    assert found == PTBTokenizer().tokenize({0: [{"caption": line} for line in lines]})[0]
    assert found[10] == "a man 's dog 's bone and another line of it"
    assert found[-2:] == ["", ""]


@needs_java
def test_the_stand_in_has_the_same_words():
    world = ScenesOptions("unused", objects="1-3", textures=("plain", "dotted"), image_size=64).world()
    scenes = [world.training_scene(generator(0, "words", n)) for n in range(20)]
    captions = CAPTIONS + [phrase(s, grammar, generator(0, "w", 0)) for s in scenes for grammar in "AB"]
    lines = [" ".join(text.split()) for text in captions]
    assert [caption_words.stand_in(line) for line in lines] == caption_words.by_java(lines)


def test_without_java_the_stand_in_is_named(without_java):
    found, name = caption_words.tokenised(["It's a dog."])
    assert found == ["it 's a dog"]
    assert name.startswith("a stand-in")
    assert "Java is not installed" in name


# ---- Scores


def test_bleu_by_hand(without_java):
    scores = score_captions(["a b c d e"], [["p q", "a b c d f"]])
    assert [scores.of_set[f"Bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx(
        [0.8, math.sqrt(0.8 * 3 / 4), (0.8 * 3 / 4 * 2 / 3) ** (1 / 3), (0.8 * 3 / 4 * 2 / 3 / 2) ** (1 / 4)], rel=1e-6
    )
    # All pictures are counted together: 4 of 4 and 3 of 5 words, in 9 where the true captions have 5 and 6.
    scores = score_captions(["a b c d", "a b c p q"], [["a b c d e"], ["a b c d e f"]])
    assert scores.of_set["Bleu_1"] == pytest.approx(7 / 9 * math.exp(1 - 11 / 9), rel=1e-6)
    assert scores.of_picture["Bleu_1"] == pytest.approx([math.exp(1 - 5 / 4), 3 / 5 * math.exp(1 - 6 / 5)], rel=1e-6)


def test_rouge_by_hand(without_java):
    scores = score_captions(["a x c d", "p"], [["a b c d"], ["q"]])
    assert scores.of_picture["ROUGE_L"] == [pytest.approx(3 / 4), 0]
    scores = score_captions(["a c d"], [["a b c d"]])
    assert scores.of_set["ROUGE_L"] == pytest.approx((1 + 1.2**2) * 0.75 / (0.75 + 1.2**2))


def test_cider_by_hand(without_java):
    scores = score_captions(["a b c d", "p q r s t"], [["a b c d e"], ["p q r s t", "v w x y z"]])
    # All n-grams are in one picture's captions, so they weigh alike; one word less costs exp(-1 / 72).
    cosines = [n / math.sqrt(n * (n + 1)) for n in (4, 3, 2, 1)]
    assert scores.of_picture["CIDEr"] == pytest.approx([10 * math.exp(-1 / 72) * sum(cosines) / 4, 5])
    assert scores.of_set["CIDEr"] == pytest.approx(sum(scores.of_picture["CIDEr"]) / 2)


def test_cider_of_one_picture_is_left_out_and_not_zero(without_java):
    for captions, references in ((["a dog"], [["a dog"]]), (["a dog", "a cat"], [["..."], [""]])):
        scores = score_captions(captions, references)
        assert "CIDEr" not in scores.of_set
        assert "one picture" in scores.left_out["CIDEr"]
        assert "ROUGE_L" in scores.of_set


@needs_java
def test_scores_are_those_of_the_library_and_nothing_is_left(capfd):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    captions = ["A red circle!", "", "two dogs ||| playing", "ein großer Hund", "a man a man a man a man"]
    references = [["A small red circle."], ["a cat"], ["Two dogs play ||| here"]]
    references += [["ein großer Hund", "ein Tier"], ["..."]]
    folder = Path(importlib.util.find_spec("pycocoevalcap").submodule_search_locations[0])
    before = set(folder.rglob("*"))
    children = set(psutil.Process().children(recursive=True))  # of other tests
    capfd.readouterr()
    scores = score_captions(captions, references)
    assert capfd.readouterr() == ("", "")
    assert {path for path in folder.rglob("*") if "__pycache__" not in path.parts} <= before
    assert set(psutil.Process().children(recursive=True)) <= children
    assert scores.tokenizer == caption_words.PTB
    assert scores.of_set.keys() == set(caption_metrics.NAMES) - {"SPICE"}

    true = {n: caption_words.tokenised(texts)[0] for n, texts in enumerate(references)}
    mine = {n: caption_words.tokenised([text])[0] for n, text in enumerate(captions)}
    for name, scorer in {"ROUGE_L": Rouge(), "CIDEr": Cider()}.items():
        score, of_picture = scorer.compute_score(true, mine)
        assert (scores.of_set[name], scores.of_picture[name]) == (score, list(of_picture))
    score, _ = Bleu(4).compute_score(true, mine, verbose=0)
    assert [scores.of_set[f"Bleu_{n}"] for n in (1, 2, 3, 4)] == score
    # What the library itself says of these; its program takes seconds to start.
    first, empty, dogs, same, nothing = scores.of_picture["METEOR"]
    assert first == pytest.approx(0.3274499237462559)
    assert (empty, same, nothing) == (0, 1, 0)
    assert 0.3 < dogs < 1


def test_what_needs_java_is_left_out_by_name(without_java):
    scores = score_captions(["a dog", "a cat"], [["a dog"], ["a dog"]])
    assert scores.left_out.keys() == {"METEOR", "SPICE"}
    assert all("Java is not installed" in why for why in scores.left_out.values())
    assert scores.tokenizer.startswith(caption_words.STAND_IN)


def test_a_java_that_fails_ends_nothing(broken_java):
    scores = score_captions(["a dog", "a cat"], [["a dog"], ["a dog"]])
    assert "no such virtual machine" in scores.tokenizer
    assert "no such virtual machine" in scores.left_out["METEOR"]
    assert scores.of_set.keys() == set(caption_metrics.NAMES) - {"METEOR", "SPICE"}


def test_spice_says_what_it_lacks():
    folder = Path(importlib.util.find_spec("pycocoevalcap").submodule_search_locations[0])
    if (folder / "spice/lib/stanford-corenlp-3.6.0.jar").exists():
        pytest.skip("CoreNLP is there")
    with pytest.raises(caption_words.LeftOut, match=r"^Stanford's CoreNLP 3\.6\.0 is missing: python -m|^Java is not"):
        caption_metrics._spice({0: ["a dog"]}, {0: ["a dog"]})


def test_spice_is_read_from_the_library_where_corenlp_is(monkeypatch, tmp_path):
    """With a program in place of Java that answers as SPICE's does: CoreNLP is no package."""
    from pycocoevalcap.spice import get_stanford_models, spice

    for part in ("", "-models"):
        (tmp_path / f"{get_stanford_models.JAR}{part}.jar").touch()
    monkeypatch.setattr(get_stanford_models, "SPICELIB", str(tmp_path))
    monkeypatch.setattr(spice, "CACHE_DIR", str(tmp_path / "cache"))
    program = tmp_path / "java"
    answer = '[{"image_id": 0, "scores": {"All": {"f": 0.25}}}, {"image_id": 1, "scores": {"All": {"f": 0.75}}}]'
    program.write_text(f"#!/bin/sh\nwhile [ $1 != -out ]; do shift; done\necho '{answer}' > $2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    true, mine = {0: ["a dog"], 1: ["a cat"]}, {0: ["a dog"], 1: ["a cat"]}
    assert caption_metrics._spice(true, mine) == ([0.5], [[0.25, 0.75]])
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(caption_words.LeftOut, match="its program ended with 1; it was written for Java 8"):
        caption_metrics._spice(true, mine)


def test_without_the_library_the_cure_is_named(monkeypatch):
    monkeypatch.setattr(caption_metrics, "LIBRARY", "no_such_library")
    scores = score_captions(["a dog"], [["a dog"]])
    assert scores.of_set == {}
    assert scores.left_out.keys() == set(caption_metrics.NAMES)
    assert all("pip install 'vlp[captions]'" in why for why in scores.left_out.values())


# ---- CLIPScore


def test_clip_score_by_hand():
    image_ND = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=1)
    caption_ND = F.normalize(torch.tensor([[3.0, 4.0], [-1.0, 0.1], [0.0, 2.0]]), dim=1)
    clip_N = clip_scores(image_ND, caption_ND)
    assert clip_N.tolist() == pytest.approx([2.5 * 0.6, 0, 2.5])
    # True captions: of the first one at a cosine of 0.8 and one at 0.6; of the second equal; of the third opposite.
    true_MD = F.normalize(torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.1], [0.0, -1.0]]), dim=1)
    ref_N = ref_clip_scores(clip_N, caption_ND, true_MD, torch.tensor([0, 0, 1, 2]))
    assert ref_N.tolist() == pytest.approx([2 / (1 / 1.5 + 1 / 0.8), 0, 0])


# ---- Repetition


def test_repetition_by_hand():
    captions = ["a dog on a dog on a mat", "a dog", "A  Dog", "the the the the"]
    assert repetition(captions) == {"words": (8 + 2 + 2 + 4) / 4, "distinct": 3 / 4, "repeats": 2 / 4}
    assert repetition([""]) == {"words": 0, "distinct": 1, "repeats": 0}
