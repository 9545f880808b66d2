from __future__ import annotations

import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.index import write_index
from vlp.data.batches import DataOptions, TrainingData
from vlp.data.cache import CacheOptions
from vlp.data.captions import CaptionSource
from vlp.data.index import open_shard
from vlp.data.layers import LayerWriter
from vlp.data.sources import Source, Sources, open_sources
from vlp.data.store import Store
from vlp.data.transforms import PictureFormat
from vlp.types import UserError

WriteShards = Callable[..., Path]
WriteTar = Callable[..., Path]
FORMAT = PictureFormat((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def opened(*sources: Source | str | Path, condition: str | None = None) -> Sources:
    listed = [source if isinstance(source, Source) else Source(shards=str(source)) for source in sources]
    return open_sources(listed, condition, Store())


def keys(sources: Sources, num: int, seed: int = 3, window: int = 100) -> list[str]:
    order = sources.order(seed, window, 4)
    found = (sources.row(*order.sample(position)) for position in range(num))
    return [f"{shard.path.rpartition('/')[0].rpartition('/')[2]}/{shard.key(row)}" for shard, row in found]


def tokens(captions: list[str]) -> torch.Tensor:
    return torch.tensor([list(caption.encode()[:12].ljust(12)) for caption in captions])


def batches(steps: int, batch: int = 4, **options: Any) -> list[Any]:
    data = TrainingData(DataOptions(workers=0, **options), FORMAT, tokens, batch, seed=5)
    return list(data.batches(0, steps))


# ---- Counting


def test_the_order_is_the_same_with_stats_with_an_index_and_by_scanning(write_shards: WriteShards) -> None:
    folder = write_shards(23, 5)
    counted = opened(folder)
    assert all(entry.table is None for entry in counted.entries)
    assert "have no index (counted by _stats.json)" in counted.notes[0]
    for stats in folder.glob("*_stats.json"):
        stats.unlink()
    scanned = opened(folder)
    assert "5 of 5 shards are scanned now" in scanned.notes[0]
    write_index([str(folder)])
    indexed = opened(folder)
    assert indexed.notes == []
    assert keys(counted, 30) == keys(scanned, 30) == keys(indexed, 30)
    assert counted.digest() == scanned.digest() == indexed.digest()
    assert counted.digest() != opened(folder / "0000[0-3].tar").digest()


def test_tables_are_opened_when_they_are_needed(write_shards: WriteShards) -> None:
    folder = write_shards(64, 2)
    write_index([str(folder)])
    sources = opened(folder)
    assert all(entry.table is None for entry in sources.entries)
    keys(sources, 3, window=2)
    assert len(sources._tables) <= 3


def test_a_count_that_promises_too_much_costs_only_the_missing_samples(write_shards: WriteShards) -> None:
    folder = write_shards(20, 10)
    (folder / "00001_stats.json").write_text('{"successes": 12}')
    made = batches(6, train=str(folder), max_bad_fraction=0.5)
    skipped = [bad for batch in made for bad in batch.skipped]
    assert {bad.kind for bad in skipped} == {"missing sample"}
    assert {bad.where for bad in skipped} <= {f"{folder}/00001.tar: sample {row}" for row in (10, 11)}
    assert skipped


def test_a_count_that_hides_samples_is_refused(write_shards: WriteShards) -> None:
    folder = write_shards(20, 10)
    (folder / "00001_stats.json").write_text('{"successes": 9}')
    with pytest.raises(UserError, match=r"00001\.tar holds 10 samples, but _stats\.json counts 9"):
        batches(6, train=str(folder))


def test_lost_shards_weigh_as_much_as_the_others_hold(write_shards: WriteShards) -> None:
    folder = write_shards(30, 10)
    for stats in folder.glob("*_stats.json"):
        stats.unlink()
    (folder / "00001.tar").write_bytes(b"no tar")
    sources = opened(folder / "{00000..00004}.tar")
    assert [(bad.kind, bad.samples) for bad in sources.defects] == [
        ("not a tar", 10),
        ("missing shard", 10),
        ("missing shard", 10),
    ]
    assert [Path(entry.path).stem for entry in sources.entries] == ["00000", "00002"]
    with pytest.raises(UserError, match=r"data\.max_bad_fraction: 30 bad samples among"):
        batches(1, train=str(folder / "{00000..00004}.tar"))


@pytest.mark.parametrize(("data", "kind"), [(b"", "not a tar"), (bytes(10240), "empty shard")])
def test_nothing_usable(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "00000.tar").write_bytes(data)
    with pytest.raises(UserError, match=f"no usable sample in 1 shards .*{kind}"):
        opened(tmp_path)


def test_worker_processes_get_little(write_shards: WriteShards) -> None:
    folder = write_shards(200, 100)
    write_index([str(folder)])
    sources = opened(folder)
    keys(sources, 10)
    assert len(pickle.dumps(opened(folder))) < 5000


# ---- Several sources


def test_plain_sources_make_one_epoch(write_shards: WriteShards) -> None:
    a, b = write_shards(12, 5, name="a"), write_shards(8, 5, name="b")
    assert len(set(keys(opened(a, b), 20))) == 20


def test_weighted_sources_are_mixed_in_exact_proportions(write_shards: WriteShards) -> None:
    a, b = write_shards(12, 5, name="a"), write_shards(8, 5, name="b")
    mixed = opened(Source(shards=str(a), weight=1), Source(shards=str(b), weight=3))
    drawn = Counter(key.partition("/")[0] for key in keys(mixed, 1000))
    assert drawn == {"a": 250, "b": 750}
    every = Counter(keys(mixed, 1000))
    counts_a = [count for key, count in every.items() if key.startswith("a/")]
    assert (min(counts_a), max(counts_a)) == (20, 21), "without replacement all come equally often"


def test_with_replacement_some_come_more_often(write_shards: WriteShards) -> None:
    a, b = write_shards(12, 5, name="a"), write_shards(8, 5, name="b")
    mixed = opened(Source(shards=str(a), weight=1, replacement=True), Source(shards=str(b), weight=3))
    counts = Counter(key for key in keys(mixed, 1000, window=10) if key.startswith("a/"))
    assert max(counts.values()) > min(counts.values()) + 1
    assert sum(counts.values()) == 250


@pytest.mark.parametrize(
    ("sources", "sentence"),
    [
        ([{"shards": "A", "weight": 1}, {"shards": "B"}], "some sources have a weight and some have none"),
        ([{"shards": "A", "weight": 1}], "the weight of the only source would have no effect"),
        ([{"shards": "A", "replacement": True}, {"shards": "B"}], "replacement among several sources needs a weight"),
        ([{"shards": "A", "weight": 1}, {"shards": "A", "weight": 1}], "twice"),
        ([{"shards": "A", "weight": 1e-9}, {"shards": "B", "weight": 1}], "less than a 100,000th"),
    ],
)
def test_mixtures_without_sense_are_refused(
    write_shards: WriteShards, sources: Sequence[dict[str, Any]], sentence: str
) -> None:
    folders = {name: str(write_shards(6, 5, name=name)) for name in "AB"}
    with pytest.raises(UserError, match=sentence):
        opened(*(Source(**{**source, "shards": folders[source["shards"]]}) for source in sources))


def test_sources_in_a_recipe(write_shards: WriteShards) -> None:
    a, b = str(write_shards(12, 5, name="a")), str(write_shards(8, 5, name="b"))
    assert DataOptions(train=a).sources == [Source(shards=[a])]
    assert DataOptions(train=[a, b]).sources == [Source(shards=[a, b])]
    mixed = DataOptions.model_validate({"train": [{"shards": a, "weight": 1}, {"shards": b, "weight": 2}]})
    assert [source.weight for source in mixed.sources] == [1, 2]


# ---- Layers


def write_layer(folder: Path, name: str, root: Path | None = None, **columns: Callable[[int], Any]) -> None:
    """A layer whose value is a function of the sample's number."""
    writer = LayerWriter(root, name, {"tool": "test"})
    number = 0
    for path in sorted(folder.glob("*.tar")):
        shard, _ = open_shard(str(path))
        numbers = range(number, number + len(shard))
        values = {column: [value(i) for i in numbers] for column, value in columns.items()}
        writer.write(shard, [shard.key(row) for row in range(len(shard))], values)
        number += len(shard)


@pytest.mark.parametrize("beside", [True, False])
def test_a_filter_keeps_what_it_says_and_every_one_once(
    write_shards: WriteShards, tmp_path: Path, beside: bool
) -> None:
    folder, root = write_shards(30, 7), None if beside else tmp_path / "layers"
    write_layer(folder, "aesthetic", root, score=float)
    write_layer(folder, "lang", root, code=lambda i: "en" if i % 2 else None)
    source = Source(shards=str(folder), layers=root and str(root))
    sources = opened(source, condition="aesthetic >= 10 and lang == 'en'")
    assert sources.num_samples == 10
    assert sources.notes[-1] == "data.filter keeps 10 of 30 samples; 10 are left out because a layer lacks them"
    kept = keys(sources, 10)
    assert sorted(int(key.split("/")[1][5:]) + 7 * int(key.split("/")[1][:5]) for key in kept) == [*range(11, 30, 2)]
    assert sources.digest() != opened(source, condition="aesthetic >= 10 and lang == 'en' or aesthetic < 1").digest()


def test_filters_without_effect_or_sense(write_shards: WriteShards) -> None:
    folder = write_shards(10, 4)
    write_layer(folder, "aesthetic", score=float)
    with pytest.raises(UserError, match="keeps 0 of 10 samples"):
        opened(folder, condition="aesthetic > 100")
    with pytest.raises(UserError, match=r"data\.filter.*no layer 'aestetic'.*aesthetic"):
        opened(folder, condition="aestetic > 1")


def test_captions_from_a_layer(write_shards: WriteShards) -> None:
    folder = write_shards(12, 5)
    write_layer(folder, "rewrites", texts=lambda i: [f"a rewrite {i}", f"another rewrite {i}"] if i != 3 else [])
    captions = [CaptionSource(source="layer.rewrites")]
    drawn = [caption for batch in batches(3, train=str(folder), captions=captions) for caption in batch.captions]
    assert sorted(int(caption.split()[-1]) for caption in drawn) == [*range(12)]
    assert [caption for caption in drawn if "rewrite" not in caption] == ["caption 3"], "it falls back to the .txt"


def test_one_source_may_lack_a_layer_that_another_has(write_shards: WriteShards, tmp_path: Path) -> None:
    a, b = write_shards(6, 5, name="a"), write_shards(6, 5, name="b")
    write_layer(a, "rewrites", tmp_path / "la", text=lambda i: f"a rewrite {i}")
    train = [Source(shards=str(a), layers=str(tmp_path / "la")), Source(shards=str(b), layers=str(tmp_path / "lb"))]
    captions = [CaptionSource(source="layer.rewrites"), CaptionSource(source="txt", weight=1e-9)]
    drawn = [caption for batch in batches(3, train=train, captions=captions) for caption in batch.captions]
    assert sum("rewrite" in caption for caption in drawn) == 6
    with pytest.raises(UserError, match="no layer 'rewritten'"):
        batches(1, train=train, captions=[CaptionSource(source="layer.rewritten")])


def test_a_layer_of_other_samples_stops_the_run(write_shards: WriteShards) -> None:
    folder = write_shards(12, 5)
    write_layer(folder, "rewrites", text=lambda i: f"a rewrite {i}")
    shutil.copy(folder / "layers/rewrites/00000.parquet", folder / "layers/rewrites/00001.parquet")
    with pytest.raises(UserError, match=r"data\.captions: stale layer .*00001\.parquet"):
        batches(3, train=str(folder), captions=[CaptionSource(source="layer.rewrites")])
    with pytest.raises(UserError, match=r"data\.filter: stale layer .*00001\.parquet"):
        opened(folder, condition="rewrites != 'x'")


# ---- Views


def test_views_are_crops_of_the_same_pictures(write_shards: WriteShards) -> None:
    folder = write_shards(12, 5)
    options = DataOptions(train=str(folder), workers=0)
    one, three = (
        next(TrainingData(options, FORMAT, tokens, 4, seed=5, image_views=views).batches(0, 1)) for views in (1, 3)
    )
    assert three.image_VNCHW.shape == (3, 4, 3, 8, 8)
    assert torch.equal(one.image_NCHW, three.image_NCHW), "the first view does not depend on their number"
    assert not torch.equal(three.image_VNCHW[0], three.image_VNCHW[1])
    assert one.captions == three.captions
    assert three.rows(1, 3).image_VNCHW.shape == (3, 2, 3, 8, 8)


# ---- Remote shards


def test_a_cache_that_is_too_small_is_told(write_shards: WriteShards) -> None:
    folder = write_shards(40, 4)
    source = Source(shards=f"pipe:cat {folder}/{{00000..00009}}.tar", index=str(folder / "index"))
    write_index([str(folder)])
    sources = opened(source)
    sources.order(3, 20, 4)
    assert sources.room(CacheOptions()) == [], "the length of what a command prints is not known"
    counted = opened(folder)
    counted.order(3, 20, 4)
    for entry in counted.entries:
        entry.path = f"memory://{entry.path}"
        Store().write(entry.path, b"x" * 10**6)
    entry.origin = "_stats.json"
    assert counted.room(CacheOptions()) == []
    (note,) = counted.room(CacheOptions(folder="anywhere", gigabytes=0.002))
    assert "data.cache.gigabytes: a batch mixes samples of 10 shards of 0.01 GB together" in note


def test_a_mistake_on_any_rank_ends_all_with_its_sentence(write_shards: WriteShards, run_ranks: Any) -> None:
    folder = write_shards(16, 4)
    write_layer(folder, "aesthetic", score=float)
    shutil.copy(folder / "layers/aesthetic/00000.parquet", folder / "layers/aesthetic/00001.parquet")
    for sentence in run_ranks(_sentence, 2, str(folder)):
        assert "data.filter: stale layer" in sentence


def _sentence(rank: int, world: int, folder: str) -> str:
    try:
        open_sources([Source(shards=folder)], "aesthetic > 1", Store())
    except UserError as error:
        return str(error)
    return ""


def test_ranks_share_the_scan(write_shards: WriteShards, run_ranks: Any) -> None:
    folder = write_shards(16, 4)
    for stats in folder.glob("*_stats.json"):
        stats.unlink()
    assert run_ranks(_scanned, 2, str(folder)) == [([4, 4, 4, 4], 2), ([4, 4, 4, 4], 2)]


def _scanned(rank: int, world: int, folder: str) -> tuple[list[int], int]:
    sources = open_sources([Source(shards=folder)], None, Store())
    return [entry.count for entry in sources.entries], sum(entry.table is not None for entry in sources.entries)
