"""The rules of the gate that look at a rewrite's form: length, junk, script, copies."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from data_tools._english.same_form import same_form, words
from vlp.types import UserError

if TYPE_CHECKING:
    from data_tools._rewrite_gate import GateOptions

_SURE = 0.9
_SHORTEST = 4  # words that a caption counts as at least, where lengths are compared

_ECHO = re.compile(
    r"=>|\bimage captions? differently|\brewrit(?:e|es|ten|ing)\b|\bparaphras|\brephras|\bhere(?:'s| is| are)\b"
    r"|\bcaptions?\b|\bsure[,!]|\bcertainly[,!]|\bother words\b|\bas an ai\b|\{\{|\}\}|\blanguage model\b|\bnote:",
    re.I,
)
_DIALOGUE = re.compile(
    r"\?|^(?:user|assistant|system|human|bot|model|[QA])\s*:|\b(?:my|me|you|your|yours|please)\b|\bi['’](?:m|ve|ll|d)\b"
    r"|\bi (?:am|have|had|was|will|would|can|could|do|did|don't|think|see|saw|want|like|love|need|hope|cannot|can't)\b",
    re.I,
)
_LIST = re.compile(r"(?:^|\s)\(?[1-9][.)]\s|\s[-*•]\s.*\s[-*•]\s|[;|].*[;|]|\w\s*/\s*\w.*/|\bor\b.*\bor\b|[(\[{]", re.I)
_AGAIN = re.compile(r"\b(\w{3,})\b(?:\W+\1\b){2,}", re.I)


def form_problem(options: GateOptions, caption: str, text: str) -> tuple[str, str]:
    """The first rule that rejects, and what it stumbled over; two empty strings if none does."""
    return next(
        ((name, detail) for name, detail in _problems(options, caption, text) if name not in options.off), ("", "")
    )


def _problems(options: GateOptions, caption: str, text: str) -> Iterator[tuple[str, str]]:
    count, original = len(words(text)), len(words(caption))
    if not count:
        yield "empty", ""
    if count < max(options.min_words, options.min_length * original):
        yield "too_short", f"{count} words"
    if count > min(options.max_words, options.max_length * max(original, _SHORTEST)):
        yield "too_long", f"{count} words"
    for name, pattern in (("prompt_echo", _ECHO), ("list", _LIST), ("list", _AGAIN), ("dialogue", _DIALOGUE)):
        if (found := pattern.search(text)) and not pattern.search(caption):
            yield name, found.group().strip()
    if foreign := _scripts(text) - _scripts(caption) - {"LATIN"}:
        yield "language", min(foreign).lower()
    if "language" not in options.off and (code := _language(text)) not in ("en", "", _language(caption)):
        yield "language", code
    if same_form(text) == same_form(caption):
        yield "near_copy", ""


def _scripts(text: str) -> set[str]:
    """Of its letters: the first word of their names in Unicode, such as LATIN or CYRILLIC."""
    return {unicodedata.name(letter, "UNKNOWN").partition(" ")[0] for letter in text if letter.isalpha()}


def _language(text: str) -> str:
    """ISO 639 code, "" where py3langid is not sure: at 0.9 it took none of 3,700 real English rewrites for another."""
    code, probability = _identifier().classify(text)
    return str(code) if probability >= _SURE else ""


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ModuleNotFoundError as error:
        raise UserError(
            "the rule on the language of rewrites needs py3langid: pip install 'vlp[rewrite]', or switch it off"
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
