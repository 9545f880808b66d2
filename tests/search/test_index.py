"""The index of very many rows: its recall is that against all compared, and it lies beside them until they change."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from vlp.search import files, index
from vlp.search.collection import Collection
from vlp.search.files import PICTURES, Record, Rows
from vlp.search.job import FORMAT, VERSION, write_whole
from vlp.types import UserError

DIMENSION, FILE = 8, 6000


def features(number: int, seed: int) -> np.ndarray:
    """Directions of a few clusters, as those of pictures are."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(30, DIMENSION))
    found = centres[generator.integers(0, 30, number)] + 0.5 * generator.normal(size=(number, DIMENSION))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def write(directory: Path, name: str, number: int, seed: int) -> None:
    keys = [f"{name}-{row}" for row in range(number)]
    rows = Rows(keys, [f"caption {key}" for key in keys], [None] * number, features(number, seed))
    files.write(directory, name, "parquet", rows, Record("d", "float32", PICTURES, "/x", "s", number))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """12,000 rows in two files, for which the limit of a comparison of all is set lower."""
    monkeypatch.setattr(index, "EXACT_UP_TO", 10_000)
    about = {"format": FORMAT, "version": VERSION, "model": "m", "digest": "d", "dimension": DIMENSION}
    write_whole(tmp_path / "meta.json", {**about, "dtype": "float32", "files": "parquet"})
    for number, name in enumerate("ab"):
        write(tmp_path, name, FILE, number)
    return tmp_path


def texts(captions: list[str]) -> np.ndarray:
    """Stands in for a model: a direction that depends on the caption alone."""
    return features(len(captions), len(captions[0]))


def test_the_stated_recall_is_the_measured_one_and_scores_are_exact(directory: Path) -> None:
    rows = Collection(directory).of(PICTURES)
    found = index.open_index(directory, rows, texts)
    assert found.plan is not None
    assert found.plan.recall >= index.RECALL
    assert found.plan.probes < found.plan.lists
    everything = np.concatenate(list(rows.blocks()))
    hits = 0
    for query_D in features(200, seed=9):
        scores = everything @ query_D
        best = set(np.argsort(-scores)[:10].tolist())
        answer = found.nearest(query_D, 10)
        hits += len(best & {row for row, _ in answer})
        assert [score for _, score in answer] == pytest.approx([scores[row] for row, _ in answer], abs=2e-3)
    assert hits / 2000 == pytest.approx(found.plan.recall, abs=0.06)
    assert "recall@10 " in found.plan.described()


def test_it_is_built_once_and_again_when_the_rows_change(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.open_index(directory, Collection(directory).of(PICTURES), texts)
    assert "building the index of 12,000 pictures" in capsys.readouterr().err
    index.open_index(directory, Collection(directory).of(PICTURES), texts)
    assert capsys.readouterr().err == ""
    write(directory, "c", 100, seed=5)
    rows = Collection(directory).of(PICTURES)
    changed = index.open_index(directory, rows, texts)
    assert "building" in capsys.readouterr().err
    assert changed.nearest(rows.feature(12_050), 1)[0][0] == 12_050


def test_a_build_that_was_killed_is_begun_again(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Collection(directory).of(PICTURES)
    index.open_index(directory, rows, texts)
    (directory / "index" / "pictures.json").unlink()
    (directory / "index" / "pictures.faiss").write_bytes(b"half")
    capsys.readouterr()
    assert index.open_index(directory, rows, texts).nearest(rows.feature(7), 1)[0][0] == 7
    assert "building" in capsys.readouterr().err
    note = json.loads((directory / "index" / "pictures.json").read_text())
    assert note["digest"] == rows.digest


@pytest.mark.parametrize(("module", "package"), [("index", "faiss"), ("server", "uvicorn")])
def test_a_package_that_is_missing_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"vlp.search.{module}", raising=False)
    with pytest.raises(UserError, match=r"pip install 'vlp\[search\]'"):
        importlib.import_module(f"vlp.search.{module}")


def test_few_rows_are_all_compared(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "EXACT_UP_TO", 20_000)
    rows = Collection(directory).of(PICTURES)
    found = index.open_index(directory, rows, texts)
    assert found.plan is None
    assert not (directory / "index").exists()
    query_D = features(1, seed=3)[0]
    scores = np.concatenate(list(rows.blocks())) @ query_D
    assert [row for row, _ in found.nearest(query_D, 10)] == np.argsort(-scores)[:10].tolist()


def test_rows_are_numbered_through_the_files(directory: Path) -> None:
    rows = Collection(directory).of(PICTURES)
    everything = np.concatenate(list(rows.blocks()))
    for number in (0, 999, 1000, FILE - 1, FILE, FILE + 1, 2 * FILE - 1):
        assert rows[number].key == f"{'ab'[number // FILE]}-{number % FILE}"
        np.testing.assert_allclose(rows.feature(number), everything[number], atol=1e-6)
    for number in (-1, 2 * FILE):
        with pytest.raises(IndexError):
            rows[number]
