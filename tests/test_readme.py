"""What README.md tells people to type works.

A fenced block is run when an HTML comment stands right above it: ``<!-- test: quick -->`` (bash) and
``<!-- test: python -->`` run from top to bottom in one directory, so that a block may use what those above it made.
``<!-- test: install -->`` marks the two set-up commands, which cannot run inside pytest: the first takes minutes and the
second starts pytest again. `.ci/run` executes the second; of the first, the quickstart runs here with its smoke profile.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.scenes import ScenesOptions
from vlp import quickstart

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SET_UP = ["pip install -e . && vlp quickstart", 'pip install -e ".[dev]" && pytest']
FENCE = re.compile(r"^<!-- test: (\w+) -->\n+```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str, str]]:
    """(mark, language, content) of the fenced blocks that are marked for tests."""
    return FENCE.findall(text)


def run_blocks(text: str, directory: Path) -> None:
    """Run the marked blocks in their order, with the ``vlp`` and the ``python`` of these tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for mark, language, content in blocks(text):
        if mark == "install":
            continue
        command = {
            "quick": ["bash", "-euo", "pipefail", "-c", content],
            "python": [sys.executable, "-c", content],
        }[mark]
        assert language == {"quick": "bash"}.get(mark, mark), f"a block marked {mark} is fenced as {language}"
        done = subprocess.run(
            command, cwd=directory, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{content}\n{done.stdout}\n{done.stderr}"


def test_readme_runs(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "quick" in [mark for mark, _, _ in blocks(text)], "README.md has no block marked <!-- test: quick -->"
    run_blocks(text, tmp_path)


def test_readme_gives_the_two_set_up_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    marked = [line for mark, _, content in blocks(text) if mark == "install" for line in content.splitlines()]
    assert [line for line in marked if line and not line.startswith("#")] == SET_UP


def test_ci_executes_the_set_up_of_the_tests() -> None:
    assert SET_UP[1] in (ROOT / ".ci" / "run").read_text().splitlines()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_quickstart_draws_trains_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "runs" / "quickstart"
    quickstart.draw(ScenesOptions(out=place / "data", num_train=256, num_eval=32))
    quickstart.quickstart(str(place), ["profile=smoke"])
    printed = capsys.readouterr().out
    assert "image_retrieval_recall@1" in printed
    assert printed.endswith(f"report: {place / 'report.html'}\n")
    assert (place / "report.html").is_file()
    assert {path.stem for path in (place / "evaluation").iterdir()} == {"retrieval", "colour", "shape", "swaps"}


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        targets = re.findall(r"(?:\]\(|src=\")([^)\"#\s]+)", page.read_text(encoding="utf-8"))
        broken = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
        assert not broken, f"{page.name}: {broken}"


# ---- The reader of the blocks itself


def test_marked_blocks_share_a_directory_and_unmarked_ones_do_not_run(tmp_path: Path) -> None:
    run_blocks(
        """
<!-- test: quick -->
```bash
vlp recipes > recipes.txt
```

```bash
false
```

<!-- test: python -->

```python
assert "quickstart" in open("recipes.txt").read()
```
""",
        tmp_path,
    )
    assert (tmp_path / "recipes.txt").is_file()


@pytest.mark.parametrize("content", ["vlp train nowhere", "false\ntrue", "vlp recipes --nonsense | cat"])
def test_a_block_that_fails_is_noticed(tmp_path: Path, content: str) -> None:
    with pytest.raises(AssertionError, match=content.split()[0]):
        run_blocks(f"<!-- test: quick -->\n```bash\n{content}\n```\n", tmp_path)
