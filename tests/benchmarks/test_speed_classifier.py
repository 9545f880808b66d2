"""The benchmark of class embeddings runs with tiny settings, agrees with both peers and has its rows in the table."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "speed"


def test_all_ways_agree_and_each_pair_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("clip_benchmark")
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("classifier", "run"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    classifier, run = (importlib.import_module(name) for name in ("classifier", "run"))
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "none"))  # which the script sets anew
    file = tmp_path / "classifier.json"
    options = f"--model RN50 --classes 3 --templates 2 --repeats 2 --threads 1 --json {file}"
    monkeypatch.setattr(sys, "argv", ["classifier", *options.split()])
    classifier.main()
    result = json.loads(file.read_text(encoding="utf-8"))
    assert set(result["difference"]) == {"vlp, from its cache", "CLIP_benchmark", "open_clip"}
    assert max(result["difference"].values()) < 1e-5
    assert all(len(turns) == 2 for turns in result["turns"].values())
    lines = run.table({"classifier": result}).splitlines()
    assert len(lines) == 2 + 4
    assert all(line.count("|") == 4 for line in lines)
    assert "class embeddings differ by 0.0e+00 (vlp, from its cache)" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
