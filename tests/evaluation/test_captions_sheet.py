"""The page of a sheet of captions: what it shows, that texts stay texts, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools._captions import sheet as tool
from data_tools._stats_figures import Spread
from data_tools._stats_sheet import thumbnail
from vlp import cli
from vlp.evaluation.report.captions_sheet import Sheet, write_page

NASTY = "</p><script>document.title='ran'</script>"


def sample(key: str, caption: str, told: str) -> dict[str, Any]:
    picture = thumbnail(Image.new("RGB", (200, 100), "red"))
    return {"key": key, "shard": "00000.tar", "thumbnail": picture, "width": 200, "height": 100,
            "caption": caption, "told": told}  # fmt: skip


def content(**changes: Any) -> dict[str, Any]:
    words = Spread()
    for number in (2, 3, 3, 9):
        words.add(number)
    return {
        "kind": tool.KIND, "version": tool.VERSION, "name": "stamps: captions", "shards": 2, "samples": 5,
        "captions": 4,
        "origin": {"tool": "vlp caption", "model": f"runs/{NASTY}", "options": {"beams": 3, "prompt": ""}},
        "distinct": 3, "most_frequent": [{"caption": f"a dog {NASTY}", "number": 2}], "words": words.to_json(),
        "left_out": {"truncated picture": {"number": 1, "examples": [f"00000.tar: {NASTY}"]}},
        "sheet": [
            sample("a", "a red bus", "a blue bus"), sample(NASTY, NASTY, f"{NASTY} {NASTY}"), sample("c", "", "x"),
        ],
    } | changes  # fmt: skip


def test_it_shows_both_captions_with_what_differs_marked(tmp_path: Path) -> None:
    page = write_page(content(), tmp_path / "c.html").read_text(encoding="utf-8")
    assert '<p class="told" dir="auto">a <mark>blue</mark> bus</p>' in page
    assert '<p class="had" dir="auto">a <mark>red</mark> bus</p>' in page
    assert page.count("no text of its own") == 1
    assert "told 4 captions" in page
    assert "2 shards" in page


def test_key_numbers_and_the_most_frequent() -> None:
    sheet = Sheet(content())
    assert [tile.value for tile in sheet.tiles()] == ["80.0 %", "3", "4.2"]
    assert [(bar.number, bar.share) for bar in sheet.most_frequent()] == [(2, 0.5)]
    assert [(bar.label, bar.share) for bar in sheet.left_out()] == [("truncated picture", 0.2)]
    assert ("beams", "3") in sheet.facts()


def test_texts_stay_texts(tmp_path: Path) -> None:
    page = write_page(content(), tmp_path / "c.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6


def test_vlp_report_shows_it_and_refuses_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps(content()))
    cli.main(["report", str(file)])
    assert capsys.readouterr().out == f"{tmp_path / 'c.html'}\n"
    for changes in ({"sheet": [{"key": "a"}]}, {"version": 0}, {"words": 3}):
        file.write_text(json.dumps(content(**changes)))
        with pytest.raises(SystemExit, match="2"):
            cli.main(["report", str(file)])
        assert f"write it anew with vlp caption MODEL SHARDS --json {file}" in capsys.readouterr().err
