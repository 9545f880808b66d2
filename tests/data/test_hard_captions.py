"""Hard captions and neighbours beside a sample: what is drawn, and that it changes nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from vlp.data import layers
from vlp.data.batches import TrainingData
from vlp.data.captions import CaptionSource
from vlp.data.hard_captions import draw_hard
from vlp.data.index import open_shard
from vlp.data.layers import LayerWriter
from vlp.data.options import DataOptions
from vlp.data.shards import find_shards
from vlp.data.transforms import AugmentOptions, PictureFormat
from vlp.data.write import encode_image
from vlp.types import Batch, UserError

WriteShards = Callable[..., Path]
FORMAT = PictureFormat((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
HARD = CaptionSource(source="layer.hard")
AUGMENT = AugmentOptions(crop_scale=(0.5, 1.0), flip=0.5)


def ids(captions: list[str]) -> torch.Tensor:
    return torch.tensor([list(caption.encode()[:24].ljust(24)) for caption in captions])


def text(ids_L: torch.Tensor) -> str:
    return bytes(ids_L.tolist()).decode().rstrip()


def data(folder: Path, batch: int = 4, hard: int = 0, rank: int = 0, world: int = 1, **options: Any) -> TrainingData:
    given = {"workers": 0, "shuffle_window": 7, "augment": AUGMENT, **options}
    return TrainingData(
        DataOptions(train=str(folder), **given), FORMAT, ids, batch, seed=5, rank=rank, world=world, hard_texts=hard
    )


def write_layer(folder: Path, name: str, column: str, of_row: Callable[[int], Sequence[str]]) -> None:
    """``of_row(number of the sample in the set)`` -> its texts."""
    number = 0
    for path in find_shards(str(folder)):
        shard, _ = open_shard(path)
        texts = [list(of_row(number + row)) for row in range(len(shard))]
        number += len(shard)
        keys = [shard.key(row) for row in range(len(shard))]
        LayerWriter(None, name, {}, {column: "texts"}).write(shard, keys, {column: texts})


def content(batches: Sequence[Batch]) -> list[tuple[str, str, bytes, bytes]]:
    return [
        (key, caption, image.numpy().tobytes(), text.numpy().tobytes())
        for batch in batches
        for key, caption, image, text in zip(batch.keys, batch.captions, batch.image_NCHW, batch.text_NL, strict=True)
    ]


def number_of(caption: str) -> int:
    return int(caption.split()[1])


# ---- Drawing


def drawn(number: int, layered: dict[str, list[str]], sources: Sequence[CaptionSource], times: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for seed in range(times):
        generator = np.random.default_rng(seed)
        texts = draw_hard(number, ["the caption"], {"txt": b"the caption"}, sources, generator, layered)
        assert len(set(texts)) == len(texts)
        found.update(texts)
    return found


def test_they_are_drawn_alike_and_without_replacement():
    found = drawn(1, {"layer.hard": ["a b", "c d", "e f"]}, [HARD], 3000)
    assert all(abs(count - 1000) < 110 for count in found.values())
    assert drawn(2, {"layer.hard": ["a b", "c d", "e f"]}, [HARD], 10).total() == 20
    assert drawn(5, {"layer.hard": ["a b", "c d", "e f"]}, [HARD], 10).total() == 30


def test_sources_are_drawn_by_their_weights():
    layered = {"layer.one": ["a b"], "layer.two": ["c d", "e f"]}
    sources = [CaptionSource(source="layer.one", weight=1), CaptionSource(source="layer.two", weight=3)]
    found = drawn(1, layered, sources, 4000)
    assert abs(found["a b"] - 1000) < 130
    assert abs(found["c d"] - 1500) < 150
    each = [CaptionSource(source="layer.one"), CaptionSource(source="layer.two", each=True, weight=3)]
    assert abs(drawn(1, layered, each, 4000)["a b"] - 4000 / 7) < 110


def test_a_true_caption_is_never_one_and_there_is_nothing_to_fall_back_to():
    assert drawn(1, {"layer.hard": ["the caption", "a b"]}, [HARD], 20) == {"a b": 20}
    assert drawn(1, {"layer.hard": ["the caption", ""]}, [HARD], 20) == {}
    assert drawn(1, {"layer.hard": []}, [HARD], 20) == {}
    assert drawn(1, {"layer.hard": ["The Caption ", "  ", " a b"]}, [HARD], 20) == {"a b": 20}
    assert drawn(1, {"layer.hard": ["word"]}, [HARD], 20) == {"word": 20}, "a caption of one word has one of one word"


def test_a_weight_of_zero_leaves_a_source_out_and_the_true_caption_is_refused():
    none, some = CaptionSource(source="layer.none", weight=0), CaptionSource(source="layer.some")
    assert DataOptions(train="x", hard_captions=[none, some]).hard_captions == [some]
    assert DataOptions(train="x", hard_captions=[]).hard_captions == []
    with pytest.raises(ValidationError, match="no source has a weight above 0"):
        DataOptions(train="x", hard_captions=[none])
    with pytest.raises(ValidationError, match="txt is the true caption"):
        DataOptions(train="x", hard_captions=[CaptionSource(source="txt")])


# ---- In batches


def test_batches_hold_those_of_their_rows_and_are_otherwise_the_same(write_shards: WriteShards) -> None:
    folder = write_shards(10, 4)
    write_layer(folder, "hard", "negatives", lambda n: [f"no {n} {k}" for k in range(n % 3)])
    plain = list(data(folder).batches(0, 5))
    with_hard = list(data(folder, hard=2, hard_captions=[HARD]).batches(0, 5))
    assert content(with_hard) == content(plain)
    assert all(batch.hard_text_KNL is None for batch in plain)
    for batch in with_hard:
        assert batch.hard_text_KNL is not None
        assert batch.hard_mask_KN is not None
        assert batch.hard_text_KNL.shape == (2, 4, 24)
        for row, caption in enumerate(batch.captions):
            number = number_of(caption)
            texts = [text(batch.hard_text_KNL[k, row]) for k in range(2) if batch.hard_mask_KN[k, row]]
            assert sorted(texts) == [f"no {number} {k}" for k in range(number % 3)]
    epochs = [{text(b.hard_text_KNL[0, r]) for b in with_hard for r in range(4) if b.hard_mask_KN[1, r]}]  # type: ignore[index]
    assert len(epochs[0]) > 3, "they are drawn anew"


@pytest.mark.parametrize("world", [1, 2])
def test_any_world_and_any_number_of_workers_draw_the_same(write_shards: WriteShards, world: int) -> None:
    folder = write_shards(10, 4)
    write_layer(folder, "hard", "negatives", lambda n: [f"no {n} {k}" for k in range(4)])
    (whole,) = data(folder, hard=1, hard_captions=[HARD]).batches(3, 4)
    parts = [
        next(data(folder, hard=1, rank=r, world=world, workers=1, hard_captions=[HARD]).batches(3, 4))
        for r in range(world)
    ]
    together = torch.stack([part.hard_text_KNL for part in parts], 2).flatten(1, 2)  # type: ignore[arg-type]
    assert torch.equal(together, whole.hard_text_KNL)  # type: ignore[arg-type]


def test_a_part_of_a_batch_keeps_its_own(write_shards: WriteShards) -> None:
    folder = write_shards(8, 4)
    write_layer(folder, "hard", "negatives", lambda n: [f"no {n}"])
    (batch,) = data(folder, hard=1, hard_captions=[HARD]).batches(0, 1)
    part = batch.rows(1, 3).to("cpu")
    assert part.hard_text_KNL is not None
    assert [text(ids_L) for ids_L in part.hard_text_KNL[0]] == [f"no {number_of(c)}" for c in batch.captions[1:3]]
    assert part.hard_mask_KN.tolist() == [[True, True]]  # type: ignore[union-attr]


def test_what_has_no_effect_is_refused(write_shards: WriteShards) -> None:
    folder = write_shards(8, 4)
    write_layer(folder, "hard", "negatives", lambda n: [])
    with pytest.raises(UserError, match=r"data.hard_captions: 'layer.hard' has no text for any shard"):
        data(folder, hard=1, hard_captions=[HARD])
    with pytest.raises(UserError, match=r"data.hard_captions: .*no layer 'nowhere'|data.hard_captions: .*nowhere"):
        data(folder, hard=1, hard_captions=[CaptionSource(source="layer.nowhere")])
    with pytest.raises(UserError, match=r"data.hard_captions: no sample looked at has 'json.none'"):
        data(folder, hard=1, hard_captions=[CaptionSource(source="json.none")])
    write_layer(folder, "two", "negatives", lambda n: ["a b", "c d", "A B"][: n % 4])
    with pytest.raises(UserError, match=r"data.hard_captions: 4 hard captions .* more than 3: set number"):
        data(folder, hard=4, hard_captions=[CaptionSource(source="layer.two")])


# ---- Neighbours


def neighbours(num_samples: int, samples_per_shard: int) -> Callable[[int], list[str]]:
    """Of sample n the two after it, wherever they lie; of the last one none."""

    def of_row(n: int) -> list[str]:
        there = [(n + k) % num_samples for k in (1, 2)] if n < num_samples - 1 else []
        return [f"{m // samples_per_shard:05d}/{m // samples_per_shard:05d}{m % samples_per_shard:04d}" for m in there]

    return of_row


def pairs(batches: Sequence[Batch]) -> list[tuple[int, int]]:
    numbers = [number_of(caption) for batch in batches for caption in batch.captions]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_beside_each_sample_stands_one_of_its_neighbours(write_shards: WriteShards) -> None:
    folder = write_shards(10, 4)
    keys = [open_shard(path)[0].key(0) for path in find_shards(str(folder))]
    assert keys == ["000000000", "000010000", "000020000"]
    write_layer(folder, "near", "neighbours", neighbours(10, 4))
    write_layer(folder, "hard", "negatives", lambda n: [f"no {n}"])
    given = {"neighbours": "layer.near", "hard_captions": [HARD]}
    plain = list(data(folder).batches(0, 5))
    batches = list(data(folder, hard=1, **given).batches(0, 5))
    found = pairs(batches)
    assert all(len(batch) == 8 for batch in batches)
    assert all((other - own) % 10 in (1, 2) for own, other in found if own != 9)
    assert {(other - own) % 10 for own, other in found if own != 9} == {1, 2}, "they are drawn"
    own_rows = [row for place, row in enumerate(content(batches)) if place % 2 == 0]
    assert own_rows == content(plain), "the samples themselves stay what they are"
    for batch in batches:
        assert batch.hard_text_KNL is not None
        assert [text(i) for i in batch.hard_text_KNL[0]] == [f"no {number_of(c)}" for c in batch.captions]
    assert not any(batch.skipped for batch in batches), "a sample without neighbours is no bad sample"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_neighbours_are_the_same_on_any_number_of_processes_and_workers(write_shards: WriteShards) -> None:
    folder = write_shards(12, 5)
    write_layer(folder, "near", "neighbours", neighbours(12, 5))
    whole = content(list(data(folder, neighbours="layer.near").batches(2, 4)))
    parts = [list(data(folder, rank=r, world=2, workers=2, neighbours="layer.near").batches(2, 4)) for r in range(2)]
    of_ranks = [content(batches) for batches in parts]
    assert sorted(of_ranks[0] + of_ranks[1]) == sorted(whole)


def test_neighbours_that_a_filter_leaves_out_or_that_are_gone_are_not_drawn(write_shards: WriteShards) -> None:
    folder = write_shards(10, 4)
    write_layer(folder, "near", "neighbours", lambda n: [*neighbours(10, 4)(n), "00009/x", "00000/no such key"])
    number = 0
    for path in find_shards(str(folder)):
        shard, _ = open_shard(path)
        keys = [shard.key(row) for row in range(len(shard))]
        kept = [float((number + row) % 3 != 1) for row in range(len(shard))]
        number += len(shard)
        LayerWriter(None, "kept", {}, {"kept": "float"}).write(shard, keys, {"kept": kept})
    found = pairs(list(data(folder, neighbours="layer.near", filter="kept.kept > 0.5").batches(0, 6)))
    assert all(own % 3 != 1 and other % 3 != 1 for own, other in found)


def test_neighbours_nowhere_in_the_data_are_refused(write_shards: WriteShards) -> None:
    folder = write_shards(6, 3)
    write_layer(folder, "near", "neighbours", lambda n: ["elsewhere/1"])
    with pytest.raises(UserError, match=r"data.neighbours: no sample looked at has a neighbour in layer.near"):
        data(folder, neighbours="layer.near")
    with pytest.raises(UserError, match=r"data.neighbours: .*nowhere"):
        data(folder, neighbours="layer.nowhere")


def test_of_shards_of_one_name_neighbours_lie_in_the_one_beside(write_shards: WriteShards) -> None:
    """As img2dataset names them: two sets, each with layers of its own."""
    folders = [write_shards(6, 3, name) for name in ("one", "two")]
    for folder in folders:
        write_layer(folder, "near", "neighbours", neighbours(6, 3))
    mixed = DataOptions(train=[str(folder) for folder in folders], neighbours="layer.near", workers=0)
    training = TrainingData(mixed, FORMAT, ids, 4, seed=5)
    found = pairs(list(training.batches(0, 6)))
    assert all((other - own) % 6 in (1, 2) for own, other in found if own != 5)


def test_tables_of_the_shards_of_neighbours_are_kept(
    write_shards: WriteShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer file is opened once, however the neighbours lie."""
    folder = write_shards(80, 2)
    write_layer(folder, "hard", "negatives", lambda n: [f"no {n}"])
    write_layer(folder, "near", "neighbours", lambda n: neighbours(80, 2)((n * 37) % 80))
    training = data(folder, hard=1, neighbours="layer.near", hard_captions=[HARD], shuffle_window=2)
    opened: Counter[str] = Counter()
    read = layers.LayerReader._read

    def counted(reader: layers.LayerReader, shard: Any) -> Any:
        opened[shard.path] += 1
        return read(reader, shard)

    monkeypatch.setattr(layers.LayerReader, "_read", counted)
    list(training.batches(0, 20))
    before = opened.total()
    assert before >= 40
    list(training.batches(20, 40))
    assert opened.total() == before, "the second epoch opens nothing"


def test_a_broken_neighbour_gives_way_to_another_and_is_counted(write_tar: Callable[..., Path]) -> None:
    def member(name: str, caption: str, picture: bytes) -> list[tuple[str, bytes]]:
        return [(f"{name}.png", picture), (f"{name}.txt", caption.encode())]

    good = encode_image(Image.linear_gradient("L").resize((10, 9)))
    members = [*member("a", "caption 0", good), *member("b", "caption 1", good[:40]), *member("c", "caption 2", good)]
    folder = write_tar(members).parent
    write_layer(folder, "near", "neighbours", lambda n: ["00000/b", "00000/c"])
    batches = list(data(folder, batch=2, neighbours="layer.near", max_bad_fraction=1.0).batches(0, 12))
    assert all(other != 1 for _, other in pairs(batches))
    assert {bad.where.rpartition(": ")[2] for batch in batches for bad in batch.skipped} == {"b"}
