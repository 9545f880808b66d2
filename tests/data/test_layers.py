from __future__ import annotations

import hashlib
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp.data.index import open_shard
from vlp.data.layer_files import (
    check_file_names,
    find_keys,
    keys_digest,
    layer_columns,
    layer_path,
    list_layers,
    no_layer,
    pick_column,
)
from vlp.data.layers import LayerReader, LayerWriter, check_layer
from vlp.data.shards import Shard, find_shards
from vlp.data.store import Store
from vlp.data.text_lists import TextLists
from vlp.types import UserError

PROVENANCE = {"tool": "test", "options": {"threshold": 3}}
KINDS = {"score": "float", "rewrites": "texts", "lang": "text", "num": "int", "ok": "bool"}


def shards_of(directory: Path) -> list[Shard]:
    return [open_shard(path)[0] for path in find_shards(str(directory))]


@pytest.fixture
def shards(write_shards: Any) -> list[Shard]:
    return shards_of(write_shards(10, 4))


def keys_of(shard: Shard) -> list[str]:
    return [shard.key(row) for row in range(len(shard))]


def values(keys: list[str]) -> dict[str, list[Any]]:
    """Values that tell from which key they are."""
    return {
        "score": [float(key) + 0.5 for key in keys],
        "rewrites": [[f"{key} a", f"{key} b"] for key in keys],
        "lang": [f"lang {key}" for key in keys],
        "num": [int(key) for key in keys],
        "ok": [int(key) % 2 == 0 for key in keys],
    }


def as_list(column: Any) -> list[Any]:
    return [None if isinstance(v, float) and np.isnan(v) else v for v in (column[row] for row in range(len(column)))]


def test_names_and_places() -> None:
    assert layer_path("/data/00000.tar", "x") == "/data/layers/x/00000.parquet"
    assert layer_path("00000.tar", "x") == "./layers/x/00000.parquet"
    assert layer_path("s3://b/t/a.b.tar", "x") == "s3://b/t/layers/x/a.b.parquet"
    assert layer_path("https://h/t/1.tar?sig=a/b", "x") == "https://h/t/layers/x/1.parquet"
    assert layer_path("/data/00000.tar", "x", "/other/") == "/other/x/00000.parquet"
    assert layer_path("pipe:cat '/d/00012.tar'", "x", Path("r")) == "r/x/00012.parquet"


def test_shards_of_one_name_cannot_share_a_root() -> None:
    check_file_names(["a/0.tar", "b/0.tar"])
    check_file_names(["a/0.tar", "b/1.tar"], "root")
    with pytest.raises(UserError, match=r"a/0\.tar and b/0\.tar would share"):
        check_file_names(["a/0.tar", "b/0.tar"], "root")


def test_what_is_written_is_read_for_its_sample(shards: list[Shard]) -> None:
    writer = LayerWriter(None, "mixed", PROVENANCE)
    for shard in shards:
        keys = keys_of(shard)
        some = keys[::-1][: len(keys) - 1]  # another order, and one sample left out
        writer.write(shard, some, values(some))
    paths = [shard.path for shard in shards]
    assert layer_columns("mixed", paths) == KINDS
    reader = LayerReader(None, "mixed", KINDS)
    for shard in shards:
        keys = keys_of(shard)
        read = reader.columns_of(shard)
        for name, wanted in values(keys).items():
            assert as_list(read[name]) == [None, *wanted[1:]], name
        for name in ("score", "num", "ok"):
            assert isinstance(read[name], np.ndarray)
            assert read[name].dtype == np.float64
        assert reader.defect_of(shard) is None


def test_a_full_file_in_the_order_of_the_shard(shards: list[Shard]) -> None:
    keys = keys_of(shards[0])
    LayerWriter(None, "full", {}).write(shards[0], keys, values(keys))
    read = LayerReader(None, "full", {"rewrites": "texts"}).columns_of(shards[0])
    assert list(read) == ["rewrites"]
    assert as_list(read["rewrites"]) == values(keys)["rewrites"]


def test_a_shard_without_a_file_is_not_covered(shards: list[Shard]) -> None:
    LayerWriter(None, "one", {}, KINDS).write(shards[0], [], {name: [] for name in KINDS})
    reader = LayerReader(None, "one", KINDS)
    for shard in shards:
        read = reader.columns_of(shard)
        assert all(as_list(column) == [None] * len(shard) for column in read.values())
        assert reader.defect_of(shard) is None


def test_a_file_for_other_samples_covers_nothing(write_shards: Any) -> None:
    directory = write_shards(4)
    (shard,) = shards_of(directory)
    LayerWriter(None, "score", {}).write(shard, keys_of(shard), {"score": [1.0] * 4})
    for path in directory.glob("0*"):
        path.unlink()
    (directory / "00000.tar").write_bytes((write_shards(5, name="other") / "00000.tar").read_bytes())
    (changed,) = shards_of(directory)
    reader = LayerReader(None, "score", {"score": "float"})
    assert np.isnan(reader.columns_of(changed)["score"]).all()
    defect = reader.defect_of(changed)
    assert defect is not None
    assert (defect.kind, defect.where) == ("stale layer", str(directory / "layers/score/00000.parquet"))
    check = check_layer(changed, "score")
    assert check is not None
    assert (check.stale, check.samples, check.covered, check.num_unknown) == (True, 5, 4, 0)
    assert not LayerWriter(None, "score", {}).has(changed)


@pytest.mark.parametrize("damage", ["cut", "junk", "empty", "no key", "no column", "wrong kind"])
def test_a_broken_file_is_named_and_covers_nothing(shards: list[Shard], damage: str) -> None:
    shard = shards[0]
    path = Path(LayerWriter(None, "x", {}).write(shard, keys_of(shard), {"score": [1.0] * len(shard)}))
    data = path.read_bytes()
    if damage in ("cut", "junk", "empty"):
        path.write_bytes({"cut": data[:-20], "junk": b"PAR1" + b"x" * 100 + b"PAR1", "empty": b""}[damage])
    else:
        table = pq.read_table(path)
        names = {"no key": ["k", "score"], "no column": ["key", "other"], "wrong kind": ["key", "score"]}[damage]
        table = table.rename_columns(names)
        if damage == "wrong kind":
            table = table.set_column(1, "score", pa.array(["high"] * len(shard)))
        pq.write_table(table, path)
    reader = LayerReader(None, "x", {"score": "float"})
    assert np.isnan(reader.columns_of(shard)["score"]).all()
    defect = reader.defect_of(shard)
    assert defect is not None
    assert defect.kind == "unreadable layer"
    assert defect.where.startswith(str(path))
    if damage in ("cut", "junk", "empty", "no key"):
        check = check_layer(shard, "x")
        assert check is not None
        assert check.unreadable


def test_files_of_other_writers_are_joined_by_key(shards: list[Shard]) -> None:
    shard = shards[1]
    keys = keys_of(shard)
    path = Path(layer_path(shard.path, "foreign"))
    path.parent.mkdir(parents=True)
    code = pa.array(["b", "a", "b"]).dictionary_encode()
    rows = {
        "note": [None] * 3,
        "key": [keys[2], "of no shard", keys[0]],
        "code": code,
        "v": pa.array([3, 9, 1], "int8"),
    }
    pq.write_table(pa.table(rows), path, row_group_size=1)
    assert layer_columns("foreign", [s.path for s in shards]) == {"code": "text", "v": "int"}
    read = LayerReader(None, "foreign", {"code": "text", "v": "int"}).columns_of(shard)
    assert as_list(read["code"]) == ["b", None, "b", None]
    assert as_list(read["v"]) == [1, None, 3, None]
    check = check_layer(shard, "foreign")
    assert check is not None
    assert (check.covered, check.num_unknown, check.unknown, check.stale) == (2, 1, ("of no shard",), False)


def test_keys_that_are_not_utf8(write_tar: Any) -> None:
    odd = "caf\udce9"  # a byte of Latin-1
    (shard, _) = open_shard(str(write_tar([(f"{odd}.png", b"x"), ("b.png", b"y")])))
    LayerWriter(None, "x", {}).write(shard, ["b", odd], {"v": [2, 1]})
    assert LayerReader(None, "x", {"v": "int"}).columns_of(shard)["v"].tolist() == [1, 2]
    assert check_layer(shard, "x").covered == 2  # type: ignore[union-attr]


def test_bytes_are_reproducible_and_nothing_is_left_half_written(shards: list[Shard], tmp_path: Path) -> None:
    digests = []
    for root in (tmp_path / "one", tmp_path / "two"):
        keys = keys_of(shards[0])[:: 1 if root.name == "one" else -1]
        path = Path(LayerWriter(root, "x", PROVENANCE).write(shards[0], keys, values(keys)))
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
        assert [file.name for file in path.parent.iterdir()] == ["00000.parquet"]
    assert digests[0] == digests[1]


def test_resuming_finds_what_is_done(shards: list[Shard], tmp_path: Path) -> None:
    writer = LayerWriter(tmp_path, "x", PROVENANCE)
    assert not writer.has(shards[0])
    path = Path(writer.write(shards[0], [], {"v": []}))
    assert LayerWriter(tmp_path, "x", dict(reversed(PROVENANCE.items()))).has(shards[0])
    assert not writer.has(shards[1])
    assert not LayerWriter(tmp_path, "x", {"tool": "test"}).has(shards[0])
    path.write_bytes(path.read_bytes()[:-3])
    assert not writer.has(shards[0])


def test_what_the_writer_refuses(shards: list[Shard]) -> None:
    writer, shard = LayerWriter(None, "x", {}), shards[0]
    first, second = keys_of(shard)[:2]
    for keys, columns, sentence in (
        ([first, "nowhere"], {"v": [1, 2]}, "00000.tar has no sample 'nowhere'"),
        ([first, second, first], {"v": [1, 2, 3]}, f"the key '{first}' of .* comes twice"),
        ([first], {"v": [1, 2]}, "'v' has 2 values for 1 keys"),
        ([first], {"v": [{"a": 1}]}, "column 'v' must be text, texts, float, int, bool"),
        ([first, second], {"v": [1, "a"]}, "column 'v' must be"),
        ([first], {"v": [2**80]}, "column 'v' must be"),
        ([first], {"v": ["\udce9"]}, "column 'v' must be text"),
        ([first], {"key": ["a"]}, "'key' cannot name a column"),
        ([first], {"a.b": [1]}, "'a.b' cannot name a column"),
    ):
        with pytest.raises(UserError, match=sentence):
            writer.write(shard, keys, columns)
    assert not Path(writer.path(shard)).parent.exists()
    for name in ("a-b", "", "1a", "not", "../a"):
        with pytest.raises(UserError, match="cannot name a layer"):
            LayerWriter(None, name, {})


def test_all_shards_have_the_same_columns(shards: list[Shard]) -> None:
    LayerWriter(None, "x", {}).write(shards[0], keys_of(shards[0])[:1], {"v": [1.5]})
    again = LayerWriter(None, "x", {})
    key = keys_of(shards[1])[:1]
    again.write(shards[1], key, {"v": [2]})  # an integer is a float where floats are asked for
    for columns in ({"v": ["a"]}, {"w": [1.0]}, {"v": [1.0], "w": [1.0]}):
        with pytest.raises(UserError, match=r"layer x: .*(remove it or choose another name|must be float)"):
            LayerWriter(None, "x", {}).write(shards[1], key, columns)
    with pytest.raises(UserError, match=r"v \(int\)"):
        LayerWriter(None, "x", {}, types={"v": "int"}).write(shards[1], key, {"v": [1]})
    assert layer_columns("x", [shards[1].path]) == {"v": "float"}


def test_the_only_file_may_get_new_columns(shards: list[Shard]) -> None:
    for columns in ({"v": [1.5]}, {"w": ["a"]}):
        LayerWriter(None, "x", {}).write(shards[0], keys_of(shards[0])[:1], columns)
    assert layer_columns("x", [shards[0].path]) == {"w": "text"}


def test_kinds_given_hold_for_empty_values(shards: list[Shard]) -> None:
    key = keys_of(shards[0])[:1]
    LayerWriter(None, "x", {}, types=KINDS).write(shards[0], key, {name: [None] for name in KINDS})
    assert layer_columns("x", [shards[0].path]) == KINDS
    LayerWriter(None, "y", {}).write(shards[0], key, {"a": [None], "b": [[]], "c": np.array([1], np.float32)})
    assert layer_columns("y", [shards[0].path]) == {"a": "text", "b": "texts", "c": "float"}


def test_integers_that_floats_cannot_hold_are_not_rounded(shards: list[Shard]) -> None:
    LayerWriter(None, "x", {}).write(shards[0], keys_of(shards[0])[:1], {"v": [2**53 + 1]})
    defect = LayerReader(None, "x", {"v": "int"}).defect_of(shards[0])
    assert defect is not None
    assert defect.kind == "unreadable layer"


def test_listing_and_errors(shards: list[Shard]) -> None:
    paths = [shard.path for shard in shards]
    assert list_layers(paths) == []
    assert layer_columns("score", paths) is None
    LayerWriter(None, "score", {}).write(shards[2], [], {"v": []})  # the last shard only
    LayerWriter(None, "rewrites", {}).write(shards[0], [], {"v": []})
    assert list_layers(paths) == ["rewrites", "score"]
    assert layer_columns("score", paths) == {"v": "text"}
    assert "no layer 'scor' in /d: the layers there are: score, rewrites" in str(
        no_layer("data.filter", "scor", ["rewrites", "score"], "/d")
    )
    assert pick_column("w", "x", {"a": "int", "b": "text"}, None, ("text",)) == "b"
    for column, kinds, sentence in (
        (None, ("text", "int"), "several columns"),
        (None, ("bool",), "no column of bool"),
        ("c", ("text",), "no column 'c'"),
        ("a", ("text",), "is not text"),
    ):
        with pytest.raises(UserError, match=sentence):
            pick_column("w", "x", {"a": "int", "b": "text"}, column, kinds)


def test_the_cache_is_bounded_and_stays_home(write_shards: Any) -> None:
    found = shards_of(write_shards(12, 3))
    writer = LayerWriter(None, "x", {})
    for shard in found:
        writer.write(shard, keys_of(shard), {"v": list(range(len(shard)))})
    reader = LayerReader(None, "x", {"v": "int"}, kept_shards=2)
    for shard in found:
        first = reader.columns_of(shard)["v"]
        assert reader.columns_of(shard)["v"] is first
    assert list(reader._cache) == [found[2].path, found[3].path]
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._cache
    assert copy.columns_of(found[0])["v"].tolist() == [0, 1, 2]


def test_a_forked_worker_reads_what_its_parent_does(shards: list[Shard]) -> None:
    keys = keys_of(shards[0])
    LayerWriter(None, "x", {}).write(shards[0], keys, values(keys))
    reader = LayerReader(None, "x", KINDS)
    before = as_list(reader.columns_of(shards[0])["rewrites"])
    with multiprocessing.get_context("fork").Pool(1) as pool:
        for read in (reader, LayerReader(None, "x", KINDS)):
            assert pool.apply_async(_rewrites, (read, shards[0])).get(timeout=30) == before


def _rewrites(reader: LayerReader, shard: Shard) -> list[Any]:
    return as_list(reader.columns_of(shard)["rewrites"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 60), unique=True), st.lists(st.integers(0, 60)))
def test_finding_keys_as_a_dictionary_does(keys: list[int], wanted: list[int]) -> None:
    def as_bytes(numbers: list[int]) -> np.ndarray:
        return np.array([str(number).encode() for number in numbers], dtype=np.bytes_)

    places = {number: place for place, number in enumerate(keys)}
    rows, found = find_keys(as_bytes(wanted), as_bytes(keys))
    assert found.tolist() == [number in places for number in wanted]
    assert rows.tolist() == [places.get(number, 0) for number in wanted]


def test_the_digest_knows_the_order_and_the_bounds_of_keys(write_tar: Any) -> None:
    digests = set()
    for names in (["a", "bc"], ["ab", "c"], ["bc", "a"]):
        members = [(f"{name}.png", b"x") for name in names]
        digests.add(keys_digest(open_shard(str(write_tar(members)))[0]))
    assert len(digests) == 3


def test_layers_behind_http(shards: list[Shard], tmp_path: Path, web: Any) -> None:
    keys = keys_of(shards[0])
    path = LayerWriter(tmp_path, "x", {}).write(shards[0], keys, {"v": [f"of {key}" for key in keys]})
    web.files["layers/x/00000.parquet"] = Path(path).read_bytes()
    root, paths = web.url("layers"), [shard.path for shard in shards]
    assert layer_columns("x", paths, root) == {"v": "text"}
    reader = LayerReader(root, "x", {"v": "text"})
    assert reader.columns_of(shards[0])["v"].tolist() == [f"of {key}" for key in keys]
    assert reader.columns_of(shards[1])["v"].tolist() == [None] * len(shards[1])
    assert layer_columns("y", paths, root) is None
    assert list_layers(paths, root) == []
    web.absent = 403  # as buckets whose list is secret say of what is not there
    assert layer_columns("y", paths, root) is None
    reader = LayerReader(root, "x", {"v": "text"})
    assert reader.columns_of(shards[1])["v"].tolist() == [None] * len(shards[1])
    assert reader.defect_of(shards[1]) is None
    assert check_layer(shards[1], "x", root) is None
    assert not LayerWriter(root, "x", {}).has(shards[1])
    with pytest.raises(UserError, match=r"cannot (be written|write)"):
        LayerWriter(root, "y", {}).write(shards[0], [], {"v": []})


def test_layers_in_a_bucket(shards: list[Shard], s3: Any) -> None:
    """The default root of a shard in a bucket, and another one, written and read there."""
    for shard in shards:
        Store().write(f"s3://shards/train/{Path(shard.path).name}", Path(shard.path).read_bytes())
    there = [open_shard(path)[0] for path in find_shards("s3://shards/train")]
    writer = LayerWriter(None, "x", PROVENANCE)
    keys = keys_of(there[1])
    assert not writer.has(there[1])
    assert writer.write(there[1], keys, {"v": [float(key) for key in keys]}) == (
        "s3://shards/train/layers/x/00001.parquet"
    )
    assert writer.has(there[1])
    paths = [shard.path for shard in there]
    assert list_layers(paths) == ["x"]
    assert layer_columns("x", paths) == {"v": "float"}
    assert LayerReader(None, "x", {"v": "float"}).columns_of(there[1])["v"].tolist() == [float(key) for key in keys]
    with pytest.raises(UserError, match="remove it or choose another name"):
        LayerWriter(None, "x", {}, {"w": "text"}).write(there[0], [], {"w": []})
    LayerWriter("s3://shards/other/", "y", {}).write(there[0], [], {"v": []})
    assert list_layers(paths, "s3://shards/other") == ["y"]


# ---- Lists of text, decoded one by one

LISTS = st.lists(st.none() | st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), max_size=4))


@given(LISTS, st.data())
def test_texts_one_by_one_are_those_of_arrow(rows: list[list[str | None] | None], data: st.DataObject) -> None:
    """Also where the array is a part of another, or in another order with gaps, as a join makes it."""
    array = pa.array([["before"], *rows, ["behind"]], pa.list_(pa.string()))[1:-1]
    order = data.draw(st.lists(st.none() | st.integers(0, len(rows) - 1), max_size=8)) if rows else []
    for part in (array, array.take(pa.array(order, pa.int64()))):
        lists = TextLists(part)
        for row, texts in enumerate(part.to_pylist()):
            expected = [text.strip() for text in texts or () if text is not None]
            found = lists.texts(row)
            assert list(found) == expected
            assert len(found) == len(expected)
            assert [found[i] for i in range(len(found))] == expected


def test_a_list_that_is_no_list_says_nothing() -> None:
    """Arrow allows a missing list to span texts; they are no one's."""
    array = pa.ListArray.from_arrays(pa.array([0, 2, 3]), pa.array(["a", "b", "c"]), mask=pa.array([True, False]))
    assert [list(TextLists(array).texts(row)) for row in range(2)] == [[], ["c"]]
