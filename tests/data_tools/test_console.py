"""What the data tools say and write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools._console import write_json


@pytest.mark.parametrize("name", ["Füße 🚌", "k\udcff.png", "half \ud83d of a character"])
def test_json_is_utf_8_and_keeps_names_that_are_not(name: str, tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {name: [name]})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {name: [name]}
