"""The benchmarks of the training step and of the text tower run with tiny settings; run.py tells what they found."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "speed"
NAMES = ("run", "step", "tower")
TINY = {
    "step": "--models tiny --batch-size 4 --repeats 1 --seconds 0 --curve 3",
    "tower": "--batch-size 2 --repeats 1",
}


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The modules, which find each other beside them as when they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for name in NAMES:
            patch.delitem(sys.modules, name, raising=False)
        yield {name: importlib.import_module(name) for name in NAMES}
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def results(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each of them writes."""
    pytest.importorskip("open_clip_train.train")
    folder = tmp_path_factory.mktemp("results")
    for name, options in TINY.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *options.split(), "--json", str(folder / f"{name}.json")])
            scripts[name].main()
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in TINY}


def test_losses_agree_where_nothing_is_left_out(results: dict[str, Any]) -> None:
    (row,) = results["step"]["rows"].values()
    curves = {name: loop["losses"] for name, loop in row["loops"].items()}
    assert list(curves) == [
        "vlp",
        "vlp, all places",
        "vlp, patch dropout 0.5",
        "open_clip",
        "open_clip, force_patch_dropout 0.5",
    ]
    assert curves["vlp"] == pytest.approx(curves["open_clip"], abs=1e-4)
    assert curves["vlp, all places"] == pytest.approx(curves["open_clip"], abs=1e-4)
    assert curves["vlp, patch dropout 0.5"][0] != pytest.approx(curves["open_clip"][0], abs=1e-4)
    assert curves["open_clip, force_patch_dropout 0.5"][0] != pytest.approx(curves["open_clip"][0], abs=1e-4)
    assert row["loss_difference"] < 1e-4
    assert len(row["ratio"]) == 2 * 3


def test_towers_agree_on_texts_of_every_length(results: dict[str, Any], scripts: dict[str, ModuleType]) -> None:
    rows = results["tower"]["rows"]
    assert list(rows) == ["scenes", "made, around 13", "made, with a long tail"]
    for row in rows.values():
        assert max(row["difference"].values()) < 1e-5
        assert row["mean"] < row["longest"] <= 77
        assert all(ratio["min"] > 0 for ratio in row["ratio"].values())


def test_made_texts_have_the_lengths_asked_for(scripts: dict[str, ModuleType]) -> None:
    text_NL = scripts["tower"].made(torch.tensor([3.0, 5.0, 900.0, 1.0]), 10)
    assert ((text_NL != 0).sum(1)).tolist() == [3, 5, 10, 3]
    assert (text_NL == 49407).sum(1).tolist() == [1, 1, 1, 1]
    assert (text_NL[:, 0] == 49406).all()
    lengths = scripts["tower"].lengths(4000)
    assert lengths["made, around 13"].mean() == pytest.approx(13, abs=0.2)
    assert lengths["made, with a long tail"].median() == pytest.approx(15, abs=1)
    assert lengths["made, with a long tail"].quantile(0.99) > 50


def test_difference_of_gradients_is_seen(scripts: dict[str, ModuleType]) -> None:
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for tower in (one, other):
        tower.weight.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert scripts["tower"].differing(one, other) == 0
    one.weight.grad[1, 0] += 1
    assert scripts["tower"].differing(one, other) == pytest.approx(1 / 4)


def test_table_has_a_row_for_every_ratio(results: dict[str, Any], scripts: dict[str, ModuleType]) -> None:
    lines = scripts["run"].table(results).splitlines()[2:]
    assert all(line.count("|") == 4 for line in lines)
    steps = [line for line in lines if line.startswith("| training step")]
    (row,) = results["step"]["rows"].values()
    assert len(steps) == len(row["ratio"]) + 1
    assert sum("≥ 1.5" in line for line in steps) == 1
    assert sum("≥ 1 |" in line for line in steps) == 1
    assert sum(line.startswith("| text tower") for line in lines) == 3


def test_more_models_want_more_batch_sizes(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["step", "--models", "tiny", "ViT-B-32", "--batch-size", "4"])
    with pytest.raises(SystemExit):
        scripts["step"].main()
