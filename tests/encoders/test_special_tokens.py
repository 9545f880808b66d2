"""Start, end and padding come from the tokenizer's own texts; what is told of a text ends at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vlp.encoders.special_tokens import SpecialTokens, padding_id, special_tokens
from vlp.encoders.tokenizer import openclip_tokenizer
from vlp.types import UserError

WORDS = ["<unk>", "<pad>", "<s>", "</s>", "a", "dog", "red"]


def stored(folder: Path, template: str, **roles: str) -> HFTokenizer:
    """A tokenizer of transformers, read as open_clip does, whose texts look like ``template``."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(word, WORDS.index(word)) for word in ("<s>", "</s>")]
    inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, **{"unk_token": "<unk>", "pad_token": "<pad>", **roles})
    fast.save_pretrained(folder)
    return HFTokenizer(str(folder), context_length=8)


@pytest.mark.parametrize("make", [lambda: open_clip.SimpleTokenizer(context_length=16), lambda: openclip_tokenizer(16)])
def test_clip(make: Callable[[], open_clip.SimpleTokenizer]) -> None:
    tokenizer = make()
    found = special_tokens(tokenizer)
    assert found == SpecialTokens(49406, 49407, 0)
    text_NL = tokenizer(["a dog", ""])
    assert text_NL[0].tolist() == [found.start, 320, 1929, found.end] + [found.padding] * 12


def test_bert(bert_directory: Path) -> None:
    tokenizer = HFTokenizer(str(bert_directory), context_length=8)
    assert special_tokens(tokenizer) == SpecialTokens(2, 3, 0)


def test_roberta_names_its_marks_otherwise_and_pads_with_another_id(tmp_path: Path) -> None:
    tokenizer = stored(tmp_path, "<s> $A </s>", bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>")
    found = special_tokens(tokenizer)
    assert found == SpecialTokens(2, 3, 1)
    assert padding_id(tokenizer) == 1
    assert found.told(tokenizer(["a dog", "red a dog"])).sum(1).tolist() == [3, 4]


def test_one_mark_for_both_ends(tmp_path: Path) -> None:
    """As GPT-2's, where a tokenizer is told to write it."""
    tokenizer = stored(tmp_path, "</s> $A </s>", bos_token="</s>", eos_token="</s>")
    found = special_tokens(tokenizer)
    assert (found.start, found.end) == (3, 3)
    assert found.lengths(tokenizer(["a dog", ""])).tolist() == [4, 2]
    assert found.told(tokenizer(["a dog", ""])).tolist() == [[True] * 3 + [False] * 4, [True] + [False] * 6]


@pytest.mark.parametrize(("template", "start"), [("<s> $A </s>", 2), ("</s> $A </s>", 3)])
def test_texts_that_are_filled_up_with_their_end(tmp_path: Path, template: str, start: int) -> None:
    """As those of tokenizers that had no padding of their own."""
    begins = "<s>" if start == 2 else "</s>"
    tokenizer = stored(tmp_path, template, bos_token=begins, eos_token="</s>", pad_token="</s>")
    found = special_tokens(tokenizer)
    assert found == SpecialTokens(start, 3, 3)
    assert found.told(tokenizer(["a dog", "", "red a dog"])).sum(1).tolist() == [3, 1, 4]


@pytest.mark.parametrize(
    ("template", "missing"), [("$A </s>", "start"), ("<s> $A", "end"), ("$A", "start")], ids=["T5", "no end", "GPT-2"]
)
def test_texts_without_a_start_or_an_end_are_refused(tmp_path: Path, template: str, missing: str) -> None:
    tokenizer = stored(tmp_path, template, bos_token="<s>", eos_token="</s>")
    with pytest.raises(UserError, match=f"gives texts no {missing} token") as raised:
        special_tokens(tokenizer)
    assert "\n" not in str(raised.value)


def test_lengths_and_what_is_told() -> None:
    """Of a text with an end, with two, with an id of padding inside, and with none, as where it was cut off."""
    text_NL = torch.tensor([[8, 5, 9, 0, 0], [8, 9, 5, 9, 0], [8, 0, 5, 9, 0], [8, 5, 6, 7, 5], [8, 9, 0, 0, 0]])
    special = SpecialTokens(start=8, end=9, padding=0)
    assert special.lengths(text_NL).tolist() == [3, 2, 4, 5, 2]
    told_NL = special.told(text_NL)
    assert told_NL.int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]


def test_a_text_that_was_cut_off_is_told_to_its_end(bert_directory: Path) -> None:
    for tokenizer in (openclip_tokenizer(8), HFTokenizer(str(bert_directory), context_length=8)):
        special, text_NL = special_tokens(tokenizer), tokenizer(["a red circle left of " * 5])
        assert text_NL[0, -1] == special.end
        assert special.told(text_NL).all()
