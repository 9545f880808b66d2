"""The benchmark of pictures runs, compares the same crops, and writes what it prints."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "speed" / "pictures.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speed_pictures", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_made_pictures_differ_and_weigh_as_much_as_photos(benchmark: ModuleType) -> None:
    one, other = (benchmark.jpeg(benchmark.made_picture(640, 480, seed), 90) for seed in (0, 1))
    assert one != other
    assert one == benchmark.jpeg(benchmark.made_picture(640, 480, 0), 90)
    assert 60_000 < len(one) < 100_000


def test_it_runs_on_a_folder_of_pictures(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, size in enumerate([(520, 500), (200, 300)]):
        data = benchmark.jpeg(benchmark.made_picture(*size, seed), 90)
        (tmp_path / f"{seed}.jpg").write_bytes(data)
    out = tmp_path / "out.json"
    arguments = ["--images", str(tmp_path), "--repeats", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["pictures.py", *arguments])
    benchmark.main()
    row = json.loads(out.read_text())["rows"][str(tmp_path)]
    assert row["pictures"] == 2
    assert row["exact"]["mae"] < 0.3
    assert row["exact"]["mae"] < row["fast"]["mae"] < 2
    ratio = row["fast"]["ratio"]
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert np.isclose(row["mean_kilobytes"] * 2000, sum(path.stat().st_size for path in tmp_path.glob("*.jpg")))
    assert f"ratio {ratio['median']:.2f}" in capsys.readouterr().out
