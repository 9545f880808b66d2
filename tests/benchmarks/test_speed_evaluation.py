"""The benchmark of a whole evaluation makes sets that both evaluate alike, and has its rows in the table."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from vlp.encoders import openclip

FOLDER = Path(__file__).parents[2] / "benchmarks" / "speed"


def test_both_have_the_same_figures(
    tiny_model: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("clip_benchmark")
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("pictures", "tokenizer", "sugarcrepe_files", "sugarcrepe", "evaluation", "run"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    evaluation, run = (importlib.import_module(name) for name in ("evaluation", "run"))
    model = openclip.build(openclip.ModelOptions(config=tiny_model), seed=0)
    openclip.save_openclip_directory(model, tmp_path / "model")
    file = tmp_path / "evaluation.json"
    options = (
        f"--share 0.012 --size 64 48 --model {tmp_path / 'model'} --rounds 2 --batch-size 4 --workers 0 --fp32-only"
    )
    monkeypatch.setattr(sys, "argv", ["evaluation", *options.split(), "--json", str(file)])
    evaluation.main()
    result = json.loads(file.read_text(encoding="utf-8"))
    assert (result["pictures"], result["captions"], result["classes"], result["prompts"]) == (24, 60, 5, 400)
    row = result["ratio"]["CLIP_benchmark, fp32"]
    assert (row["differing_figures"], row["figures"]) == (0, 9)
    assert all(len(turns) == 2 for turns in result["turns"].values())
    (line,) = run.table({"evaluation": result}).splitlines()[2:]
    assert line.startswith(
        "| a whole evaluation of two sets, model, 24 pictures, 60 captions, 400 prompts: CLIP_benchmark"
    )
    assert "0 of 9 figures differ" in line


def test_a_figure_that_is_another_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    evaluation = importlib.import_module("evaluation")
    theirs = {"classes": {"acc1": 0.5, "acc5": float("nan"), "mean_per_class_recall": 0.3}}
    ours = {"classes": {"acc1": 0.5001, "acc5": 1.0, "mean_per_class_recall": 0.30000001, "more": 1.0}}
    number, most = evaluation.differing(theirs, ours)
    assert (number, most) == (1, pytest.approx(1e-4))
