"""The approximate search of ``vlp data neighbours``, on vectors in place of pictures, against the exact one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss")

import faiss

from data_tools._neighbours import choose, corpus, facts, index, search
from data_tools._neighbours.facts import Captions, Embedded, Pictures
from data_tools._neighbours.index import IndexOptions
from data_tools._neighbours.job import Job
from data_tools._neighbours.searchers import Exact
from vlp.data.samples import BadSample
from vlp.types import UserError

DIM, ROWS = 16, 11_000
PATHS = [f"shards/{number:05d}.tar" for number in range(3)]


def clustered(rows: int, seed: int = 0) -> np.ndarray:
    """fp16 [rows, 16] of length 1: 400 clusters of some 27."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((400, DIM))
    points = centres[random.integers(0, 400, rows)] + 0.3 * random.standard_normal((rows, DIM))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


def job_of(root: Path) -> Job:
    return Job("some/model", "0123456789abcdef", DIM, root=str(root))


def embedded(root: Path, features_ND: np.ndarray, said: Sequence[Sequence[int]] | None = None) -> Path:
    """The corpus of three shards with these features, as if a model had given them.

    ``said`` are hashes of captions, by default another one each; a sample without any cannot be used.
    """
    job, results = job_of(root), []
    captions = said or [[row] for row in range(len(features_ND))]
    parts = np.array_split(np.arange(len(features_ND)), len(PATHS))
    for path, rows in zip(PATHS, parts, strict=True):
        looks = np.random.default_rng(rows[0]).integers(0, 256, (len(rows), 48), dtype=np.uint8)
        keys = np.array([f"{row:06d}".encode() for row in rows])
        no_defect = np.zeros(len(rows), dtype=np.uint8), np.array([""])
        signature = np.array(rows[0], dtype=np.uint64)
        job.features(path).parent.mkdir(parents=True, exist_ok=True)
        np.save(job.features(path), features_ND[rows])
        facts.save(job.pictures(path), Pictures(signature, keys, rows.astype(np.uint64), looks, *no_defect))
        facts.save(
            job.captions_of(path),
            Captions.of(int(rows[0]), [captions[row] or BadSample("empty caption") for row in rows]),
        )
        results.append(Embedded(len(rows), sum(bool(captions[row]) for row in rows), int(rows[0]), ()))
    return corpus.join(PATHS, results, job)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded(tmp_path_factory.mktemp("corpus"), clustered(ROWS))


def found(folder: Path, options: IndexOptions, rows: np.ndarray, job: Job) -> list[list[int]]:
    result = choose.find(rows, corpus.opened(folder), index.searcher(folder, options), job)
    return [result.neighbours(query).tolist() for query in range(len(rows))]


def test_the_exact_search_finds_the_nearest(folder: Path) -> None:
    rows = np.arange(0, ROWS, 97)
    table = corpus.opened(folder)
    features_ND = table.features(np.arange(ROWS))
    similarity = features_ND[rows] @ features_ND.T
    similarity[np.arange(len(rows)), rows] = -2
    expected = np.argsort(-similarity, axis=1, kind="stable")[:, :3]
    assert found(folder, IndexOptions("exact", 0), rows, job_of(folder.parents[2])) == expected.tolist()


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_the_approximate_search_finds_nearly_all_of_them(folder: Path, kind: str) -> None:
    job, options = job_of(folder.parents[2]), IndexOptions(kind, 32)
    index.build(folder, PATHS, kind, workers=1, ray=None)
    assert search.recall(job, options, folder) > 0.97
    assert search.recall(job, IndexOptions(kind, 1), folder) < search.recall(job, options, folder)
    assert search.recall(job, IndexOptions(kind, 256), folder) >= (1.0 if kind == "ivf" else 0.97)
    whole = faiss.read_index(str(folder / f"{kind}.whole.faiss"))
    assert (whole.ntotal, whole.nlist) == (ROWS, 256)
    assert whole.code_size == {"ivf": DIM, "ivfpq": DIM // 8}[kind]
    assert not list(folder.glob(f"{kind}.codes/*")), "what the index was made of is gone"


def test_samples_that_cannot_be_used_are_in_no_index(tmp_path: Path) -> None:
    captions = [[] if row % 40 == 0 else [row] for row in range(ROWS)]
    folder = embedded(tmp_path, clustered(ROWS), captions)
    index.build(folder, PATHS, "ivf", workers=1, ray=None)
    assert faiss.read_index(str(folder / "ivf.whole.faiss")).ntotal == ROWS - len(range(0, ROWS, 40))
    neighbours = found(folder, IndexOptions("ivf", 32), np.arange(1, ROWS, 80), job_of(tmp_path))
    assert all(len(own) == 3 and row % 40 for own in neighbours for row in own)


def test_further_rounds_search_more_lists(folder: Path) -> None:
    index.build(folder, PATHS, "ivf", workers=1, ray=None)
    one_list = index.searcher(folder, IndexOptions("ivf", 1))
    query_ND = corpus.opened(folder).features(np.arange(5))
    there = [(one_list.candidates(query_ND, ROWS, effort) >= 0).sum() for effort in range(5)]
    assert there == sorted(set(there))
    assert there[4] == 5 * ROWS


def test_an_index_goes_on_where_it_was_interrupted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = (shutil.copytree(folder, tmp_path / name, ignore=_INDEX) for name in ("whole", "cut"))
    index.build(whole, PATHS, "ivf", workers=1, ray=None)
    encode, seen = index.encode_shard, list[str]()

    def interrupted(path: str, folder: Path, kind: str) -> None:
        seen.append(path)
        if len(seen) == 3:
            raise KeyboardInterrupt
        encode(path, folder, kind)

    monkeypatch.setattr(index, "encode_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index.build(cut, PATHS, "ivf", workers=1, ray=None)
    done = {file: file.stat().st_mtime_ns for file in [cut / "ivf.trained.faiss", *cut.glob("ivf.codes/*")]}
    assert len(done) == 3
    (cut / "ivf.whole.faiss.partial").write_bytes(b"half")

    def resumed(path: str, folder: Path, kind: str) -> None:
        encode(path, folder, kind)
        assert {file: file.stat().st_mtime_ns for file in done} == done

    monkeypatch.setattr(index, "encode_shard", resumed)
    index.build(cut, PATHS, "ivf", workers=1, ray=None)
    assert (cut / "ivf.whole.faiss").read_bytes() == (whole / "ivf.whole.faiss").read_bytes()


_INDEX = shutil.ignore_patterns("*.faiss", "*.codes")


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_clusters_of_one_caption_are_searched_past(tmp_path: Path, kind: str) -> None:
    """Some 27 pictures say the same as each, and all their own thing besides."""
    random = np.random.default_rng(0)
    random.standard_normal((400, DIM))
    cluster = random.integers(0, 400, ROWS)
    captions = [[int(own), 400 + row] for row, own in enumerate(cluster)]
    folder, job = embedded(tmp_path, clustered(ROWS), captions), job_of(tmp_path)
    rows = np.arange(0, ROWS, 531)
    options = index.resolve(kind, None, ROWS)
    if kind != "exact":
        index.build(folder, PATHS, kind, workers=1, ray=None)
    neighbours = found(folder, options, rows, job)
    assert all(len(own) == 3 for own in neighbours)
    assert all(cluster[row] not in cluster[own] for row, own in zip(rows, neighbours, strict=True))
    true = found(folder, IndexOptions("exact", 0), rows, job)
    assert np.mean([len({*one} & {*other}) / 3 for one, other in zip(true, neighbours, strict=True)]) > 0.95


def test_no_more_candidates_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that all say the same cost a bounded search."""
    monkeypatch.setattr(choose, "MOST_CANDIDATES", 100)
    asked: list[int] = []
    original = Exact.candidates

    def counted(self: Exact, query_ND: np.ndarray, number: int, effort: int) -> np.ndarray:
        asked.append(number)
        return original(self, query_ND, number, effort)

    monkeypatch.setattr(Exact, "candidates", counted)
    folder = embedded(tmp_path, clustered(600), [[1]] * 600)
    assert found(folder, IndexOptions("exact", 0), np.arange(4), job_of(tmp_path)) == [[]] * 4
    assert asked == [16, 64, 100]


def test_little_memory_gives_the_same_neighbours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries in pieces, and one shard open at a time."""
    rows, job = np.arange(0, ROWS, 197), job_of(folder.parents[2])
    expected = found(folder, IndexOptions("exact", 0), rows, job)
    monkeypatch.setattr(choose, "_HELD", 100)
    monkeypatch.setattr(choose, "_COMPARED", 40)
    monkeypatch.setattr(corpus, "_room_for_files", lambda: 1)
    corpus.opened.cache_clear()
    assert found(folder, IndexOptions("exact", 0), rows, job) == expected


@pytest.mark.parametrize(
    ("pictures", "kind"), [(200_000, "exact"), (200_001, "ivf"), (20_000_000, "ivf"), (100_000_000, "ivfpq")]
)
def test_the_index_follows_the_number_of_pictures(pictures: int, kind: str) -> None:
    assert index.resolve(None, None, pictures).kind == kind


@pytest.mark.parametrize(
    ("pictures", "lists"), [(10_240, 256), (100_000, 1024), (1_000_000, 2048), (10_000_000, 8192), (10**8, 32_768)]
)
def test_lists_grow_as_the_root_of_the_pictures(pictures: int, lists: int) -> None:
    assert index.num_lists(pictures) == lists


@pytest.mark.parametrize(("dim", "code"), [(512, "PQ64"), (768, "PQ96"), (100, "PQ25"), (6, "PQ3"), (5, "PQ5")])
def test_product_codes_have_whole_parts(dim: int, code: str) -> None:
    assert index.factory("ivfpq", 1_000_000, dim) == f"IVF2048,{code}"


def test_too_few_pictures_for_an_index_are_refused() -> None:
    with pytest.raises(UserError, match=r"--index ivfpq needs 10,240 pictures or more, and there are 10,239"):
        index.resolve("ivfpq", None, 10_239)
    with pytest.raises(UserError, match=r"--probes 8 has no effect on an exact search"):
        index.resolve(None, 8, 10_239)
