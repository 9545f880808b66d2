"""The page of a sheet of hard captions: what it shows, that texts of a model stay texts, and that it stands alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools._negatives import sheet as made
from data_tools._stats_sheet import thumbnail
from vlp import cli
from vlp.evaluation.report.negatives_sheet import Sheet, write_page

NASTY = "</span><script>document.title='ran'</script>"
BREAKING = "\" onload=\"document.title='ran'\" x='"


def accuracy(value: float, loud: bool = False) -> dict[str, Any]:
    return {"accuracy": value, "low": value - 0.1, "high": value + 0.1, "pairs": 40, "captions": 30, "loud": loud}


def sample(key: str, caption: str, *texts: tuple[str, str, str, str]) -> dict[str, Any]:
    fields = ("text", "kind", "reason", "detail")
    return {
        "key": key, "shard": "00000.tar", "thumbnail": thumbnail(Image.new("RGB", (200, 100), "red")), "width": 200,
        "height": 100, "caption": caption, "texts": [dict(zip(fields, text, strict=True)) for text in texts],
    }  # fmt: skip


def content() -> dict[str, Any]:
    rules = [("identical", "the caption again", 2), ("paraphrase", "in other words", 1), ("repeated", "there", 0)]
    return {
        "kind": made.KIND, "version": made.VERSION, "name": "stamps: negatives", "shards": 1, "samples": 6,
        "captions": 5, "different_captions": 4, "texts": 8, "accepted": 5, "unanswered": 0,
        "origin": {"generator": "language_model", "model": f"small {NASTY}", "sampling": {"stop": ["\n"]}},
        "asked": {"text": f"change it {NASTY}", "messages": [], "pairs": [["a", NASTY]], "draw": 1, "example": "a =>"},
        "without_negative": {"all changes rejected": {"number": 1, "examples": [f"d{BREAKING}"]}},
        "left_out": {"no caption": {"number": 1, "examples": ["00000.tar: e"]}},
        "accepted_a_caption": [[0, 1, 1], [1, 2, 3], [2, 3, 1]],
        "rules": [{"name": name, "rejects": what, "texts": number} for name, what, number in rules],
        "kinds": [
            {"name": "swap nouns", "accepted": 4, "rejected": 1, "blind": accuracy(0.8, loud=True)},
            {"name": f"deny {NASTY}", "accepted": 1, "rejected": 2, "blind": None},
        ],
        "blind": {"missing": "", "overall": accuracy(0.55), "telling": [["not", 2.4], [NASTY, -0.5]]},
        "sheet": [
            sample("a", "a dog chases a boy.", ("a boy chases a dog.", "swap nouns", "", ""),
                   ("A dog chases a boy", "swap nouns", "identical", "")),
            sample(f"b{BREAKING}", f"{NASTY} {BREAKING}", (f"no {NASTY}", f"deny {NASTY}", "paraphrase", BREAKING)),
            sample("c", "a red bus", ("a blue bus", "replace colour", "", "")) | {"thumbnail": None},
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(content(), tmp_path_factory.mktemp("page") / "sheet.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_figures_kinds_and_rules_are_those_of_the_sheet(page: str) -> None:
    assert "62.5 %" in page, "5 of 8 texts"
    assert "80.0 %" in page, "4 of 5 captions"
    assert "<dd>55.0 %</dd>" in page, "the blind test"
    assert re.search(r"swap nouns <span class=\"why\">told apart without the picture</span></th>", page)
    assert page.count("told apart without the picture</span>") == 1
    assert re.search(r'paraphrase <span class="note">in other words</span></th><td class="number">1</td>', page)
    assert "Rejected nothing: repeated." in page
    assert '<th scope="row">no caption</th><td class="number">1</td>' in page
    assert '<span dir="auto" class="says-false">not <b>+2.40</b></span>' in page
    assert "still to be written" not in page
    assert re.findall(r'<a href="#([^"]+)"', page) == re.findall(r'<section id="([^"]+)"', page)


def test_words_that_changed_their_place_or_are_new_are_marked(page: str) -> None:
    assert 'a <mark>blue</mark> bus</span> <span class="kind">replace colour</span>' in page
    assert "a <mark>boy</mark> chases a <mark>dog</mark>.</span>" in page
    assert 'A dog chases a boy</span> <span class="why">identical</span>' in page, "case and stops are not marked"
    assert "no picture" in page


def test_texts_of_the_model_stay_texts_and_the_page_needs_nothing_else(page: str) -> None:
    elements = Elements(page)
    assert not [tag for tag, _ in elements.tags if tag in ("script", "iframe", "object", "base")]
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    references = [a[key] for _, a in elements.tags for key in ("src", "href", "srcset", "action") if key in a]
    assert len(references) == 7, "two pictures, four places in the page, the empty icon"
    assert [r for r in references if r is None or not r.startswith(("data:", "#"))] == []
    assert "http" not in page


def test_without_a_blind_test_or_a_model_their_parts_are_left_out(tmp_path: Path) -> None:
    blind = {"missing": "the blind test needs scikit-learn", "overall": None, "telling": []}
    kinds = [kind | {"blind": None} for kind in content()["kinds"]]
    other = content() | {
        "blind": blind,
        "kinds": kinds,
        "asked": None,
        "origin": {"generator": "swap"},
        "unanswered": 2,
    }
    page = write_page(other, tmp_path / "x.html").read_text(encoding="utf-8")
    assert '<p class="missing">the blind test needs scikit-learn</p>' in page
    assert "pairs tested" not in page
    assert "The template" not in page
    assert "changed by the generator swap" in page
    assert "Texts still to be written: 2;" in page


def test_the_command_finds_the_page_for_the_kind(page: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert (made.KIND, made.VERSION) == (Sheet.KIND, Sheet.VERSION)
    path = tmp_path / "hard.json"
    path.write_text(json.dumps(content()), encoding="utf-8")
    cli.main(["report", str(path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "hard.html")
    assert (tmp_path / "hard.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"version": 9}, "no negatives sheet of this version"),
        ({"blind": None}, "damaged"),
        ({"kinds": [{"name": "swap"}]}, "damaged"),
        ({"origin": []}, "damaged"),
        ({"sheet": [sample("a", "x", ("y", "k", "a_rule_of_tomorrow", ""))]}, "damaged"),
        ({"sheet": [content()["sheet"][0] | {"thumbnail": "https://example.org/x.png"}]}, "no picture in the file"),
    ],
)
def test_a_damaged_sheet_is_told_in_one_sentence_with_the_cure(
    changed: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "hard.json"
    path.write_text(json.dumps(content() | changed), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", str(path)])
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert sentence in said
    assert said.endswith(f"write it anew with vlp data negatives SHARDS --json {path}\n")
    assert not path.with_suffix(".html").exists()
