"""The page of a sheet of rewrites: what it shows, that texts of a model stay texts, and that it stands alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools import _rewrite_sheet
from data_tools._stats_sheet import thumbnail
from vlp import cli
from vlp.evaluation.report.rewrite_sheet import Sheet, write_page

NASTY = "</span><script>document.title='ran'</script>"
BREAKING = "\" onload=\"document.title='ran'\" x='"
SPREAD = {
    "number": 4, "mean": 2.5, "min": 1, "max": 4, "histogram": [[1, 2, 1], [2, 3, 1], [3, 4, 1], [4, 5, 1]],
    "quantiles": {"1 %": 1, "5 %": 1, "25 %": 1, "50 %": 2, "75 %": 3, "95 %": 4, "99 %": 4},
}  # fmt: skip


def sample(key: str, original: str, accepted: list[str], rejected: list[tuple[str, str, str]]) -> dict[str, Any]:
    return {
        "key": key, "shard": "00000.tar", "thumbnail": thumbnail(Image.new("RGB", (200, 100), "red")), "width": 200,
        "height": 100, "original": original, "accepted": accepted,
        "rejected": [{"text": text, "reason": reason, "detail": detail} for text, reason, detail in rejected],
    }  # fmt: skip


def content() -> dict[str, Any]:
    rules = [("empty", "nothing is left", 1, False), ("lost_colour", "a colour is gone", 2, False)]
    return {
        "kind": _rewrite_sheet.KIND, "version": _rewrite_sheet.VERSION, "name": "stamps: rewrites", "shards": 1,
        "origin": {"engine": "server", "model": f"small {NASTY}", "sampling": {"stop": ["\n"]}, "number": 2},
        "prompt": {"text": f"say it otherwise {NASTY}", "messages": [], "pairs": [["a", NASTY]], "draw": 1,
                   "example": f"a => {NASTY}"},
        "gate": {"min_words": 2, "clip_model": None}, "samples": 5, "without_caption": 1, "captions": 3, "texts": 8,
        "accepted": 5, "unanswered": 0, "left_out": {"no caption": {"number": 1, "examples": [f"d{BREAKING}"]}},
        "accepted_a_sample": [[0, 1, 1], [1, 2, 2], [2, 3, 1]],
        "rules": [{"name": name, "rejects": what, "texts": n, "off": off}
                  for name, what, n, off in [*rules, ("list", "several", 0, True), ("dialogue", "talk", 0, False)]],
        "tokens": {"read": 1200, "written": 300}, "words": {"before": SPREAD, "after": SPREAD},
        "vocabulary": {"originals": 10, "with_rewrites": 15, "most_frequent_new": [["felines", 3], [NASTY, 1]]},
        "sheet": [
            sample("a", "A red bus.", ["a Bus painted in red, A red bus"], [("a blue bus", "lost_colour", "red")]),
            sample(f"b{BREAKING}", f"{NASTY} {BREAKING}", [NASTY, BREAKING], [(f"no {NASTY}", "dialogue", BREAKING)]),
            sample("c", "a dog", [], [("", "empty", "")]) | {"thumbnail": None},
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


def test_figures_and_rules_are_those_of_the_sheet(page: str) -> None:
    assert "62.5 %" in page  # 5 of 8 texts
    assert "75.0 %" in page  # 3 of 4 samples with a caption
    assert "× 1.50" in page
    assert re.search(r'lost colour <span class="note">a colour is gone</span></th><td class="number">2</td>', page)
    assert re.search(r'<td class="number">25.0 %</td><td class="bar">.*width:25.00%', page)
    assert "still to be written" not in page
    assert "Rejected nothing: dialogue." in page
    assert "Switched off: list." in page
    assert '<th scope="row">no caption</th><td class="number">1</td>' in page
    assert "felines <b>3</b>" in page
    assert re.findall(r'<a href="#([^"]+)"', page) == re.findall(r'<section id="([^"]+)"', page)


def test_words_that_the_original_lacks_are_marked(page: str) -> None:
    assert "a Bus <mark>painted in</mark> red, A red bus" in page
    assert '<mark>blue</mark> bus</span> <span class="why">lost colour: <b dir="auto">red</b>' in page
    assert "<i>no text</i>" in page
    assert "no picture" in page


def test_texts_of_the_model_stay_texts(page: str) -> None:
    elements = Elements(page)
    assert not [tag for tag, _ in elements.tags if tag in ("script", "iframe", "object", "base")]
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert page.count("&lt;/span&gt;&lt;") + page.count("&lt;/<mark>span</mark>&gt;&lt;") >= 6


def test_the_page_needs_nothing_else(page: str) -> None:
    elements = Elements(page)
    references = [a[key] for _, a in elements.tags for key in ("src", "href", "srcset", "action") if key in a]
    assert len(references) == 7  # two pictures, four places in the page, the empty icon
    assert [r for r in references if r is None or not r.startswith(("data:", "#"))] == []
    assert "http" not in page


def test_the_command_finds_the_page_for_the_kind(page: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert (_rewrite_sheet.KIND, _rewrite_sheet.VERSION) == (Sheet.KIND, Sheet.VERSION)
    path = tmp_path / "rewrites.json"
    path.write_text(json.dumps(content()), encoding="utf-8")
    cli.main(["report", str(path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "rewrites.html")
    assert (tmp_path / "rewrites.html").read_text(encoding="utf-8") == page


UNKNOWN = sample("a", "A red bus.", [], [("a blue bus", "a_rule_of_tomorrow", "")])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"kind": "vlp other sheet"}, "no page; known: vlp captions sheet, vlp data sheet, "),
        ({"kind": 3}, "is no sheet"),
        ({"version": 9}, "no rewrite sheet of this version"),
        ({"tokens": None}, "damaged"),
        ({"vocabulary": {"originals": 0}}, "damaged"),
        ({"accepted_a_sample": []}, "damaged"),
        ({"samples": "5"}, "damaged"),
        ({"words": {"before": SPREAD | {"min": None, "quantiles": {}}, "after": None}}, "damaged"),
        ({"words": {"before": SPREAD | {"histogram": [[1, 2, "many"]]}, "after": None}}, "damaged"),
        ({"origin": []}, "damaged"),
        ({"sheet": [{"key": "a"}]}, "damaged"),
        ({"sheet": [UNKNOWN]}, "damaged"),
        ({"sheet": [content()["sheet"][0] | {"thumbnail": "https://example.org/x.png"}]}, "no picture in the file"),
    ],
)
def test_a_damaged_sheet_is_told_in_one_sentence_with_the_cure(
    changed: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "rewrites.json"
    path.write_text(json.dumps(content() | changed), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", str(path)])
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert str(path) in said
    assert sentence in said
    if "kind" not in changed:
        assert said.endswith(f"write it anew with vlp data rewrite SHARDS --json {path}\n")
    assert not path.with_suffix(".html").exists()


def test_texts_that_are_not_there_yet_are_counted(tmp_path: Path) -> None:
    page = write_page(content() | {"unanswered": 1}, tmp_path / "x.html").read_text(encoding="utf-8")
    assert "Texts still to be written: 1;" in page


def test_a_sheet_of_nothing_is_shown(tmp_path: Path) -> None:
    nothing = content() | {"sheet": [], "texts": 0, "accepted": 0, "samples": 0, "without_caption": 0}
    nothing |= {"words": {"before": None, "after": None}, "tokens": {"read": 0, "written": 0}}
    nothing |= {"vocabulary": {"originals": 0, "with_rewrites": 0, "most_frequent_new": []}}
    nothing |= {"accepted_a_sample": [[0, 1, 0], [1, 2, 0]], "prompt": content()["prompt"] | {"example": None}}
    page = write_page(nothing, tmp_path / "x.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert [a for a in re.findall(r'<a href="#([^"]+)"', page) if f'id="{a}"' not in page] == []


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_nothing_of_the_model_runs_and_the_filter_hides_samples(page: str, tmp_path: Path) -> None:
    look = (
        "<script>document.getElementById('fate-2').checked = true;"
        "document.body.dataset.shown = [...document.querySelectorAll('.rewritten')]"
        ".map(e => getComputedStyle(e).display).join(' ')</script></body>"
    )
    (tmp_path / "page.html").write_text(page.replace("</body>", look), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options = [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "page.html").as_uri()]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=True)
    assert "<title>stamps: rewrites" in done.stdout
    assert 'data-shown="grid none none"' in done.stdout
