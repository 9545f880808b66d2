from __future__ import annotations

import multiprocessing
import multiprocessing.util
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlp.data.bad_samples import BadSamples
from vlp.data.batches import DataOptions, TrainingData
from vlp.data.captions import CaptionSource
from vlp.data.index import open_shard
from vlp.data.layers import LayerWriter
from vlp.data.transforms import AugmentOptions, PictureFormat
from vlp.data.write import ShardWriter, encode_image
from vlp.types import Batch, Skipped, UserError

WriteShards = Callable[..., Path]
WriteTar = Callable[..., Path]
FORMAT = PictureFormat((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
VARIED = {
    "captions": [CaptionSource(source="txt"), CaptionSource(source="json.rewrites", weight=2)],
    "augment": AugmentOptions(crop_scale=(0.5, 1.0), flip=0.5, grey=0.2, ground="random"),
}


def tokens(captions: list[str]) -> torch.Tensor:
    return torch.tensor([list(caption.encode()[:6].ljust(6)) for caption in captions])


def training_data(
    train: Path | Sequence[Path], batch: int = 4, rank: int = 0, world: int = 1, **options: Any
) -> TrainingData:
    sources = str(train) if isinstance(train, Path) else [str(path) for path in train]
    options = {"workers": 0, "shuffle_window": 7, "train": sources, **options}
    return TrainingData(DataOptions(**options), FORMAT, tokens, batch, seed=5, rank=rank, world=world)


def content(batches: Sequence[Batch]) -> list[tuple[str, str, bytes, bytes]]:
    """All that reaches the model, a row at a time."""
    return [
        (key, caption, image.numpy().tobytes(), text.numpy().tobytes())
        for batch in batches
        for key, caption, image, text in zip(batch.keys, batch.captions, batch.image_NCHW, batch.text_NL, strict=True)
    ]


# ---- The stream is one


def write_mixed_set(folder: Path, num_samples: int, samples_per_shard: int) -> Path:
    """Every fifth sample cannot be used: a broken picture or an empty caption by turns."""
    with ShardWriter(folder / "train", samples_per_shard) as writer:
        for i in range(num_samples):
            image = encode_image(Image.linear_gradient("L").resize((10, 9 + i % 3)).point(lambda v, i=i: (v + i) % 256))
            caption, rewrites = f"caption {i}", [f"rewrite {i}", f"other {i}"]
            if i % 10 == 4:
                image = image[: len(image) * 2 // 3]
            elif i % 10 == 9:
                caption, rewrites = "", []
            writer.write(image, "png", caption, rewrites=rewrites)
    return folder / "train"


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(1, 15), st.integers(1, 30), st.sampled_from([1, 2, 3, 4]), st.data())
def test_any_world_and_any_start_give_the_one_stream(
    num_samples: int, samples_per_shard: int, window: int, world: int, data: st.DataObject
) -> None:
    batch = world * data.draw(st.integers(1, max(1, num_samples // world // 2)), label="rows of a rank")
    if batch > num_samples:
        return
    start = data.draw(st.integers(0, 9), label="first step")
    with tempfile.TemporaryDirectory() as folder:
        train = write_mixed_set(Path(folder), num_samples, samples_per_shard)
        options = {"shuffle_window": window, "max_bad_fraction": 1.0, **VARIED}
        whole = list(training_data(train, batch, **options).batches(0, 10))
        ranks = [list(training_data(train, batch, r, world, **options).batches(start, 10)) for r in range(world)]
    for step in range(start, 10):
        parts = [rank[step - start] for rank in ranks]
        rows = zip(*(content([part]) for part in parts), strict=True)
        assert [row for together in rows for row in together] == content([whole[step]])
        assert Counter(s for part in parts for s in part.skipped) == Counter(whole[step].skipped)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_one_stream(tmp_path: Path, workers: int) -> None:
    train = write_mixed_set(tmp_path, 23, 5)
    options = {"max_bad_fraction": 1.0, **VARIED}
    alone = list(training_data(train, 5, **options).batches(0, 12))
    several = training_data(train, 5, workers=workers, **options)
    assert content(list(several.batches(0, 12))) == content(alone)
    resumed = list(several.batches(7, 12))
    assert content(resumed) == content(alone[7:])
    assert [b.skipped for b in resumed] == [b.skipped for b in alone[7:]]


def test_an_epoch_uses_every_sample_once_and_the_next_in_another_order(write_shards: WriteShards) -> None:
    rows = content(list(training_data(write_shards(24, 5), 6, **VARIED).batches(0, 8)))
    first, second = rows[:24], rows[24:]
    assert len({key for key, *_ in first}) == 24
    assert sorted(key for key, *_ in first) == sorted(key for key, *_ in second)
    assert [key for key, *_ in first] != [key for key, *_ in second]
    assert {row[2] for row in first}.isdisjoint(row[2] for row in second), "each epoch draws its own crops"


def test_the_shape_of_a_batch(write_shards: WriteShards) -> None:
    data = training_data(write_shards(10, 4), 4)
    (batch,) = data.batches(2, 3)
    assert (data.num_samples, data.num_shards, data.defects) == (10, 3, [])
    assert batch.image_NCHW.shape == (4, 3, 8, 8)
    assert batch.image_NCHW.dtype == torch.uint8
    assert batch.text_NL.shape == (4, 6)
    assert len(set(batch.keys)) == 4
    assert all(
        caption == f"caption {int(key[:5]) * 4 + int(key[5:])}"
        for key, caption in zip(batch.keys, batch.captions, strict=True)
    )
    assert list(data.batches(3, 3)) == []


def with_views(train: Path, images: int, texts: int, ids: bool = True, workers: int = 0, **options: Any) -> list[Batch]:
    data_options = DataOptions(train=str(train), workers=workers, shuffle_window=7, **{**VARIED, **options})
    data = TrainingData(data_options, FORMAT, tokens, 5, 5, image_views=images, text_views=texts, with_picture_ids=ids)
    return list(data.batches(0, 6))


def test_further_views_change_nothing_of_the_first(tmp_path: Path) -> None:
    train = write_mixed_set(tmp_path, 23, 5)
    plain, several = (with_views(train, *views, max_bad_fraction=1.0) for views in ((1, 1), (2, 3)))
    assert content(several) == content(plain)
    assert [batch.skipped for batch in several] == [batch.skipped for batch in plain]
    for batch in several:
        assert batch.image_VNCHW.shape == (2, 5, 3, 8, 8)
        assert batch.text_VNL.shape == (3, 5, 6)
        assert not torch.equal(batch.image_VNCHW[0], batch.image_VNCHW[1]), "a crop of its own"


def test_further_captions_are_others_of_the_same_picture(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "train", 5) as writer:
        for i in range(10):
            image = encode_image(Image.new("RGB", (9, 9), (i, 0, 0)))
            writer.write(image, "png", f"{i} txt", rewrites=[f"{i} one", f"{i} two"])
    different = []
    for batch in with_views(tmp_path / "train", 1, 3):
        written = ["".join(map(chr, ids)).strip() for text_NL in batch.text_VNL for ids in text_NL.tolist()]
        views = [written[:5], written[5:10], written[10:]]
        assert tuple(views[0]) == batch.captions
        for of_one in zip(*views, strict=True):
            number = of_one[0].split()[0]
            assert set(of_one) <= {f"{number} {kind}" for kind in ("txt", "one", "two")}
            different.append(len(set(of_one)))
    assert different.count(3) > 0.8 * len(different), "now and then, no draw finds another"


def test_several_captions_need_samples_with_several(tmp_path: Path) -> None:
    """Otherwise the option would compare one caption with itself, and nobody would be told."""

    def written(name: str, texts: Sequence[str]) -> Path:
        with ShardWriter(tmp_path / name, 3) as writer:
            for i, text in enumerate(texts):
                writer.write(encode_image(Image.new("RGB", (9, 9), (i, 0, 0))), "png", f"{i} txt", rewrites=[text])
        return tmp_path / name

    alike = written("alike", [f"{i} txt" for i in range(7)])
    with pytest.raises(UserError, match=r"^data\.captions: 2 captions .* no sample .* two that differ: add sources.*$"):
        with_views(alike, 1, 2)
    with_views(alike, 1, 1)
    with_views(written("last", [*(f"{i} txt" for i in range(6)), "another"]), 1, 2)
    with pytest.raises(UserError, match="two that differ"):
        with_views(tmp_path / "last", 1, 2, captions=[CaptionSource(source="txt")])


def test_layers_count_where_several_captions_are_wanted(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "train", 6) as writer:
        for i in range(6):
            writer.write(encode_image(Image.new("RGB", (9, 9), (i, 0, 0))), "png", f"{i} txt")
    shard, _ = open_shard(str(next((tmp_path / "train").glob("*.tar"))))
    keys = [shard.key(row) for row in range(len(shard))]
    LayerWriter(None, "same", {}).write(shard, keys, {"text": [f"{i} txt" for i in range(6)]})
    LayerWriter(None, "new", {}).write(shard, keys, {"text": ["word"] * 5 + ["a picture of 5"]})  # one is long enough
    txt = CaptionSource(source="txt")
    with pytest.raises(UserError, match="two that differ"):
        with_views(tmp_path / "train", 1, 2, captions=[txt, CaptionSource(source="layer.same")])
    with_views(tmp_path / "train", 1, 2, captions=[txt, CaptionSource(source="layer.new")])


def test_equal_pictures_have_equal_ids_in_any_process(tmp_path: Path) -> None:
    """Of the bytes: two crops of one picture are that picture."""
    with ShardWriter(tmp_path / "train", 4) as writer:
        for i in range(10):
            writer.write(
                encode_image(Image.new("RGB", (9, 9), (i % 4, 0, 0))), "png", f"{i % 4}", rewrites=[f"{i % 4}"]
            )
    alone = with_views(tmp_path / "train", 2, 1)
    picture_of: dict[int, set[str]] = {}
    for batch in alone:
        assert batch.picture_N is not None
        assert batch.picture_N.dtype == torch.int64
        for number, caption in zip(batch.picture_N.tolist(), batch.captions, strict=True):
            picture_of.setdefault(number, set()).add(caption)
    assert sorted(picture_of.values(), key=min) == [{"0"}, {"1"}, {"2"}, {"3"}]
    for several, one in zip(with_views(tmp_path / "train", 2, 1, workers=2), alone, strict=True):
        assert torch.equal(several.picture_N, one.picture_N)  # type: ignore[arg-type]
    assert all(batch.picture_N is None for batch in with_views(tmp_path / "train", 2, 1, ids=False))


def test_a_micro_batch_keeps_views_captions_and_ids_of_its_rows(tmp_path: Path) -> None:
    batch = with_views(write_mixed_set(tmp_path, 23, 5), 2, 3, max_bad_fraction=1.0)[0]
    part = batch.rows(3, 9).to("cpu")
    assert (part.keys, part.captions) == (batch.keys[3:], batch.captions[3:])
    assert torch.equal(part.image_VNCHW, batch.image_VNCHW[:, 3:])
    assert torch.equal(part.text_VNL, batch.text_VNL[:, 3:])
    assert torch.equal(part.picture_N, batch.picture_N[3:])  # type: ignore[arg-type,index]
    assert torch.equal(part.text_NL, batch.text_NL[3:])


def test_the_sheet_shows_what_is_trained_on_first(write_shards: WriteShards) -> None:
    data = training_data(write_shards(12, 5), 4, **VARIED)
    sheet = data.sheet(6)
    expected = content(list(data.batches(0, 2)))[:6]
    assert [(key, caption, image.numpy().tobytes()) for image, caption, key in sheet] == [row[:3] for row in expected]
    assert len(data.sheet(100)) == 12


def test_loading_leaves_the_random_state_of_training_alone(write_shards: WriteShards) -> None:
    data = training_data(write_shards(12, 5), 4, workers=1, **VARIED)
    state = torch.get_rng_state()
    list(data.batches(0, 2))
    assert torch.equal(state, torch.get_rng_state())


# ---- What cannot be used


def test_bad_samples_are_replaced_counted_and_named(tmp_path: Path) -> None:
    train = write_mixed_set(tmp_path, 20, 5)
    batches = list(training_data(train, 5, max_bad_fraction=1.0).batches(0, 4))
    keys = [key for batch in batches for key in batch.keys]
    bad_keys = {"000000004": "truncated picture", "000020004": "truncated picture"}
    bad_keys |= {"000010004": "empty caption", "000030004": "empty caption"}
    assert len(keys) == 20
    assert bad_keys.keys().isdisjoint(keys)
    skipped = [bad for batch in batches for bad in batch.skipped]
    assert {bad.where.split(": ")[1]: bad.kind for bad in skipped} == bad_keys
    assert all(bad.where.startswith(f"{train}/000") for bad in skipped)
    good = [key for key in keys if keys.count(key) == 1]
    assert len(good) >= 20 - 2 * len(skipped), "replacing one sample moves no other"


@pytest.mark.parametrize("workers", [0, 2])
def test_no_usable_sample_ends_with_one_sentence(write_tar: WriteTar, workers: int) -> None:
    members = [(f"{i}.{e}", b"broken") for i in range(8) for e in ("png", "txt")]
    data = training_data(write_tar(members), 4, workers=workers)
    with pytest.raises(UserError, match="no usable sample in 100 draws, most often 'undecodable picture'") as caught:
        list(data.batches(0, 3))
    assert "\n" not in str(caught.value)


def test_a_mistake_of_ours_in_a_worker_is_not_dressed_up_as_the_users(write_shards: WriteShards) -> None:
    def broken(captions: list[str]) -> torch.Tensor:
        raise RuntimeError("a bug")

    options = DataOptions(train=str(write_shards(8)), workers=1)
    with pytest.raises(RuntimeError, match="a bug") as caught:
        list(TrainingData(options, FORMAT, broken, 4, seed=0).batches(0, 1))
    assert not isinstance(caught.value, UserError)


def test_a_killed_worker_ends_with_one_sentence(write_shards: WriteShards) -> None:
    def killed(captions: list[str]) -> torch.Tensor:
        signal.raise_signal(signal.SIGKILL)
        return tokens(captions)

    options = DataOptions(train=str(write_shards(8)), workers=1)
    with pytest.raises(UserError, match=r"data\.workers: a worker process died"):
        list(TrainingData(options, FORMAT, killed, 4, seed=0).batches(0, 1))


def test_workers_outlive_the_signals_that_stop_a_run(write_shards: WriteShards) -> None:
    """The whole process group gets them; the trainer saves first, and needs its loader for the step it is in."""

    def signalled(captions: list[str]) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        return tokens(captions)

    options = DataOptions(train=str(write_shards(8)), workers=2)
    assert len(list(TrainingData(options, FORMAT, signalled, 4, seed=0).batches(0, 2))) == 2


def test_a_loader_left_early_ends_its_workers(write_shards: WriteShards) -> None:
    batches = training_data(write_shards(30), 4, workers=2).batches(0, 1000)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_a_crashed_run_ends_though_its_loader_was_left_open(write_shards: WriteShards) -> None:
    data = training_data(write_shards(30), 4, workers=2)

    def crash() -> None:
        batches = data.batches(0, 1000)
        next(batches)
        multiprocessing.util.kept = batches  # type: ignore[attr-defined]  # as the traceback of an error does

    run = multiprocessing.get_context("fork").Process(target=crash)
    run.start()
    run.join(20)
    hung = run.is_alive()
    run.kill()
    assert not hung


def test_defects_of_the_shards_are_told_and_bounded(write_shards: WriteShards, write_tar: WriteTar) -> None:
    train = write_shards(50)
    cut = write_tar([(f"{i}.{e}", b"x" * 300) for i in range(50) for e in ("png", "txt")], name="cut.tar")
    cut.write_bytes(cut.read_bytes()[:-20_000])
    data = training_data([train, cut], max_bad_fraction=0.05)
    assert data.defects == [Skipped("truncated shard", str(cut), samples=2)]
    assert 50 < data.num_samples < 100
    with pytest.raises(UserError, match=r"data\.max_bad_fraction: 2 bad samples among"):
        training_data([train, cut], max_bad_fraction=0.0)


def test_the_limit_of_bad_samples() -> None:
    bad = BadSamples(0.01, num_samples=1000)
    bad.add([Skipped("truncated picture", "0.tar: a")] * 8 + [Skipped("empty caption", "1.tar: b")] * 2, seen=64)
    bad.check()
    bad.add([Skipped("empty caption", "1.tar: c")], seen=64)
    sentence = "11 bad samples among 1000 .*most often 'truncated picture' .8 times, such as 0.tar: a"
    with pytest.raises(UserError, match=sentence):
        bad.check()
    bad.add([], seen=5000)
    bad.check()
    assert bad.summary()[0] == "skipped 8 x truncated picture, such as 0.tar: a"
    both = BadSamples(0.01, num_samples=1000).merged([bad.state(), bad.state()])
    assert (both.kinds["empty caption"], both.seen, both.total) == (6, 2 * bad.seen, 22)
    assert bad.total == 11


# ---- What the user got wrong


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch": 11}, r"train\.global_batch_size 11 exceeds the data set of 10 samples"),
        ({"batch": 5, "world": 2}, r"train\.global_batch_size 5 cannot be shared by 2 processes"),
        ({"batch": 0}, r"train\.global_batch_size 0"),
        ({"captions": [CaptionSource(source="json.rewrite")]}, "'json.rewrite'.*caption, .*rewrites"),
    ],
)
def test_mistakes_are_named_at_the_start(write_shards: WriteShards, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        training_data(write_shards(10, 4), **options)


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train: .*nowhere does not exist"):
        training_data(tmp_path / "nowhere")
