"""The parts of benchmarks/emoji that need no training: figures, intervals, the table, the checks of the data."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlp.data.write import ShardWriter
from vlp.types import UserError

FOLDER = Path(__file__).parents[2] / "benchmarks" / "emoji"
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "text_retrieval_recall@1", "image_retrieval_recall@1"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _module("figures", monkeypatch)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _module("run", monkeypatch)


def _module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script's module, found beside the script as when it runs, and forgotten after the test."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for path in FOLDER.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return __import__(name)


def _results(image_to_text: float, text_to_image: float) -> dict[str, Any]:
    metrics = {IMAGE_TO_TEXT: image_to_text, TEXT_TO_IMAGE: text_to_image}
    chance = {IMAGE_TO_TEXT: 0.005, TEXT_TO_IMAGE: 0.005}
    result = {"metrics": metrics, "chance": chance, "num_images": 200, "num_texts": 251}
    return {"unseen_things": result, "unseen_drawings": result}


def test_interval_of_three_seeds_is_that_of_the_t_table(figures: ModuleType) -> None:
    found = figures.spread([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["std"] == 1.0
    # t(0.975, 2) = 4.3027 in any table; half width 4.3027 / sqrt(3) = 2.4842
    assert found["low"] == pytest.approx(2 - 2.4842, abs=5e-4)
    assert found["high"] == pytest.approx(2 + 2.4842, abs=5e-4)


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622)])
def test_quantiles_stand_at_their_degrees_of_freedom(figures: ModuleType, degrees: int, quantile: float) -> None:
    assert figures.T_QUANTILES[degrees - 1] == pytest.approx(quantile, abs=5e-4)


def test_one_seed_has_no_interval(figures: ModuleType) -> None:
    assert figures.spread([0.25]) == {"num": 1, "mean": 0.25, "std": None, "low": None, "high": None}


LOG = """\
INFO | Start epoch 0
INFO | Train Epoch: 0 [ 128/1536 (8%)] Data (t): 0.125 Batch (t): 2.000, 64.0000/s, 64.0/s/gpu LR: 0.001
INFO | Train Epoch: 0 [1408/1536 (92%)] Data (t): 0.003 Batch (t): 1.000, 128.000/s, 128/s/gpu LR: 0.001
INFO | Train Epoch: 0 [1536/1536 (100%)] Data (t): 0.003 Batch (t): 0.500, 256.000/s, 256/s/gpu LR: 0.001
INFO | Train Epoch: 1 [ 128/1536 (8%)] Data (t): 0.125 Batch (t): 9.000, 14.2222/s, 14.2/s/gpu LR: 0.001
INFO | => resuming checkpoint 'epoch_1.pt' (epoch 1)
INFO | Train Epoch: 1 [ 128/1536 (8%)] Data (t): 0.125 Batch (t): 1.000, 128.000/s, 128/s/gpu LR: 0.001
INFO | Train Epoch: 1 [1536/1536 (100%)] Data (t): 0.003 Batch (t): 2.000, 64.0000/s, 64.0/s/gpu LR: 0.001
"""


def test_seconds_of_open_clip_weigh_each_line_by_its_batches(figures: ModuleType) -> None:
    seconds, samples = figures.open_clip_seconds(LOG)
    assert samples == 2 * 1536
    assert seconds == pytest.approx((1 * 2.0 + 10 * 1.0 + 1 * 0.5) + (1 * 1.0 + 11 * 2.0))


def test_seconds_of_vlp_leave_out_rows_of_evaluations(figures: ModuleType) -> None:
    rows = [
        {"step": 10, "samples": 1280, "train/batch_time": 2.0},
        {"step": 10, "samples": 1280, "val/unseen_things/image_to_text_R@1": 0.1},
        {"step": 14, "samples": 1792, "train/batch_time": 1.0},
    ]
    assert figures.vlp_seconds(rows) == (24.0, 1792)


def _runs(figures: ModuleType) -> list[Any]:
    """Two seeds a side. open_clip is best at epoch 2 of 2 with seed 0 and at epoch 1 of 2 with seed 1."""
    return [
        figures.Run("open_clip", 0, 100.0, 2000, 2.0, [_results(0.04, 0.04), _results(0.10, 0.12)]),
        figures.Run("open_clip", 1, 200.0, 2000, 2.0, [_results(0.14, 0.10), _results(0.16, 0.06)]),
        figures.Run("vlp emoji", 0, 50.0, 4000, 4.0, [_results(0.20, 0.20)]),
        figures.Run("vlp emoji", 1, 50.0, 4000, 4.0, [_results(0.22, 0.22)]),
    ]


def test_open_clip_is_compared_at_its_best_epoch_seed_by_seed(figures: ModuleType) -> None:
    found = figures.summarise(_runs(figures))
    methods = found["methods"]
    assert list(methods) == ["open_clip, last epoch", "open_clip, best epoch", "vlp emoji"]
    last = methods["open_clip, last epoch"]["scores"]["unseen_things"]
    best = methods["open_clip, best epoch"]["scores"]["unseen_things"]
    assert last[IMAGE_TO_TEXT]["mean"] == pytest.approx((0.10 + 0.16) / 2)
    assert best[IMAGE_TO_TEXT]["mean"] == pytest.approx((0.10 + 0.14) / 2)
    assert methods["open_clip, best epoch"]["epochs"] == 1.5
    assert methods["open_clip, best epoch"]["seconds"] == pytest.approx((100 + 200 / 2) / 2)
    difference = found["differences"]["vlp emoji"]["scores"]["unseen_things"]
    assert difference[IMAGE_TO_TEXT]["mean"] == pytest.approx(0.09)  # +0.10 and +0.08
    assert difference[TEXT_TO_IMAGE]["mean"] == pytest.approx(0.10)  # +0.08 and +0.12
    assert difference[IMAGE_TO_TEXT]["high"] == pytest.approx(0.09 + 12.706 * 0.01, abs=1e-5)
    json.dumps(found, allow_nan=False)


def test_difference_uses_the_seeds_that_both_sides_have(figures: ModuleType) -> None:
    found = figures.summarise([run for run in _runs(figures) if (run.method, run.seed) != ("open_clip", 1)])
    assert found["differences"]["vlp emoji"]["seeds"] == [0]
    alone = figures.summarise([run for run in _runs(figures) if run.method == "vlp emoji"])
    assert alone["differences"] == {}


def test_table_has_a_row_a_method_in_per_cent(figures: ModuleType) -> None:
    lines = figures.table(figures.summarise(_runs(figures))).splitlines()
    assert lines[2] == "| chance | 0.5 | 0.5 | 0.5 | 0.5 |  |  |  |"
    assert lines[5] == "| vlp emoji (2 seeds) | " + "21.0 ± 1.4 | " * 4 + "4.0 | 50 | 80 |"
    assert lines[-1].startswith("| vlp emoji (2 seeds) | +9.0 [-3.7, +21.7] | +10.0 [")
    assert {line.count("|") for line in lines[:6]} == {9}


def test_nothing_finished_is_refused(figures: ModuleType) -> None:
    with pytest.raises(UserError, match="nothing to collect"):
        figures.summarise([])


def test_table_replaces_the_one_between_the_marks(run: ModuleType) -> None:
    page = f"before\n{run.TABLE_START}\nold\n{run.TABLE_END}\nafter\n"
    once = run.with_table(page, "| new |")
    assert once == f"before\n{run.TABLE_START}\n\n| new |\n\n{run.TABLE_END}\nafter\n"
    assert run.with_table(once, "| new |") == once
    with pytest.raises(UserError, match="marks"):
        run.with_table("no marks", "| new |")


def test_page_shows_the_recorded_results(run: ModuleType) -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    recorded = FOLDER / "results.json"
    if not recorded.is_file():
        assert run.TABLE_START in page
        return
    table = sys.modules["figures"].table(json.loads(recorded.read_text(encoding="utf-8")))
    assert run.with_table(page, table) == page


def _data(directory: Path, captions: list[str]) -> Path:
    for place in (directory / "emoji" / "train", directory / "stamps"):
        with ShardWriter(place) as shards:
            for caption in captions:
                shards.write(b"", "png", caption)
    (directory / "emoji" / "split.json").write_text("{}")
    return directory


def test_both_copies_must_hold_the_same_samples(run: ModuleType, tmp_path: Path) -> None:
    data = _data(tmp_path / "data", ["a cat", "a dog"])
    same = shutil.copytree(data, tmp_path / "same")
    assert run.check_same_pictures(data, same) == 4
    with pytest.raises(UserError, match="hold different samples"):
        run.check_same_pictures(data, _data(tmp_path / "other", ["a dog", "a cat"]))
    (same / "emoji" / "split.json").write_text("[]")
    with pytest.raises(UserError, match="hold different samples"):
        run.check_same_pictures(data, same)
    (same / "emoji" / "split.json").unlink()
    with pytest.raises(UserError, match=r"split\.json is missing"):
        run.check_same_pictures(data, same)


def _peer(root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    module = _module("peer", monkeypatch)
    options = {"python": None, "shards": ["a.tar", "b.tar"], "sets": [], "num_samples": 1000, "epochs": 2}
    return module.Peer(root=root, device="cpu", **{**options, **changes})


def test_open_clip_is_told_the_samples_and_warms_up_for_a_tenth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = _peer(tmp_path, monkeypatch).arguments(seed=1)
    options = dict(zip(arguments[:-1:2], arguments[1:-1:2], strict=True))
    assert options["--train-num-samples"] == "1000"
    assert options["--warmup"] == "2"  # a tenth of 2 x 8 steps, rounded up
    assert options["--train-data"].split("::")[1].endswith("/b.tar")
    assert options["--seed"] == "1"


def test_run_with_other_arguments_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = _peer(tmp_path, monkeypatch)
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "arguments.json").write_text(json.dumps(peer.arguments(0)))
    assert not peer.finished(0)
    with pytest.raises(UserError, match="other arguments"):
        _peer(tmp_path, monkeypatch, epochs=3).finished(0)


def test_peer_needs_its_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--open-clip-python"):
        _peer(tmp_path, monkeypatch).train(0, {})
    with pytest.raises(UserError, match="cannot be used"):
        _peer(tmp_path, monkeypatch, python=str(tmp_path / "absent")).train(0, {})
    # The environment of the tests has webdataset 1, with which open_clip's trainer fails.
    with pytest.raises(UserError, match=r"webdataset 1\.\d+"):
        _peer(tmp_path, monkeypatch, python=sys.executable).train(0, {})
