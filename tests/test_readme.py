"""What README.md tells people to type works; ``run_document`` says how its blocks are marked.

The two set-up commands cannot run inside pytest: the first takes minutes, the second starts pytest again. `.ci/run`
executes the second; of the first, the quickstart runs here with its smoke profile.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from data_tools.scenes import ScenesOptions
from vlp import quickstart, recipe, resolve

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SET_UP = ["pip install -e . && vlp quickstart", 'pip install -e ".[dev]" && pytest']


def test_readme_runs(run_document, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n<!-- test: quick -->\n" in text
    run_document(text, tmp_path)


def test_readme_gives_the_two_set_up_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    marked = re.findall(r"^<!-- test: install -->\n+```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [line for line in "".join(marked).splitlines() if line and not line.startswith("#")] == SET_UP


def test_recipes_shown_are_valid(tmp_path: Path) -> None:
    shown = re.findall(
        r"^```yaml\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert shown
    for number, text in enumerate(shown):
        (tmp_path / f"{number}.yaml").write_text(text, encoding="utf-8")
        recipe.load(str(tmp_path / f"{number}.yaml"))


def test_readme_names_every_objective_recipe_and_tool() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    recipes = list(resolve.recipes())
    tools = [f"vlp data {tool} " for tool in resolve.names("data_tools")]
    named = [f"`{name}`" for name in [*resolve.names("vlp.objectives"), *recipes]]
    assert [word for word in [*named, *tools] if word not in text] == []


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


def test_marked_blocks_share_a_directory_and_unmarked_ones_do_not_run(run_document, tmp_path: Path) -> None:
    run_document(
        """
<!-- file: notes/expected.txt -->
```text
quickstart
```

<!-- test: quick -->
```bash
vlp recipes > recipes.txt
```

```bash
false
```

<!-- test: python -->

```python
assert open("notes/expected.txt").read().strip() in open("recipes.txt").read()
```

<!-- test: install -->
```bash
false
```
""",
        tmp_path,
    )
    assert (tmp_path / "recipes.txt").is_file()


@pytest.mark.parametrize("content", ["vlp train nowhere", "false\ntrue", "vlp recipes --nonsense | cat"])
def test_a_block_that_fails_is_noticed(run_document, tmp_path: Path, content: str) -> None:
    with pytest.raises(AssertionError, match=content.split()[0]):
        run_document(f"<!-- test: quick -->\n```bash\n{content}\n```\n", tmp_path)
