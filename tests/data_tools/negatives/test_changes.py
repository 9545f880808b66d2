"""What a text of a language model changes: each rule on a text that breaks it, and the kind of each change."""

from __future__ import annotations

import pytest

from data_tools._negatives.base import Negative
from data_tools._negatives.changes import changes, problem_of_form
from data_tools._negatives.generators.language_model import REASONS
from data_tools._negatives.style import in_style_of

CAPTION = "a man rides a brown horse on the beach"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "empty"),
        ("a man", "too_short"),
        ("a man rides a brown horse on the beach and then he rides it again until the sun goes down", "too_long"),
        ("a man rides a brown horse => a beach", "prompt_echo"),
        ("1. a man rides a horse on the beach", "list"),
        ("can you see a horse on the beach?", "dialogue"),
        ("a man rides a brown лошадь on the beach", "language"),
        ("two dogs play with a red ball on the grass", "another"),
        ("a man rides a brown camel on the beach", ""),
    ],
)
def test_what_is_no_caption_or_another_one_is_rejected_by_its_form(text: str, rule: str) -> None:
    assert problem_of_form(CAPTION, Negative(text, "k"))[0] == rule
    assert not rule or rule in REASONS


def test_half_of_the_words_may_change_and_one_in_any_caption() -> None:
    assert problem_of_form("An otter.", Negative("A beaver.", "k")) == ("", "")
    assert problem_of_form("a kitchen knife", Negative("a wooden spoon", "k")) == ("another", "wooden spoon")
    assert problem_of_form("a red bus stop", Negative("a red coach station", "k"))[0] == "another"
    assert problem_of_form("a red double bus stop", Negative("a red double coach station", "k")) == ("", "")


def test_what_the_engine_would_not_write_is_told_with_its_reason() -> None:
    assert problem_of_form(CAPTION, Negative("", "k", "content filter")) == ("refused", "content filter")


@pytest.mark.parametrize(
    ("caption", "text", "rule", "kind"),
    [
        (CAPTION, "a man rides a brown camel on the beach", "", "object"),
        (CAPTION, "a man rides a white horse on the beach", "", "colour"),
        ("three yellow flowers", "five yellow flowers", "", "number"),
        ("a small wooden boat", "a large wooden boat", "", "attribute"),
        ("a bird above the tree", "a bird below the tree", "", "relation"),
        ("two cats on a sofa", "two cats under a sofa", "", "relation"),
        ("a dog chases a boy", "a boy chases a dog", "", "order"),
        ("a black cat and a white dog", "a white cat and a black dog", "", "order"),
        ("no smoking sign", "smoking sign", "", "negation"),
        ("a person swimming", "a person walking", "", "action"),
        ("a red bus", "a scarlet coach", "rewrite", ""),
        ("a big red bus", "a bus", "left_out", ""),
        ("a white medium-small square", "a white small square", "left_out", ""),
        ("a bus", "a red bus", "added", ""),
        ("a red bus on a road", "a blue car on a road", "several", ""),
        ("a crowned crane", "a crowned animal", "general", ""),
        ("a shortcake", "a cake", "general", ""),
        ("a doctor", "a woman", "general", ""),
        ("a girl in a wheelchair", "a woman in a wheelchair", "", "object"),
    ],
)
def test_a_change_has_a_kind_and_what_may_be_true_has_a_rule(caption: str, text: str, rule: str, kind: str) -> None:
    assert changes([(caption, text)]) == {(caption, text): (rule, kind)}
    assert not rule or rule in REASONS


@pytest.mark.parametrize(
    ("caption", "text", "styled"),
    [
        ("A spoon.", "a knife", "A knife."),
        ("a spoon", "A knife.", "a knife"),
        ("olive", "a lemon", "lemon"),
        ("olive", "another lemon", "another lemon"),
        ("Say cheese!", "say chocolate", "Say chocolate!"),
        ("Less than.", "more than", "More than."),
        ("8 ball", "a 9 ball", "9 ball"),
        ("a spoon", "", ""),
    ],
)
def test_a_text_takes_capitals_articles_and_stops_from_its_caption(caption: str, text: str, styled: str) -> None:
    assert in_style_of(caption, text) == styled
