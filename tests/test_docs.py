"""The pages of docs/ say what the code does."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from vlp import resolve
from vlp.data.samples import IMAGE_EXTENSIONS
from vlp.recipe import Recipe

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def reference() -> str:
    return runpy.run_path(str(DOCS / "make_recipe_reference.py"))["page"]()


def test_recipe_reference_is_current(reference: str) -> None:
    assert (DOCS / "recipes.md").read_text(encoding="utf-8") == reference, "options have changed: run `make docs`"


def test_recipe_reference_has_every_key_and_says_what_each_means(reference: str) -> None:
    rows = [line.split(" | ") for line in reference.splitlines() if line.startswith("| `")]
    keys = {row[0].strip("| `") for row in rows}
    assert {"seed", "data.captions.N.weight", "data.augment.flip", "model.picture.mean", "train.lr"} <= keys
    assert {key.split(".")[0] for key in keys} >= set(Recipe.model_fields) - {"objectives"}
    assert all(f"### `{name}`" in reference for name in resolve.names("vlp.objectives"))
    silent = [row[0] for row in rows if len(row) != 4 or len(row[3].strip("| ")) < 4]
    assert [key for key in silent if key != "| `name`"] == []


def test_data_page_names_every_tool_extension_and_layout() -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    assert all(f"`vlp data {tool} " in text for tool in resolve.names("data_tools"))
    assert all(
        extension in text.split("`KEY.jpg`")[1].split("|")[0] for extension in IMAGE_EXTENSIONS if extension != "jpg"
    )
    assert all(f"| {task}" in text or f"{task} (" in text for task in resolve.names("vlp.evaluation.tasks"))


@pytest.mark.slow
def test_commands_of_the_pages_run(run_document, tmp_path: Path) -> None:
    for page in sorted(DOCS.glob("*.md")):
        run_document(page.read_text(encoding="utf-8"), tmp_path / page.stem)
