"""The examples of CONTRIBUTING.md run as they stand: a file dropped into its folder, and nothing else edited."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_examples_run(run_document, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for folder in ("vlp", "data_tools", "recipes"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    run_document(text, checkout, PYTHONPATH=str(checkout))

    for example in ("data_tools/colours.py", "vlp/evaluation/tasks/choice.py", "my_lab/margin.py"):
        assert (checkout / example).is_file()
    run = checkout / "runs" / "colours-smoke"
    assert "margin_loss" in (run / "metrics.jsonl").read_text()
    result = json.loads((run / "evaluation" / "choice.json").read_text())
    assert result["task"] == "caption_image_selection"
    assert result["metrics"]["image_acc"] > 0.7
    assert "image_acc" in (run / "report.html").read_text()
