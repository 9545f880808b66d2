"""The benchmark of retrieval asks both for the same recalls, and stops a peer that takes too long."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "speed"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    pytest.importorskip("clip_benchmark")
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("retrieval", "run"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in ("retrieval", "run")}


def test_it_measures_and_writes_its_rows(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "retrieval.json"
    options = f"retrieval --images 60 120 --repeats 2 --memory 300 --json {file}"
    monkeypatch.setattr(sys, "argv", options.split())
    scripts["retrieval"].main()
    result = json.loads(file.read_text())
    assert [(row["images"], row["texts"]) for row in result["rows"]] == [(60, 300), (120, 600)]
    for row in result["rows"]:
        assert row["difference"] < 1e-6
        assert 0.2 < row["vlp"]["recalls"]["image_retrieval_recall@1"] < 0.98
    table = scripts["run"].table({"retrieval": result})
    assert "120 pictures and 600 texts: memory, CLIP_benchmark / vlp" in table
    assert "recalls the same" in table
    assert "300 pictures and 300 texts: memory beside the features | flat" in table


def test_a_peer_that_takes_too_long_is_stopped(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*given: object) -> None:
        while len(given[0]) > 200:  # type: ignore[arg-type] # not of those that warm it up
            pass

    monkeypatch.setattr(scripts["retrieval"], "theirs", slow)
    row = scripts["retrieval"].compare(201, repeats=1, threads=1, limit=1)
    assert row["stopped"] >= 1
    assert "CLIP_benchmark" not in row
    assert "CLIP_benchmark stopped after 1 s" in scripts["run"].table({"retrieval": {"rows": [row], "alone": []}})
