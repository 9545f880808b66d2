"""What a text that a language model wrote changes of a caption: which rule for such texts it breaks, or its kind.

They read both as the gate of rewrites does: what is lost and what is added. A text that nothing is added to, or
nothing is taken from, may be as true as the caption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from data_tools import _rewrite_similarity as similarity
from data_tools._english.facts import analyse
from data_tools._english.same_form import ARTICLES, folded, words
from data_tools._english.words import HUMANS, RELATIONS, word_set
from data_tools._negatives.base import Negative
from data_tools._rewrite_content import Comparison, unmatched_words
from data_tools._rewrite_form import form_problem
from data_tools._rewrite_gate import GateOptions

Problems = Sequence[tuple[str, str]]  # rules of the gate of rewrites, and what they stumbled over

_FORM = GateOptions(off=("near_copy",), min_words=1, min_length=0.6, max_length=1.8)
_GENERAL = word_set(
    "animal bird fish insect pet creature beast person people human someone fruit fruits vegetable vegetables food "
    "meal drink plant tree flower vehicle machine device tool object thing item toy building place instrument furniture"
)
_PLACES = frozenset(word for phrase in RELATIONS for word in phrase.split()) - word_set(
    "of the to at from side its his her their"
)


def problem_of_form(caption: str, negative: Negative) -> tuple[str, str]:
    """The rule of form that a text breaks, and what it stumbled over; two empty strings if there is none."""
    if negative.problem:
        return "refused", negative.problem
    problem = form_problem(_FORM, caption, negative.text)
    if problem[0]:
        return problem
    theirs, ours = _counted(caption), _counted(negative.text)
    most = max(1, theirs.total() // 2)
    if max((theirs - ours).total(), (ours - theirs).total()) > most:
        return "another", " ".join(ours - theirs)
    return "", ""


def _counted(text: str) -> Counter[str]:
    return Counter(word for word in words(folded(text)) if word not in ARTICLES)


def changes(pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, str]]:
    """(caption, text) -> the rule that the text breaks, "" if it is a change; and then what it changes.

    Raises:
        UserError: spaCy, its model or all-MiniLM-L6-v2 is not installed.
    """
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    facts = dict(zip(texts, analyse(texts), strict=True))
    similarity.prepare(word for one, two in pairs for word in unmatched_words(facts[one], facts[two]))
    return {(one, two): _change(Comparison(facts[one], facts[two], _FORM.synonym), one, two) for one, two in pairs}


def _change(comparison: Comparison, caption: str, text: str) -> tuple[str, str]:
    theirs, ours = _counted(caption), _counted(text)
    gone, new = theirs - ours, ours - theirs
    problems = [*comparison.first_problems(), *comparison.other_problems()]
    lost, added = ([name for name in problems if name[0].startswith(start)] for start in ("lost_", "added_"))
    rules = {rule for rule, _ in problems}
    if not {"lost_negation", "added_negation"}.isdisjoint(rules):
        return "", "negation"
    if "swapped_roles" in rules and not (gone or new):
        return "", "order"
    if lost and added and new:
        return _of_one_thing(lost, added, max(gone.total(), new.total()))
    if "swapped_roles" in rules and new and (added or {*gone, *new} & _PLACES):
        return "", "relation"
    return ("left_out" if lost or not new else "added" if added else "rewrite"), ""


def _of_one_thing(lost: Problems, added: Problems, num_words: int) -> tuple[str, str]:
    if all(_is_general(word, lost) for _, word in added):
        return "general", ""
    kinds = [rule.partition("_")[2].replace("content", "object") for rule, _ in (*lost, *added)]
    return ("several", "") if len(set(kinds)) > 1 and num_words > 1 else ("", kinds[-1])


def _is_general(word: str, lost: Problems) -> bool:
    """Of an added word: an animal for a zebra, a cake for a shortcake, a woman for a doctor."""
    if word in HUMANS and not any(one in HUMANS for _, one in lost):
        return True
    parts = [one for _, one in lost if len(word) > 3 and one != word and (one.startswith(word) or one.endswith(word))]
    return word in _GENERAL or bool(parts)
