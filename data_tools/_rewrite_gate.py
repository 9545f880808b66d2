"""Which rewrites of a caption may be used, and why the others may not: the rules in the order in which they are asked.

For English captions; for others switch the rules of content off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field, field_validator, model_validator

REASONS = {
    "empty": "nothing is left without quotes, bullets and marks of the end",
    "too_short": "fewer words than a caption needs, or far fewer than the original",
    "too_long": "more words than a caption has, or far more than the original",
    "prompt_echo": "parts of the instruction, or words about the answer (`here is a caption`)",
    "list": "several captions, numbered or bulleted, or notes in brackets",
    "dialogue": "talk: questions, addresses, roles",
    "language": "letters of a script that the caption has not, or surely not English",
    "near_copy": "the original but for case, punctuation, articles",
    "lost_number": "a number of the caption is gone",
    "lost_colour": "a colour of the caption is gone",
    "lost_negation": "the caption says that something is not there, the rewrite does not",
    "lost_relation": "where things are is gone",
    "swapped_roles": "things or their attributes have changed places",
    "lost_content": "a thing or an action of the caption is gone",
    "lost_attribute": "an adjective of the caption is gone",
    "added_number": "a number that the caption does not name",
    "added_colour": "a colour that the caption does not name",
    "added_negation": "the rewrite says that something is not there, the caption does not",
    "added_relation": "a place of one thing to another that the caption does not name",
    "added_object": "a thing that the caption does not name",
    "added_action": "an action that the caption does not name",
    "added_attribute": "an adjective that the caption does not have, but for praise",
    "repetition": "a thing or a figure more often than in the caption",
    "dissimilar": "the sentence means something else (needs min_similarity)",
    "duplicate": "an accepted rewrite of the same caption but for case, punctuation, articles",
    "unlike_picture": "a lower CLIP score with the picture than the original's (needs clip_model)",
}
"""Name of a rule -> what it rejects, in the order in which they are asked."""
CONTENT = frozenset(name for name in REASONS if name.startswith(("lost_", "added_", "swapped_", "repet")))
"""The rules that need spaCy and embeddings of words; ``off`` calls them all ``content``."""
_RULES_OF: dict[str, frozenset[str]] = {
    **dict.fromkeys(("min_words", "min_length"), frozenset({"too_short"})),
    **dict.fromkeys(("max_words", "max_length"), frozenset({"too_long"})),
    "synonym": CONTENT - {"lost_colour", "added_colour", "lost_negation", "added_negation", "repetition"},
    "min_similarity": frozenset({"dissimilar"}),
    **dict.fromkeys(("clip_model", "min_clip_ratio"), frozenset({"unlike_picture"})),
}
"""Threshold -> the rules that ask for it."""


class GateOptions(BaseModel, frozen=True, extra="forbid"):
    """Thresholds of the rules."""

    off: tuple[str, ...] = Field(
        default=(),
        description="rules that are not asked; content stands for all that begin with lost, added, swapped, repetition",
    )
    min_words: int = Field(default=2, ge=1, description="least number of words; LaCLIP takes no rewrite of one")
    max_words: int = Field(default=40, ge=1, description="largest number of words")
    min_length: float = Field(default=0.4, ge=0, lt=1, description="least number of words over those of the caption")
    max_length: float = Field(
        default=3.0, gt=1, description="largest number of words over those of the caption, which counts as 4 or more"
    )
    synonym: float = Field(
        default=0.8, gt=0, le=1, description="least cosine of all-MiniLM-L6-v2 at which two words name the same thing"
    )
    min_similarity: float | None = Field(
        default=None, gt=0, le=1, description="least cosine of rewrite and caption, by all-MiniLM-L6-v2"
    )
    clip_model: str | None = Field(default=None, description="MODEL whose CLIP score with the picture is compared")
    min_clip_ratio: float = Field(
        default=0.9, gt=0, le=1, description="least CLIP score with the picture over that of the original"
    )

    @field_validator("off")
    @classmethod
    def _are_rules(cls, off: tuple[str, ...]) -> tuple[str, ...]:
        for name in off:
            if name not in (*REASONS, "content"):
                raise ValueError(f"no rule '{name}'; known: {', '.join(REASONS)}, content")
        return tuple(name for name in REASONS if name in off or ("content" in off and name in CONTENT))

    @model_validator(mode="after")
    def _have_effect(self) -> GateOptions:
        if self.min_words > self.max_words and not {"too_short", "too_long"} & set(self.off):
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}: no rewrite passes")
        for name, rules in _RULES_OF.items():
            if name in self.model_fields_set and getattr(self, name) is not None and rules <= set(self.off):
                which = f"the rule {min(rules)}" if len(rules) == 1 else "the rules of content that ask for it"
                raise ValueError(f"{name} has no effect with {which} switched off: leave one of the two out")
        if self.clip_model is None and "min_clip_ratio" in self.model_fields_set:
            raise ValueError("min_clip_ratio has no effect without clip_model: name a MODEL")
        return self


@dataclass(frozen=True)
class Verdict:
    """What became of one completion: the cleaned ``text``, and the rule that rejects it ("": accepted)."""

    text: str
    reason: str = ""
    detail: str = ""
    """What the rule stumbled over, such as the word that was lost."""


_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_MARKS = re.compile(r"<\|?/?(?:im_(?:start|end)|end_of_turn|start_of_turn|eot_id|endoftext|eos|bos|s|pad)\|?>")
_IN_FRONT = re.compile(
    r"^\s*(?:[-*•>–—]+\s+|=>\s*|\(?\d{1,2}[.)]\s+|(?:new |rewritten )?(?:caption|rewrite|answer|output)\s*:\s*)", re.I
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`", "**": "**", "*": "*"}


def clean(raw: str) -> str:
    """The caption in a completion: its first line, without quotes around, a bullet or ``Caption:``, an end marker.

    Thoughts of models that think aloud (``<think>``) are left out.
    """
    text = _MARKS.sub("\n", _THOUGHTS.sub("", raw))
    text = next((line for line in text.splitlines() if line.strip()), "")
    text = " ".join(text.split())
    before = None
    while text != before:
        before = text
        text = _IN_FRONT.sub("", text)
        for opening, closing in _QUOTES.items():
            inner = text[len(opening) : -len(closing)]
            if len(text) >= len(opening + closing) and text == opening + inner + closing and opening not in inner:
                text = inner.strip()
    return text.strip(" ,;:")


def judge(options: GateOptions, items: Sequence[tuple[str, Sequence[str]]]) -> list[list[Verdict]]:
    """A verdict for each completion; what the picture says is asked by `_rewrite_pictures.judge_with_pictures`.

    Args:
        items: captions with what the model wrote for each; of equal rewrites of one caption the first counts.
    """
    from data_tools._english.same_form import same_form
    from data_tools._rewrite_form import form_problem

    cleaned = [(caption, [clean(raw) for raw in completions]) for caption, completions in items]
    rejected = {
        (caption, text): form_problem(options, caption, text) for caption, texts in cleaned for text in set(texts)
    }
    rejected |= _content_problems(options, [pair for pair, (reason, _) in rejected.items() if not reason])
    verdicts = []
    for caption, texts in cleaned:
        accepted: set[str] = set()
        own = [Verdict(text, *rejected[caption, text]) for text in texts]
        for row, verdict in enumerate(own):
            if not verdict.reason and same_form(verdict.text) in accepted and "duplicate" not in options.off:
                own[row] = Verdict(verdict.text, "duplicate")
            elif not verdict.reason:
                accepted.add(same_form(verdict.text))
        verdicts.append(own)
    return verdicts


def _content_problems(options: GateOptions, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, str]]:
    """(caption, rewrite) -> (rule, what it stumbled over), ("", "") if there is none."""
    if options.min_similarity is None and options.off and set(options.off) >= CONTENT:
        return {}
    from data_tools import _rewrite_similarity as similarity
    from data_tools._english.facts import analyse
    from data_tools._rewrite_content import Comparison, unmatched_words

    def first(problems: Iterator[tuple[str, str]]) -> tuple[str, str]:
        return next((problem for problem in problems if problem[0] not in options.off), ("", ""))

    found: dict[tuple[str, str], tuple[str, str]] = {}
    if not set(options.off) >= CONTENT:
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        facts = dict(zip(texts, analyse(texts), strict=True))
        compared = {(one, two): Comparison(facts[one], facts[two], options.synonym) for one, two in pairs}
        found = {pair: first(comparison.first_problems()) for pair, comparison in compared.items()}
        left = [(one, two) for (one, two), (reason, _) in found.items() if not reason]
        similarity.prepare(word for one, two in left for word in unmatched_words(facts[one], facts[two]))
        found |= {pair: first(compared[pair].other_problems()) for pair in left}
    if options.min_similarity is not None and "dissimilar" not in options.off:
        left = [pair for pair in pairs if not found.get(pair, ("", ""))[0]]
        cosines = similarity.sentence_cosines(left)
        for pair, cosine in zip(left, cosines, strict=True):
            if cosine < options.min_similarity:
                found[pair] = "dissimilar", f"{cosine:.2f}"
    return found
