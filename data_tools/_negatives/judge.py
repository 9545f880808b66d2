"""Which hard captions may be used, and why the others may not: the rules in the order in which they are asked.

They know English words by lists and need no model, so they are the same for every generator. What they cannot know is
the picture: a caption that is true by chance passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_tools._english.same_form import same_form
from data_tools._negatives.base import Captioned, Negative
from data_tools._negatives.grammar import mistake
from data_tools._negatives.paraphrase import same_meaning, says_less

REASONS = {
    "empty": "no letter, figure or symbol is left",
    "identical": "the caption but for case, punctuation, articles",
    "other_caption": "another true caption of the picture, or one that says the same or less",
    "says_less": "a part of the caption or a more general word, so it is true as well",
    "paraphrase": "the caption in other words or in another order: `A and B` for `B and A`, `B right of A` for "
    "`A left of B`, synonyms",
    "ungrammatical": "a mistake that the caption does not have: a and an, one and many, words twice, broken spaces",
    "repeated": "an accepted one of the same caption but for case, punctuation, articles",
}
"""Name of a rule -> what it rejects, in the order in which they are asked."""


@dataclass(frozen=True)
class Verdict:
    """What became of one hard caption: the rule that rejects it ("": accepted), and what the rule stumbled over."""

    text: str
    kind: str
    reason: str = ""
    detail: str = ""


def judge(item: Captioned, negatives: Sequence[Negative]) -> list[Verdict]:
    """A verdict for each of the ``negatives`` of one caption, in their order; of equal ones the first counts."""
    accepted: set[str] = set()
    verdicts = []
    for negative in negatives:
        text = " ".join(negative.text.split())
        reason, detail = _problem(item, text)
        if not reason and _form(text) in accepted:
            reason = "repeated"
        if not reason:
            accepted.add(_form(text))
        verdicts.append(Verdict(text, negative.kind, reason, detail))
    return verdicts


def _problem(item: Captioned, text: str) -> tuple[str, str]:
    """The first rule that rejects, and what it stumbled over; two empty strings if none does."""
    if not any(letter.isprintable() and not letter.isspace() for letter in text) or not _form(text):
        return "empty", ""
    if _form(text) == _form(item.caption):
        return "identical", ""
    for other in item.others:
        if _form(text) == _form(other) or says_less(other, text) or same_meaning(other, text):
            return "other_caption", other
    if detail := says_less(item.caption, text):
        return "says_less", detail
    if detail := same_meaning(item.caption, text):
        return "paraphrase", detail
    if detail := mistake(item.caption, text):
        return "ungrammatical", detail
    return "", ""


def _form(text: str) -> str:
    """Of texts without a word, such as emoji alone, the symbols."""
    return same_form(text) or "".join(text.split()).strip(".,;:!?'\"-")
