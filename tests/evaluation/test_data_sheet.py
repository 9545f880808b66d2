"""The page of a data sheet: what it shows, that it stands alone, and where it appears."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools.stats import stats
from vlp import cli
from vlp.data.write import ShardWriter, encode_image
from vlp.evaluation.report import write_report
from vlp.evaluation.report.data_sheet import Sheet, write_page
from vlp.evaluation.report.figures import histogram
from vlp.evaluation.report.sheets import read_sheet, write_report_of_sheet
from vlp.types import UserError

NASTY = '</script><img src="https://example.org/x.png"> & "quoted"'
SECTIONS = ["Samples", "Pictures", "Captions", "Duplicates", "Languages", "Fields and layers", "Defects"]


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Nine samples in two shards: a caption to be escaped, twins, a broken picture."""
    directory = tmp_path_factory.mktemp("set") / "data"
    with ShardWriter(directory, 6) as shards:
        for number in range(8):
            picture = encode_image(Image.linear_gradient("L").resize((20 + 30 * (number // 2), 40)).convert("RGB"))
            shards.write(picture, "png", NASTY if number == 0 else f"a picture {number % 4}", **{NASTY: number})
        shards.write(b"broken", "png", "broken")
    return json.loads(json.dumps(stats([str(directory)], workers=1)))


@pytest.fixture(scope="module")
def page(sheet: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(sheet, tmp_path_factory.mktemp("page") / "sheet.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of headings and cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._tag = tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.setdefault(self._tag, []).append(data.strip())


def test_the_sections_stand_in_order(page: str) -> None:
    expected = SECTIONS if 'id="sheet-languages"' in page else [name for name in SECTIONS if name != "Languages"]
    assert Elements(page).texts["h2"] == expected


def test_the_page_stands_alone_and_captions_are_text(page: str) -> None:
    elements = Elements(page)
    references = [a[key] for _, a in elements.tags for key in ("src", "href", "srcset", "data", "action") if key in a]
    assert len(references) > 10
    assert [r for r in references if r is None or not r.startswith(("data:", "#"))] == []
    assert "http" not in re.sub(r"https://example\.org/x\.png", "", page)  # our own caption, as text
    assert not [tag for tag, _ in elements.tags if tag in ("script", "link", "iframe") and tag != "link"]
    assert NASTY in elements.texts["figcaption"]
    assert all(a.get("href") == "data:," for tag, a in elements.tags if tag == "link")


def test_figures_are_those_of_the_sheet(page: str) -> None:
    cells = Elements(page).texts
    assert "9" in cells["dd"]
    assert "1.49 kB" not in page
    assert "PNG" in cells["th"]
    assert re.search(r"a picture 1</th><td class=\"number\">2</td><td class=\"number\">22.2 %</td>", page)
    assert re.search(r"undecodable picture</th><td class=\"number\">1</td><td><code>.*00001.tar: 000010002", page)
    assert re.search(r"the bytes of another</th><td class=\"number\">8</td><td class=\"number\">100.0 %</td>", page)
    assert page.count('<div class="sheet">') == 2  # the samples, and the eight that look alike
    assert "8 pictures, the first 6" in page
    assert "all 40" in page  # every height


def test_the_command_shows_a_sheet_and_a_run_shows_its_own(sheet: dict, page: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(sheet), encoding="utf-8")
    cli.main(["report", str(path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "data.html")
    assert (tmp_path / "data.html").read_text(encoding="utf-8") == page
    (tmp_path / "metrics.jsonl").touch()
    run = write_report(tmp_path).read_text(encoding="utf-8")
    assert "The data sheet of data" in run
    assert [name for name in Elements(run).texts["h3"] if name in SECTIONS] == Elements(page).texts["h2"]
    path.write_text("{}")
    assert "The data sheet cannot be shown" in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_sheet_without_pictures_or_optional_counts_is_shown(sheet: dict[str, Any], tmp_path: Path) -> None:
    without = sheet | {"sheet": [], "thumbnails": {}, "languages": "not counted: no detector"}
    without["duplicates"] = {"bytes": sheet["duplicates"]["bytes"] | {"groups": []}, "look": "not counted: no hash"}
    page = write_page(without, tmp_path / "x.html").read_text(encoding="utf-8")
    assert "not counted: no detector" in page
    assert "not counted: no hash" in page
    assert "<img" not in page
    assert Elements(page).texts["h2"] == [n for n in SECTIONS if n not in ("Samples", "Languages")]
    anchors = re.findall(r'<a href="#([^"]+)"', page)
    assert [anchor for anchor in anchors if f'id="{anchor}"' not in page] == []


def test_what_is_no_sheet_is_refused(sheet: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match="there is no file"):
        read_sheet(path, Sheet)
    for content, sentence in (
        ("{", "is no sheet"),
        ("[]", "is no sheet"),
        (json.dumps(sheet | {"version": 99}), "version"),
        (json.dumps({"kind": Sheet.KIND, "version": Sheet.VERSION}), "damaged"),
        (json.dumps(sheet | {"captions": None}), "damaged"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=sentence):
            write_report_of_sheet(path)
    foreign = sheet | {"thumbnails": dict.fromkeys(sheet["thumbnails"], "https://example.org/x.png")}
    path.write_text(json.dumps(foreign))
    with pytest.raises(UserError, match="no picture in the file itself"):
        write_report_of_sheet(path)
    path.write_text(json.dumps(sheet))
    with pytest.raises(UserError, match="name a file"):
        write_report_of_sheet(path, tmp_path)


def test_bars_stand_in_proportion() -> None:
    drawing = histogram("Words", [(1, 2, 10), (2, 3, 5), (3, 4, 0)], "words")
    heights = [float(h) for h in re.findall(r'class="column c0"[^>]*height="([\d.]+)"', drawing)]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    assert heights[2] == 0
    assert "2 words: 5 (33.3 %)" in drawing
    assert re.findall(r"<text [^>]*>(\d)</text>", drawing) == ["1", "2", "3"]
    edges = histogram("Bytes", [(100, 150, 1), (150, 200, 3)], "bytes")
    assert "150 to 200 bytes: 3 (75.0 %)" in edges
