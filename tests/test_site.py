"""The site of the documentation builds without network and without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="pip install 'vlp[docs]'")
    place = tmp_path_factory.mktemp("site")
    # Warnings are links that lead nowhere, pages that no list names, and names that the code no longer has.
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(place / "html")]
    done = subprocess.run([*command, "-d", str(place / "trees")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place / "html"


def test_every_page_is_there(site: Path) -> None:
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*/*.md"), ROOT / "README.md"]
    missing = [str(page) for page in pages if not (site / page.relative_to(ROOT)).with_suffix(".html").is_file()]
    assert missing == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*\s(?:src|href)=\"([^\"]*)", page.read_text("utf-8"))
        assert [place for place in loaded if re.match(r"(?:https?:)?//", place)] == [], page


def test_the_api_is_told_with_signatures(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "docs" / "api.html").read_text(encoding="utf-8"))
    for name in ("vlp.load(", "class vlp.Model(", "embed_images(", "vlp.evaluate(", "class vlp.Functions("):
        assert name in text
