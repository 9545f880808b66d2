"""``vlp search`` at the terminal: what is found, as a table, JSON and a page; mistakes are one sentence."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("faiss")

from vlp.cli import main
from vlp.data.write import ShardWriter
from vlp.encoders import openclip
from vlp.encoders.options import ModelOptions
from vlp.search.directions import moved, residual
from vlp.search.searcher import Searcher
from vlp.types import UserError

# Tests are no package, so no import statement reaches it.
_spec = importlib.util.spec_from_file_location("of_search", Path(__file__).parent.parent / "search" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shared)


def saved(directory: Path, seed: int) -> str:
    openclip.save_openclip_directory(openclip.build(ModelOptions(config=shared.CONFIG), seed=seed), directory)
    return str(directory)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``home/E`` are embeddings of ``home/model``: 12 pictures of a shard, 3 of a folder, 12 captions."""
    home = tmp_path_factory.mktemp("home")
    with ShardWriter(home / "shards", 20) as writer:
        for number in range(12):
            writer.write(shared.png(number), "png", f"a {shared.WORDS[number]} thing")
    (home / "photos").mkdir()
    for number in range(40, 43):
        (home / "photos" / f"{number}.png").write_bytes(shared.png(number))
    inputs = [str(home / "shards"), str(home / "photos")]
    main(["embed", saved(home / "model", 0), *inputs, "--texts", "--output", str(home / "E"), "--workers", "1"])
    return home


@pytest.fixture(scope="module")
def searcher(home: Path) -> Searcher:
    return Searcher(home / "E")


@pytest.fixture
def search(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """``search(*arguments)`` is the command with ``--json -``; its results come back."""
    monkeypatch.chdir(home)
    capsys.readouterr()

    def run(*arguments: object) -> list[dict[str, Any]]:
        main(["search", "E", *map(str, arguments), "--json", "-"])
        return json.loads(capsys.readouterr().out)["results"]

    return run


def keys(results: list[dict[str, Any]]) -> list[str]:
    return [one["key"] for one in results]


def wanted(searcher: Searcher, query_D: np.ndarray, kind: str = "pictures", top: int = 10) -> list[str]:
    """By comparing all, without an index."""
    rows = searcher.collection.of(kind)
    scores = np.concatenate(list(rows.blocks())) @ query_D
    return [rows[int(number)].key for number in np.argsort(-scores, kind="stable")[:top]]


def test_a_text_finds_pictures_the_nearest_first(search, searcher: Searcher, home: Path) -> None:
    found = search("a red dog", "--top", 5)
    assert keys(found) == wanted(searcher, searcher.texts(["a red dog"])[0], top=5)
    assert [one["rank"] for one in found] == [1, 2, 3, 4, 5]
    in_shard = next(one for one in search("a red dog", "--top", 15) if one["path"].endswith(".tar"))
    data = Path(in_shard["path"]).read_bytes()[in_shard["offset"] :][: in_shard["size"]]
    assert data == shared.png(int(in_shard["key"]))
    in_folder = next(one for one in search("a red dog", "--top", 15) if one["key"] == "41.png")
    assert in_folder["path"] == str(home / "photos" / "41.png")
    assert in_folder["text"] is None
    assert "offset" not in in_folder


def test_a_picture_finds_itself_and_captions(search, searcher: Searcher, home: Path) -> None:
    (home / "mine.png").write_bytes(shared.png(4))
    found = search("--image", "mine.png")
    assert found[0]["key"] == "000000004"
    assert found[0]["score"] == pytest.approx(1, abs=2e-3)
    feature_D = searcher.picture(shared.png(4), "mine")
    assert keys(search("--image", "mine.png", "--find", "texts")) == wanted(searcher, feature_D, "texts")


def test_arithmetic_is_the_formula(search, searcher: Searcher, home: Path) -> None:
    dog, red, blue, green = searcher.texts(["a dog", "red", "blue", "green"])
    query = moved(dog, residual(np.stack([red, green]), blue[None]), 0.5)
    assert keys(search("a dog", "--plus", "red", "--plus", "green", "--minus", "blue", "--weight", 0.5)) == wanted(
        searcher, query
    )
    (home / "to.txt").write_text("red\ngreen\n")
    (home / "from.txt").write_text("blue\n")
    assert keys(search("a dog", "--towards", "to.txt", "--away-from", "from.txt", "--weight", 0.5)) == wanted(
        searcher, query
    )
    assert keys(search("--plus", "red")) == wanted(searcher, red)
    pictures = searcher.pictures([shared.png(n) for n in (40, 41, 42)], ["a", "b", "c"])
    assert keys(search("a dog", "--towards", "photos")) == wanted(searcher, moved(dog, residual(pictures, None), 1))


def test_lines_and_a_file_of_json(home: Path, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    monkeypatch.chdir(home)
    main(["search", "E", "a dog", "--top", "2", "--json", str(tmp_path / "x.json")])
    printed = capsys.readouterr()
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    lines = [line.split("\t") for line in printed.out.splitlines()]
    assert [line[1] for line in lines] == keys(results)
    assert [float(line[0]) for line in lines] == [pytest.approx(one["score"], abs=1e-3) for one in results]
    assert "2 of 15 pictures in " in printed.err
    assert "ms, all compared" in printed.err


def test_a_page_with_the_pictures_in_it(home: Path, monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.chdir(home)
    (home / "asked.png").write_bytes(shared.png(4))
    main(["search", "E", "--image", "asked.png", "--plus", "<red>", "--top", "3", "--html", str(tmp_path / "x.html")])
    page = (tmp_path / "x.html").read_text()
    assert page.count("data:image/webp;base64,") == 4
    assert "asked.png + &lt;red&gt;" in page
    assert "<red>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_picture_that_has_gone_is_named_on_the_page(tmp_path: Path, home: Path, capsys) -> None:
    (tmp_path / "few").mkdir()
    for number in range(2):
        (tmp_path / "few" / f"{number}.png").write_bytes(shared.png(number))
    main(["embed", str(home / "model"), str(tmp_path / "few"), "--output", str(tmp_path / "F"), "--workers", "1"])
    (tmp_path / "few" / "1.png").unlink()
    main(["search", str(tmp_path / "F"), "a dog", "--html", str(tmp_path / "x.html")])
    page = (tmp_path / "x.html").read_text()
    assert page.count("data:image/webp") == 1
    assert "1.png of" in page
    assert "no longer there" in page


def test_a_text_longer_than_the_model_reads_is_said(home: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(home)
    main(["search", "E", "word " * 30])
    assert "no more than 8 tokens" in capsys.readouterr().err
    main(["search", "E", "word"])
    assert "tokens" not in capsys.readouterr().err


def test_another_model_is_refused_and_the_same_one_elsewhere_is_not(home: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(home)
    with pytest.raises(SystemExit, match="2"):
        main(["search", "E", "a dog", "--model", saved(home / "other", 1)])
    said = capsys.readouterr().err
    assert "other is not the model that made E" in said
    assert said.count("\n") == 1
    main(["search", "E", "a dog", "--model", saved(home / "copy", 0)])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("nowhere dog", "nowhere holds no embeddings"),
        ("E", "nothing is asked for"),
        ("E dog --image mine.png", "both a text and --image"),
        ("E --image nowhere.png", "nowhere.png does not exist"),
        ("E --image photos", "is a folder"),
        ("E --image broken.png", "cannot be used"),
        ("E dog --weight 2", "--weight has no effect"),
        ("E --plus red --weight 2", "--weight has no effect"),
        ("E dog --plus red --weight -1", "--weight -1"),
        ("E dog --plus red --minus red", "are the same for this model"),
        ("E dog --towards nowhere.txt", "does not exist"),
        ("E dog --top 0", "--top 0"),
        ("E dog --port 3", "--port has no effect without --serve"),
        ("E dog --serve", "a query has no effect with --serve"),
        ("E --serve --plus x", "--plus has no effect with --serve"),
        ("E --serve --port 99999", "--port 99999"),
        ("E --serve --host 203.0.113.7", "cannot be served on"),
        ("N dog", ".npy files"),
        ("P dog --find texts", "holds no embeddings of texts"),
        ("E dog --html E", "--html E is a directory"),
    ],
)
def test_a_mistake_is_one_sentence(home: Path, monkeypatch, capsys, arguments: str, sentence: str) -> None:
    monkeypatch.chdir(home)
    Path("broken.png").write_bytes(b"no picture")
    if arguments[0] in "NP":
        options = ["--files", "npy"] if arguments[0] == "N" else []
        main(["embed", "model", "photos", "--output", arguments[0], "--workers", "1", *options])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["search", *arguments.split()])
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("damage", ["cut", "no embeddings", "other width", "no places", "rubbish inside"])
def test_a_broken_file_of_embeddings_is_named_and_not_left_out(damage: str, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "E", tmp_path / "E")
    file = next(path for path in sorted((tmp_path / "E").glob("*.parquet")) if ".captions" not in path.name)
    table = pq.read_table(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "rubbish inside":
        data = file.read_bytes()
        file.write_bytes(data[:30] + bytes(300) + data[330:])
    elif damage == "other width":
        wide = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(7 * len(table), np.float16)), 7)
        pq.write_table(table.set_column(table.schema.get_field_index("embedding"), "embedding", wide), file)
    else:
        pq.write_table(table.drop_columns(["embedding" if damage == "no embeddings" else "offset"]), file)
    with pytest.raises(UserError, match=f"{file.name} .*remove it") as raised:
        Searcher(tmp_path / "E").index("pictures")
    assert "\n" not in str(raised.value)
