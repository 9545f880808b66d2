"""The benchmark of SugarCrepe makes files that both evaluations read, and both judge every pair alike."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlp.encoders import openclip
from vlp.evaluation.run import find_task

FOLDER = Path(__file__).parents[2] / "benchmarks" / "speed"


def load(names: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules, which find each other beside them as when they run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("pictures", "tokenizer", "sugarcrepe_files", "sugarcrepe", "run"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in names}


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load(["sugarcrepe_files"], monkeypatch)["sugarcrepe_files"]


def test_made_pairs_have_the_numbers_of_sugarcrepe(files: ModuleType) -> None:
    suites = files.made(1.0)
    assert {suite: len(items) for suite, items in suites.items()} == files.SUITES
    pairs = [item for items in suites.values() for item in items.values()]
    assert len({pair["filename"] for pair in pairs}) == 1560
    texts = {pair[kind] for pair in pairs for kind in ("caption", "negative_caption")}
    assert len(texts) == pytest.approx(11_844, rel=0.05), "as in the files of SugarCrepe"
    words = sum(len(text.split()) for text in texts) / len(texts)
    assert words == pytest.approx(11.35, rel=0.05), "as in the files of SugarCrepe"
    assert all(pair["caption"] != pair["negative_caption"] for pair in pairs)


def test_a_share_keeps_whole_pictures(files: ModuleType, tmp_path: Path) -> None:
    for suite, items in files.made(0.01).items():
        (tmp_path / f"{suite}.json").write_text(json.dumps(items), encoding="utf-8")
    suites = files.read(tmp_path, 0.25)
    pairs = [item for items in suites.values() for item in items.values()]
    names = {pair["filename"] for pair in pairs}
    assert names == {f"{number:012d}.jpg" for number in range(0, 16, 4)}
    assert len(pairs) == sum(
        item["filename"] in names for items in files.made(0.01).values() for item in items.values()
    )


def test_pictures_that_are_there_are_taken(files: ModuleType, tmp_path: Path) -> None:
    suites = files.made(0.002)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "000000000001.jpg").write_bytes(files.jpeg(files.made_picture(64, 48, seed=0), 90))
    files.write(tmp_path / "set", suites, tmp_path / "own")
    task = find_task(tmp_path / "set")
    assert sorted(image.load().size for image in task.images) == [(64, 48), (640, 480), (640, 480)]


def test_both_judge_every_pair_alike(
    tiny_model: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("clip_benchmark")
    scripts = load(["sugarcrepe", "run"], monkeypatch)
    model = openclip.build(openclip.ModelOptions(config=tiny_model), seed=0)
    openclip.save_openclip_directory(model, tmp_path / "model")
    file = tmp_path / "sugarcrepe.json"
    options = f"--share 0.003 --model {tmp_path / 'model'} --rounds 2 --batch-size 4 --workers 0 --json {file}"
    monkeypatch.setattr(sys, "argv", ["sugarcrepe", *options.split()])
    scripts["sugarcrepe"].main()
    result = json.loads(file.read_text(encoding="utf-8"))
    assert (result["pairs"], result["pictures"], result["context"]) == (22, 5, 16)
    assert result["ratio"]["CLIP_benchmark, fp32"]["differing_pairs"] == 0
    accuracy = [turn["accuracy"] for turn in result["turns"]["vlp"]]
    assert accuracy[0] == accuracy[1]
    assert 0 < sum(accuracy[0].values()) < len(accuracy[0]), "or agreement says little"
    assert all(row["clock"]["min"] > 0 and row["cpu"]["min"] > 0 for row in result["ratio"].values())
    lines = scripts["run"].table({"sugarcrepe": result}).splitlines()
    assert len(lines) == 2 + 2
    assert all(line.count("|") == 4 for line in lines)
