"""Every fault that data has, as training meets it: counted by kind, named, bounded, never in the way of the rest."""

from __future__ import annotations

import importlib.util
import io
import json
import multiprocessing
import struct
import tarfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image

from data_tools.index import write_index
from vlp import cli
from vlp.data import batches, store
from vlp.data.batches import DataOptions, TrainingData
from vlp.data.store import Store
from vlp.data.transforms import AugmentOptions, PictureFormat
from vlp.types import Batch, Skipped, UserError

# Tests are no package, so no import statement reaches it.
_spec = importlib.util.spec_from_file_location("fault_runs", Path(__file__).parents[1] / "resume_runs.py")
assert _spec is not None
assert _spec.loader is not None
runs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runs)

FORMAT = PictureFormat((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
WHOLE = AugmentOptions(crop_scale=(1, 1), crop_ratio=(1, 1))
SEED, PER_SHARD, BATCH = 3, 8, 4
SAMPLE = 512 + 1024 + 512 + 512  # bytes of one in a tar: a picture of 822 bytes and a text, each with its header
TINY_MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "layers": 1, "width": 16, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
Members = Mapping[str, bytes]
Row = tuple[str, str, bytes]


# ---- Data sets and what training makes of them


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def key_of(number: int) -> str:
    return f"{number // PER_SHARD:05d}{number % PER_SHARD:04d}"


def sample(number: int, side: int = 16) -> dict[str, bytes]:
    return {"bmp": encoded(noise(number, side), "BMP"), "txt": f"caption {key_of(number)}".encode()}


def write_shard(path: Path, samples: Sequence[tuple[str, Members]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def write_set(folder: Path, shards: int = 3, changed: Mapping[str, Members] | None = None, side: int = 16) -> Path:
    """Shards of eight samples, ``00000.tar`` and so on; the members of some keys may be others."""
    folder.mkdir()
    for shard in range(shards):
        numbers = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        members = [
            (key_of(n), {**sample(n, side)} if not changed else changed.get(key_of(n), sample(n))) for n in numbers
        ]
        write_shard(folder / f"{shard:05d}.tar", members)
    return folder


def keys_of(shards: int, but: Sequence[str] = ()) -> set[str]:
    return {key_of(n) for n in range(shards * PER_SHARD)} - set(but)


def tokens(captions: list[str]) -> torch.Tensor:
    return torch.zeros(len(captions), 1, dtype=torch.long)


def training_data(train: object, workers: int = 0, rank: int = 0, world: int = 1, **options: Any) -> TrainingData:
    given = {"shuffle_window": 6, "max_bad_fraction": 1.0, "augment": WHOLE, **options}
    data_options = DataOptions(train=str(train), workers=workers, **given)
    return TrainingData(data_options, FORMAT, tokens, BATCH, SEED, rank=rank, world=world)


def rows_of(taken: Sequence[Batch]) -> list[Row]:
    return [
        (key, caption, pixels.numpy().tobytes())
        for batch in taken
        for key, caption, pixels in zip(batch.keys, batch.captions, batch.image_NCHW, strict=True)
    ]


def epoch(data: TrainingData) -> tuple[set[str], list[Skipped], list[Row]]:
    """Keys of an epoch, what was skipped, and the rows; every batch is full."""
    taken = list(data.batches(0, -(-data.num_samples // BATCH)))
    assert all(len(batch) == BATCH for batch in taken)
    rows = rows_of(taken)
    return {key for key, *_ in rows[: data.num_samples]}, [bad for batch in taken for bad in batch.skipped], rows


# ---- Faults of one sample


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int = 30_000) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


JPEG = encoded(noise(0, 64), "JPEG")
TEXT = b"a caption"
UNUSABLE: Sequence[tuple[str, Members]] = (
    ("undecodable picture", {"jpg": JPEG[:20] + bytes(200) + JPEG[220:], "txt": TEXT}),
    ("undecodable picture", {"jpg": b"<html>404 Not Found</html>", "txt": TEXT}),
    ("truncated picture", {"jpg": JPEG[: len(JPEG) // 2], "txt": TEXT}),
    ("huge picture", {"png": bomb(), "txt": TEXT}),
    ("text is not UTF-8", {"jpg": JPEG, "txt": b"caf\xe9 au lait"}),
    ("empty caption", {"jpg": JPEG, "txt": b" \n"}),
    ("empty caption", {"jpg": JPEG}),
)
SPOILT = {key_of(3 * place + 1): members for place, (_, members) in enumerate(UNUSABLE)}
KINDS = {key_of(3 * place + 1): kind for place, (kind, _) in enumerate(UNUSABLE)}


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_unusable_samples_are_replaced_alike_by_any_workers_and_ranks(tmp_path: Path, decode: str) -> None:
    train = write_set(tmp_path / "train", 3, SPOILT)
    keys, skipped, rows = epoch(training_data(train, decode=decode))
    assert keys == keys_of(3, list(SPOILT))
    named = {f"{train}/{key[:5]}.tar: {key}": kind for key, kind in KINDS.items()}
    assert {bad.where: bad.kind for bad in skipped} == named
    assert epoch(training_data(train, 2, decode=decode)) == (keys, skipped, rows)
    ranks = [list(training_data(train, r % 2, r, 2, decode=decode).batches(0, 6)) for r in range(2)]
    together = [row for pair in zip(*map(rows_of, ranks), strict=True) for row in pair]
    assert together == rows
    assert Counter(bad for rank in ranks for batch in rank for bad in batch.skipped) == Counter(skipped)


def red_above_blue() -> Image.Image:
    picture = Image.new("RGB", (16, 16), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 16, 8))
    return picture


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # is to be turned by 90 degrees to the right
    return encoded(red_above_blue().rotate(90), "JPEG", quality=95, subsampling=0, exif=exif)


def deep() -> bytes:
    ramp = np.repeat(np.array([[50_000], [10_000]], dtype=np.uint16), 8, axis=0)
    return encoded(Image.fromarray(np.repeat(ramp, 16, axis=1)), "PNG")


def half_clear() -> bytes:
    picture = red_above_blue().convert("RGBA")
    picture.putalpha(Image.fromarray(np.repeat(np.array([[255], [0]], dtype=np.uint8), 8, axis=0).repeat(16, axis=1)))
    return encoded(picture.quantize(), "PNG")


ANIMATION = {"save_all": True, "append_images": [noise(1), noise(2)], "lossless": True}
UNUSUAL: Sequence[tuple[str, bytes, tuple[Any, Any]]] = (
    ("jpg", encoded(red_above_blue().convert("CMYK"), "JPEG", quality=95), ((255, 0, 0), (0, 0, 255))),
    ("png", deep(), ((195, 195, 195), (39, 39, 39))),
    ("png", encoded(red_above_blue().quantize(2), "PNG"), ((255, 0, 0), (0, 0, 255))),
    ("png", half_clear(), ((255, 0, 0), (255, 255, 255))),
    ("gif", encoded(red_above_blue(), "GIF", save_all=True, append_images=[noise(1)]), ((255, 0, 0), (0, 0, 255))),
    ("webp", encoded(red_above_blue(), "WEBP", **ANIMATION), ((255, 0, 0), (0, 0, 255))),
    ("jpg", turned(), ((255, 0, 0), (0, 0, 255))),
)


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_unusual_pictures_are_used_as_they_look(tmp_path: Path, decode: str) -> None:
    changed = {key_of(place): {kind: data, "txt": TEXT} for place, (kind, data, _) in enumerate(UNUSUAL)}
    keys, skipped, rows = epoch(training_data(write_set(tmp_path / "train", 1, changed), decode=decode))
    assert keys == keys_of(1)
    assert skipped == []
    pixels = {key: np.frombuffer(data, np.uint8).reshape(3, 8, 8).astype(int) for key, _, data in rows}
    for place, (_, _, (above, below)) in enumerate(UNUSUAL):
        picture = pixels[key_of(place)]
        for row, colour in ((1, above), (6, below)):  # away from the edge, where resampling mixes them
            assert np.abs(picture[:, row, 1:7] - np.array(colour)[:, None]).max() <= 12, (place, row)


# ---- Faults of a shard


def cut_in_the_middle(path: Path) -> None:
    """As a copy leaves it that was interrupted: five samples are whole."""
    path.write_bytes(path.read_bytes()[: 5 * SAMPLE + 700])


def end_in_zeros(path: Path) -> None:
    """As a crash leaves a file whose room was reserved; five samples are whole."""
    path.write_bytes(path.read_bytes()[: 5 * SAMPLE] + bytes(3 << 20))


def lose_a_header(path: Path) -> None:
    """A block was never written; five samples are whole."""
    data = bytearray(path.read_bytes())
    data[5 * SAMPLE : 5 * SAMPLE + 512] = bytes(512)
    path.write_bytes(data)


def be_a_page(path: Path) -> None:
    path.write_bytes(b"<html>404 Not Found</html>" * 100)


def repeat_keys(path: Path) -> None:
    """Samples five, six and seven have the key of the fourth."""
    first = int(path.stem) * PER_SHARD
    write_shard(path, [(key_of(first + min(row, 4)), sample(first + row)) for row in range(PER_SHARD)])


FAULTS: Sequence[tuple[Callable[[Path], None], str, int]] = (
    (cut_in_the_middle, "truncated shard", 5),
    (end_in_zeros, "truncated shard", 5),
    (lose_a_header, "truncated shard", 5),
    (Path.unlink, "missing shard", 0),
    (be_a_page, "not a tar", 0),
    (lambda path: path.write_bytes(b""), "not a tar", 0),
    (repeat_keys, "duplicate key", 5),
)


@pytest.mark.parametrize(("spoil", "kind", "left"), FAULTS)
@pytest.mark.parametrize("counted", [False, True])
def test_a_broken_shard_costs_what_is_lost_of_it(
    tmp_path: Path, spoil: Callable[[Path], None], kind: str, left: int, counted: bool
) -> None:
    train = write_set(tmp_path / "train")
    spoil(train / "00001.tar")
    if counted:  # nothing is looked at before its samples come
        (train / "sizes.json").write_text(json.dumps({f"{shard:05d}.tar": PER_SHARD for shard in range(3)}))
    pattern = f"{train}/{{00000..00002}}.tar"
    found = training_data(pattern)
    assert found.num_samples == (24 if counted else 16 + left)
    keys, skipped, rows = epoch(found)
    assert keys == keys_of(3, [key_of(PER_SHARD + row) for row in range(left, PER_SHARD)])
    assert {bad.kind for bad in [*found.defects, *skipped]} == {kind}
    if counted:  # a lost sample may be drawn again in the place of another one
        assert found.defects == []
        assert len({bad.where for bad in skipped}) == (1 if kind == "duplicate key" else PER_SHARD - left)
    else:
        assert skipped == []
        assert sum(bad.samples for bad in found.defects) == PER_SHARD - left
    assert all(bad.where.startswith(str(train / "00001.tar")) for bad in [*found.defects, *skipped])
    assert epoch(training_data(pattern, 2)) == (keys, skipped, rows)


def test_an_indexed_shard_that_is_missing_is_counted_and_a_changed_one_is_named(tmp_path: Path) -> None:
    train = write_set(tmp_path / "train")
    write_index([str(train)])
    whole = (train / "00001.tar").read_bytes()
    (train / "00001.tar").unlink()
    keys, skipped, _ = epoch(training_data(f"{train}/{{00000..00002}}.tar"))
    assert keys == keys_of(3, [key_of(PER_SHARD + row) for row in range(PER_SHARD)])
    assert {bad.kind for bad in skipped} == {"missing shard"}
    assert {bad.where for bad in skipped} == {f"{train}/00001.tar: sample {row}" for row in range(PER_SHARD)}
    (train / "00001.tar").write_bytes(whole[:5000])
    with pytest.raises(UserError, match=r"00001\.tar has 5,000 bytes, but .* run vlp data index again"):
        training_data(train)


def test_what_is_being_written_is_no_shard(tmp_path: Path) -> None:
    train = write_set(tmp_path / "train")
    (train / "00002.tar").rename(train / "00002.tar.partial")
    found = training_data(train)
    assert (found.num_samples, found.defects) == (16, [])


# ---- The limit


@pytest.mark.parametrize("workers", [0, 2])
def test_just_below_the_limit_it_goes_on_and_just_above_one_sentence_ends_it(tmp_path: Path, workers: int) -> None:
    train = write_set(tmp_path / "train")
    cut_in_the_middle(train / "00001.tar")  # 3 of 24
    assert len(epoch(training_data(train, workers, max_bad_fraction=0.125))[0]) == 21
    with pytest.raises(UserError) as caught:
        training_data(train, workers, max_bad_fraction=0.124)
    assert str(caught.value) == (
        "data.max_bad_fraction: 3 bad samples among 24 exceed the limit of 0.124, most often 'truncated shard' "
        f"(3 times, such as {train}/00001.tar): mend the shards or raise it"
    )


# ---- Shards that change while they are read


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_is_deleted_or_shortened_while_it_is_read(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_OPEN_FILES", 1)  # as with more shards than files may be open
    train = write_set(tmp_path / "train", shards=8)
    data = training_data(train, workers, shuffle_window=64)
    taken = data.batches(0, 16)
    first = [next(taken)]
    (train / "00001.tar").unlink()
    (train / "00002.tar").write_bytes((train / "00002.tar").read_bytes()[:4000])
    write_shard(train / "new.tar", [(key_of(n), sample(n)) for n in range(24, 27)]).replace(train / "00003.tar")
    rows = rows_of([*first, *taken])
    skipped = [bad for batch in [*first, *data.batches(1, 16)] for bad in batch.skipped]
    assert len(rows) == 64
    assert keys_of(8) - {key for key, *_ in rows} <= {bad.where.rpartition(": ")[2] for bad in skipped}
    assert {bad.kind for bad in skipped} == {"unreadable shard"}
    assert {Path(bad.where.partition(": ")[0]).name for bad in skipped} == {"00001.tar", "00002.tar", "00003.tar"}
    expected = {key: pixels for key, _, pixels in epoch(training_data(write_set(tmp_path / "whole", shards=8)))[2]}
    assert all(pixels == expected[key] for key, _, pixels in rows)


def test_a_deleted_shard_that_is_open_is_read_on(tmp_path: Path) -> None:
    train = write_set(tmp_path / "train")
    data = training_data(train)
    taken = data.batches(0, 6)
    rows = [next(taken)]
    for path in train.glob("*.tar"):
        path.unlink()
    rows += list(taken)
    assert {key for key, *_ in rows_of(rows)} == keys_of(3)


# ---- Servers


SIDE, SERVED = 200, 12  # shards of a megabyte, which are not all on their way when the server dies


@pytest.fixture
def served(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str]:
    """A server of shards, and their address; readers are impatient."""
    monkeypatch.setattr(batches, "Store", partial(Store, retries=4, timeout=1.0, first_wait=0.05))
    for path in write_set(tmp_path / "train", SERVED, side=SIDE).glob("*.tar"):
        web.files[path.name] = path.read_bytes()
    return web, web.url(f"{{00000..{SERVED - 1:05d}}}.tar")


def serve_counts(web: Any) -> None:
    web.files["sizes.json"] = json.dumps({f"{shard:05d}.tar": PER_SHARD for shard in range(SERVED)}).encode()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("counted", [False, True])
def test_a_server_that_dies_and_comes_back_loses_nothing(
    served: tuple[Any, str], workers: int, counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    web, address = served
    monkeypatch.setattr(batches, "Store", partial(Store, retries=9, timeout=5.0, first_wait=0.05))
    if counted:
        serve_counts(web)
    num_batches = SERVED * PER_SHARD // BATCH
    taken = training_data(address, workers, read_ahead_mb=1, shuffle_streams=1).batches(0, num_batches)
    seen = [next(taken)]
    web.die()
    asked = len(web.ranges)
    threading.Timer(0.3, web.come_back).start()
    seen += list(taken)
    assert len(web.ranges) > asked
    assert sorted(key for key, *_ in rows_of(seen)) == sorted(keys_of(SERVED))
    assert not any(batch.skipped for batch in seen)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_stays_away_ends_the_run_with_one_sentence(served: tuple[Any, str], workers: int) -> None:
    web, address = served
    taken = training_data(address, workers, read_ahead_mb=1).batches(0, 1000)
    next(taken)
    web.die()
    began = time.monotonic()
    with pytest.raises(UserError, match="no usable sample in 100 draws, most often 'unreadable shard'") as caught:
        list(taken)
    assert web.url("") in str(caught.value)
    assert "refused" in str(caught.value)
    assert str(caught.value).endswith(": check the server or the disk")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 20
    assert multiprocessing.active_children() == []


def test_a_dead_server_beside_living_shards_is_bounded_by_the_limit(served: tuple[Any, str], tmp_path: Path) -> None:
    web, address = served
    local = write_set(tmp_path / "local", 2)
    options = DataOptions(train=[address, str(local)], workers=0, max_bad_fraction=1.0, read_ahead_mb=1)
    taken = TrainingData(options, FORMAT, tokens, BATCH, SEED).batches(0, 28)
    next(taken)
    web.die()
    bad = [bad for batch in taken for bad in batch.skipped]
    assert {one.kind for one in bad} == {"unreadable shard"}
    assert all(one.where.startswith(web.url("")) for one in bad)


@pytest.mark.parametrize("ranges", [True, False])
def test_shards_without_an_index_are_fetched_once_for_all_workers(served: tuple[Any, str], ranges: bool) -> None:
    web, address = served
    web.has_ranges = ranges
    serve_counts(web)
    assert epoch(training_data(address, 2))[0] == keys_of(SERVED)
    whole = sum(len(data) for name, data in web.files.items() if name.endswith(".tar"))
    fetched = [name for name, span in web.ranges if name.endswith(".tar") and span != "bytes=0-0"]
    assert sorted(fetched) == [f"{shard:05d}.tar" for shard in range(SERVED)]
    assert not ranges or web.sent < 1.1 * whole  # without ranges each question for its length begins to send a shard


def test_a_command_runs_once_for_all_workers(tmp_path: Path) -> None:
    train, log = write_set(tmp_path / "train"), tmp_path / "log"
    command = f"pipe:echo >> {log}; cat {train}/{{00000..00002}}.tar"
    assert epoch(training_data(command, 2))[0] == keys_of(3)
    assert len(log.read_text().splitlines()) == 3


# ---- Through `vlp train`


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    def write(train: object, **data: Any) -> Path:
        tree = {
            "name": "faults",
            "seed": SEED,
            "data": {"train": str(train), "shuffle_window": 6, "workers": 0, **data},
            "model": {"config": TINY_MODEL},
            "objectives": [{"name": "infonce"}],
            "train": {"steps": 6, "global_batch_size": BATCH, "warmup": 1},
            "checkpoint": {"every": 3},
            "track": {"every": 2, "tensorboard": False},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


def state_of(run: Any) -> dict[str, Any]:
    return json.loads((run.run_dir / "checkpoints" / "latest" / "state.json").read_text())


def test_totals_are_of_all_workers_and_ranks_and_live_through_a_resume(
    tmp_path: Path, recipe: Callable[..., Path]
) -> None:
    train = write_set(tmp_path / "train", 4, SPOILT)
    cut_in_the_middle(train / "00003.tar")
    path = recipe(train, max_bad_fraction=0.5)
    expected = Counter(bad.kind for batch in training_data(train).batches(0, 6) for bad in batch.skipped)
    assert len(expected) >= 4
    for name, world, workers in (("one", 1, 0), ("workers", 1, 2), ("two", 2, 1)):
        run = runs.Run(path, tmp_path / name, f"data.workers={workers}")
        run.start(world)
        run.finish()
        state, said = state_of(run)["bad_samples"], run.said()
        assert (state["kinds"], state["seen"]) == (expected, 24)
        assert f"skipped: truncated shard: {train}/00003.tar (3 samples)" in said, "at the start"
        assert f"skipped 3 x truncated shard, such as {train}/00003.tar" in said, "at the end"
        for kind, count in expected.items():
            assert f"skipped {count} x {kind}, such as {train}/" in said
    whole = runs.Run(path, tmp_path / "resumed", "data.workers=2")
    whole.start(1, before=partial(stop_after, 3))
    assert whole.wait() != 0
    whole.start(2)
    whole.finish()
    assert "going on from step 3" in whole.said()
    assert state_of(whole)["bad_samples"]["kinds"] == expected


def stop_after(steps: int) -> None:
    """The process dies when it takes the batch after so many."""
    original = TrainingData.batches

    def stopped(self: TrainingData, start_step: int, stop_step: int, *shape_of: Any) -> Iterator[Batch]:
        for step, batch in enumerate(original(self, start_step, stop_step, *shape_of), start_step):
            if step == steps:
                for thread in threading.enumerate():
                    if thread.name == "checkpoint":  # what is being written
                        thread.join()
                raise SystemExit(3)
            yield batch

    TrainingData.batches = stopped  # type: ignore[method-assign]


@pytest.mark.parametrize("world", [1, 2])
def test_too_many_bad_samples_end_every_rank_with_the_sentence(
    tmp_path: Path, recipe: Callable[..., Path], world: int
) -> None:
    train = write_set(tmp_path / "train", 3, SPOILT)
    # With the first one, which one rank meets before the other.
    run = runs.Run(recipe(train, max_bad_fraction=0.03, workers=1), tmp_path / "run", "track.every=100")
    run.start(world)
    assert run.wait() == 2, run.said()
    sentences = [line for line in run.said().splitlines() if line.startswith("vlp: ")]
    assert len(sentences) == world
    assert len(set(sentences)) == 1
    assert "vlp: data.max_bad_fraction: " in sentences[0]
    assert f"such as {train}/0000" in sentences[0]
    assert "Traceback" not in run.said()


@pytest.mark.parametrize("world", [1, 2])
def test_a_server_that_dies_for_good_ends_vlp_train(
    served: tuple[Any, str], tmp_path: Path, recipe: Callable[..., Path], world: int
) -> None:
    web, address = served
    run = runs.Run(recipe(address, workers=2, read_ahead_mb=1, max_bad_fraction=1.0), tmp_path / "run")
    run.start(world, "train.steps=100000")
    while run.num_taken() < 2:
        time.sleep(0.01)
    began, leader = time.monotonic(), psutil.Process(run._leader.pid)
    below = leader.children(recursive=True)
    web.die()
    assert run.wait() == 2, run.said()
    assert time.monotonic() - began < 30
    assert not [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert "Traceback" not in run.said()
    sentences = [line for line in run.said().splitlines() if line.startswith("vlp: ")]
    assert len(set(sentences)) == 1
    assert web.url("") in sentences[0]


def test_the_command_says_what_is_wrong_with_data_that_is_all_broken(
    tmp_path: Path, recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train = tmp_path / "train"
    train.mkdir()
    be_a_page(train / "00000.tar")
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(recipe(train)), f"run_dir={tmp_path / 'run'}"])
    assert stop.value.code == 2
    assert f"vlp: data.train: no usable sample in 1 shards (not a tar: {train}/00000.tar" in capsys.readouterr().err
