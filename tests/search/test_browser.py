"""The page of ``vlp search --serve`` as people use it, in a real browser: type, see, click, add, drop, go back."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlp.search.directions import moved, residual
from vlp.search.searcher import Searcher

IDLE = "!document.querySelector('#results.busy') && document.querySelector('#status').textContent !== ''"
SHOWN = "[...document.querySelectorAll('#results img')].map(i => Number(i.src.split('/').pop()))"
STATUS = "document.querySelector('#status').textContent"
ERROR = "document.querySelector('#error').hidden ? '' : document.querySelector('#error').textContent"


@pytest.fixture
def page(browser: Any, server: Any) -> Any:
    browser.complaints.clear()
    browser.open(server.address)
    browser.wait(f"{IDLE} && {SHOWN}.length")
    return browser


def wanted(searcher: Searcher, query_D: np.ndarray, leave_out: int | None = None) -> list[int]:
    return [hit.row.number for hit in searcher.find(query_D, "pictures", 24, leave_out)]


def ask(page: Any, text: str) -> None:
    page.run("document.querySelector('#text').focus()")
    page.type(text)
    page.press("Enter", "\r")
    page.wait(f"{IDLE} && {STATUS}.includes(' ms')")


def add(page: Any, term: str) -> None:
    page.run("document.querySelector('#term').focus()")
    page.type(term)
    before = page.run(f"{SHOWN}.join()")
    page.press("Enter", "\r")
    page.wait(f"{IDLE} && {SHOWN}.join() !== {json.dumps(before)}")


def test_at_first_some_pictures_are_there_and_no_complaint(page: Any) -> None:
    assert len(page.run(SHOWN)) == 24
    assert page.run(STATUS) == "Some of the 43 pictures: click one to search by it"
    page.wait(
        "[...document.images].filter(i => i.src && i.getBoundingClientRect().top < innerHeight).every(i => i.complete)"
    )
    assert page.run("[...document.querySelectorAll('#results img')].slice(0, 6).every(i => i.naturalWidth === 40)")
    assert page.run("document.querySelector('#results img').classList.contains('tiny')")
    assert page.complaints == []


def test_a_text_finds_what_the_searcher_finds_and_the_latency_is_said(page: Any, searcher: Searcher) -> None:
    ask(page, "a red dog")
    assert page.run(SHOWN) == wanted(searcher, searcher.texts(["a red dog"])[0])
    assert page.run(f"/^24 of 43 pictures in [0-9.]+ ms$/.test({STATUS})")
    scores = page.run("[...document.querySelectorAll('.score')].map(e => Number(e.textContent))")
    assert scores == sorted(scores, reverse=True)
    assert page.run("document.querySelector('.terms label#strength').hidden")


def test_a_click_on_a_picture_searches_by_it_and_back_goes_back(page: Any, searcher: Searcher) -> None:
    ask(page, "a red dog")
    first = page.run(SHOWN)
    page.click("#results li:nth-child(3) button")
    page.wait(f"{IDLE} && {SHOWN}[0] !== {first[0]}")
    assert page.run(SHOWN) == wanted(searcher, searcher.collection.of("pictures").feature(first[2]), first[2])
    assert not page.run("document.querySelector('#like').hidden")
    assert page.run("document.querySelector('#text').hidden")
    assert page.run("document.activeElement.id") == "status", "who reads by ear is told"
    page.run("history.back()")
    page.wait(f"{IDLE} && {SHOWN}[0] === {first[0]}")
    assert page.run("document.querySelector('#text').value") == "a red dog"


def test_terms_are_chips_and_move_the_query(page: Any, searcher: Searcher) -> None:
    ask(page, "a dog")
    add(page, "red")
    add(page, "- blue")
    chips = page.run("[...document.querySelectorAll('#chips li')].map(e => e.firstChild.textContent)")
    assert chips == ["+ red", "− blue"]
    dog, red, blue = searcher.texts(["a dog", "red", "blue"])
    assert page.run(SHOWN) == wanted(searcher, moved(dog, residual(red[None], blue[None]), 1.0))
    page.run(
        "(() => {const w = document.querySelector('#weight'); w.value = 0.5; w.dispatchEvent(new Event('change'))})()"
    )
    page.wait(IDLE)
    assert page.run(SHOWN) == wanted(searcher, moved(dog, residual(red[None], blue[None]), 0.5))
    page.click("#chips .remove")
    page.click("#chips .remove")
    page.wait(f"{IDLE} && !document.querySelector('#chips li')")
    assert page.run(SHOWN) == wanted(searcher, dog)


def test_captions_of_a_picture_and_a_click_on_one(page: Any, searcher: Searcher) -> None:
    page.click("#results li:first-child button")
    page.wait(f"{IDLE} && {STATUS}.includes(' ms')")
    page.click("label:has([value=texts])")
    page.wait(f"{IDLE} && document.querySelector('#results.as-texts li')")
    shown = page.run("[...document.querySelectorAll('#results .told span:last-child')].map(e => e.textContent)")
    feature_D = searcher.collection.of("pictures").feature(0)
    assert shown == [hit.row.text for hit in searcher.find(feature_D, "texts", 24)]
    page.click("#more")
    page.wait(f"{IDLE} && document.querySelectorAll('#results li').length === 40")
    assert "<b onclick=alert(1)>bold & 'quoted'</b>" in page.run("document.querySelector('#results').innerText")
    assert page.run("document.querySelector('#results b') === null")
    page.click("#results li:nth-child(2) button")
    page.wait(f"{IDLE} && document.querySelector('#results.as-pictures li')")
    assert page.run("document.querySelector('#text').value") == shown[1]


def test_a_picture_of_ones_own(page: Any, searcher: Searcher, encoded: Callable[[int], bytes], tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(encoded(7))
    page.choose_file("#file", tmp_path / "mine.png")
    page.wait(f"{IDLE} && {STATUS}.includes(' ms')")
    assert page.run(SHOWN) == wanted(searcher, searcher.picture(encoded(7), "mine"))
    assert "mine.png" in page.run("document.querySelector('#like').textContent")
    page.wait("document.querySelector('#like img').naturalWidth === 40")
    assert page.complaints == []


def test_a_picture_is_dropped_anywhere(
    page: Any, searcher: Searcher, encoded: Callable[[int], bytes], tmp_path: Path
) -> None:
    (tmp_path / "dropped.png").write_bytes(encoded(9))
    page.drop_file(tmp_path / "dropped.png", 300, 400)
    page.wait(f"{IDLE} && {STATUS}.includes(' ms')")
    assert page.run(SHOWN) == wanted(searcher, searcher.picture(encoded(9), "dropped"))
    assert page.run("document.querySelector('#drop').hidden")


def test_what_is_wrong_is_a_sentence(page: Any, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    page.choose_file("#file", tmp_path / "x.png")
    page.wait(f"({ERROR}).includes('The picture cannot be used')")
    page.run("document.querySelector('#text').focus()")
    page.type("word " * 300)
    page.press("Enter", "\r")
    page.wait(f"({ERROR}).includes('1,000 are the most')")
    assert page.run("document.querySelector('#error').getAttribute('role')") == "alert"
    page.run("document.querySelector('#text').value = ''")
    ask(page, "word " * 40)
    assert page.run(ERROR) == ""
    assert "reads no more than 8 tokens" in page.run(STATUS)


def test_the_keyboard_is_enough(page: Any) -> None:
    """From the text on: search, by picture, term, add, take away, pictures, the first result."""
    page.run("document.querySelector('#text').focus()")
    seen = []
    for _ in range(7):
        page.press("Tab")
        seen.append(page.run("(e => e.id || e.name || e.className)(document.activeElement)"))
    assert seen == ["main", "choose", "term", "plus", "minus", "find", "hit"]
    first = page.run(SHOWN)[0]
    page.press("Enter", "\r")
    page.wait(f"{IDLE} && {STATUS}.includes(' ms')")
    assert first not in page.run(SHOWN)


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_narrow_windows_and_follows_the_theme(page: Any, width: int, theme: str) -> None:
    page.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    assert page.run("document.documentElement.scrollWidth") <= width
    ground = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (ground < 60) == (theme == "dark")
    page.send("Emulation.clearDeviceMetricsOverride")


def test_ctrl_c_ends_it_cleanly_and_the_page_says_so(page: Any, server: Any) -> None:
    server.process.send_signal(signal.SIGINT)
    _, said = server.process.communicate(timeout=20)
    assert server.process.returncode == 0
    assert "Traceback" not in said
    page.run("document.querySelector('#text').focus()")
    page.type("a dog")
    page.press("Enter", "\r")
    page.wait(f"({ERROR}).includes('does not answer')")
