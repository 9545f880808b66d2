"""``vlp data neighbours`` with a real model and the real faiss, against all pairs compared one by one."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

pytest.importorskip("faiss")

from data_tools._filter_text import normalise
from data_tools._neighbours.embed import embed_shard, look_of
from data_tools._neighbours.index import IndexOptions
from data_tools._neighbours.job import Job
from data_tools._neighbours.model import loaded
from data_tools._neighbours.plan import Rates, plan
from data_tools.stats import name_of_data
from vlp.cli import main
from vlp.data.index import open_shard
from vlp.data.layers import LayerWriter
from vlp.data.samples import decode_image
from vlp.data.shards import find_shards, stem
from vlp.data.store import Store
from vlp.data.write import ShardWriter, TarFile, encode_image
from vlp.encoders import openclip
from vlp.encoders.options import ModelOptions
from vlp.types import UserError

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
Sample = tuple[bytes, str | list[str]]


def picture(seed: int) -> Image.Image:
    """Soft blobs of colour, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC)


def png(seed: int) -> bytes:
    return encode_image(picture(seed))


def copy_of(seed: int) -> bytes:
    """The same picture, encoded again."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write(directory: Path, samples: Sequence[Sample], samples_per_shard: int = 1000) -> Path:
    """The first caption is the ``.txt``, all stand in ``json.captions``."""
    with ShardWriter(directory, samples_per_shard) as writer:
        for data, captions in samples:
            several = [captions] if isinstance(captions, str) else captions
            writer.write(data, "png" if data.startswith(b"\x89PNG") else "jpg", several[0], captions=several)
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real tower of random weights."""
    return saved(tmp_path_factory.mktemp("model"), seed=0)


def saved(directory: Path, seed: int) -> str:
    openclip.save_openclip_directory(openclip.build(ModelOptions(config=CONFIG), seed=seed), directory)
    return str(directory)


@pytest.fixture
def run(model: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``run(shards, *options)`` is the command; what it printed comes back."""

    def run(shards: Path | list[str], *options: str) -> str:
        given = [] if "--model" in options else ["--model", model]
        given += [] if "--workers" in options or "--ray" in options else ["--workers", "1"]
        named = [str(shards)] if isinstance(shards, Path) else shards
        assert main(["data", "neighbours", *named, *given, *options]) in (0, None)
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(model: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The sentence with which the command ends."""

    def refused(shards: Path | list[str], *options: str) -> str:
        given = [] if "--model" in options else ["--model", model]
        with pytest.raises(SystemExit) as ended:
            main(["data", "neighbours", *([str(shards)] if isinstance(shards, Path) else shards), *given, *options])
        assert ended.value.code == 2
        return capsys.readouterr().err

    return refused


def rows(shards: Path, name: str = "neighbours") -> dict[str, dict[str, Any]]:
    """STEM/KEY -> the row of the layer."""
    files = sorted((shards / "layers" / name).glob("*.parquet"))
    return {f"{file.stem}/{row['key']}": row for file in files for row in pq.read_table(file).to_pylist()}


def sets(shards: Path) -> list[set[int]]:
    """The neighbours of each sample, where samples are called by their numbers."""
    found = rows(shards)
    number = {name: place for place, name in enumerate(found)}
    return [{number[other] for other in row["neighbours"]} for row in found.values()]


def layer_bytes(shards: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (shards / "layers" / "neighbours").glob("*.parquet")}


def by_hand(shards: Path, model: str, source: str, number: int, duplicate_above: float) -> dict[str, list[str]]:
    """All pairs, one by one, from the pictures themselves."""
    tower, _ = loaded(model, "cpu")
    samples = {}
    for path in find_shards(str(shards)):
        shard, _ = open_shard(path)
        for row in range(len(shard)):
            members = shard.read(row, shard.extensions)
            data = members.get("png") or members["jpg"]
            texts = json.loads(members["json"])["captions"] if source == "json.captions" else [members["txt"].decode()]
            with torch.inference_mode():
                feature = tower.encode_image(tower.eval_transform(decode_image(data))[None])[0].numpy()
            feature = (feature / np.linalg.norm(feature)).astype(np.float16).astype(np.float32)
            look = look_of(decode_image(data)).astype(int)
            samples[f"{stem(path)}/{shard.key(row)}"] = feature, data, look, {normalise(text) for text in texts}
    found = {}
    for name, (feature, data, look, captions) in samples.items():
        order = sorted((o for o in samples if o != name), key=lambda o: (-float(feature @ samples[o][0]), o))
        chosen: list[str] = []
        for other in order:
            feature_of, data_of, look_of_other, captions_of = samples[other]
            near = feature @ feature_of > duplicate_above and np.abs(look - look_of_other).mean() < 2
            repeated = any(samples[one][1] == data_of for one in chosen)
            if data_of != data and not near and not captions & captions_of and not repeated:
                chosen.append(other)
        found[name] = chosen[:number]
    return found


MIXED: list[Sample] = [
    *((png(seed), [f"picture {seed}", f"theme {seed % 7}"]) for seed in range(40)),
    *((copy_of(seed), [f"another {seed}", f"theme {seed % 5}"]) for seed in range(0, 12, 2)),
    *((png(seed), [f"once more {seed}"]) for seed in range(1, 12, 3)),
    *((png(seed), ["Boilerplate."]) for seed in range(50, 60)),
    *((png(seed), ["boilerplate"]) for seed in range(60, 64)),
]


@pytest.mark.parametrize("source", ["txt", "json.captions"])
def test_neighbours_are_those_found_by_comparing_all_pairs(
    tmp_path: Path, run: Callable[..., str], model: str, source: str
) -> None:
    shards = write(tmp_path / "s", MIXED, 17)
    run(shards, "--number", "4", "--caption", source)
    expected = by_hand(shards, model, source, 4, 0.97)
    found = {name: row["neighbours"] for name, row in rows(shards).items()}
    assert found == expected
    assert all(len(own) == 4 for own in found.values())
    assert found != by_hand(shards, model, source, 4, 1.0), "near duplicates are among the nearest"


def test_copies_are_left_out_unless_they_are_wanted(tmp_path: Path, run: Callable[..., str]) -> None:
    samples: list[Sample] = [(png(1), "a"), (copy_of(1), "b"), (png(1), "c"), (png(2), "d"), (png(3), "e")]
    shards = write(tmp_path / "s", samples)
    said = run(shards, "--number", "9")
    assert sets(shards) == [{3, 4}, {3, 4}, {3, 4}, {0, 1, 4}, {0, 1, 3}]
    assert "passed over           2  same picture" in said  # 0 and 2
    assert "passed over           4  near duplicate" in said  # 1 of 0 and 2, and back
    assert "passed over           2  repeated neighbour" in said  # 2 after 0, of 3 and 4
    assert "5 have fewer than 9" in said
    run(shards, "--number", "9", "--duplicate-above", "1")
    assert sets(shards) == [{1, 3, 4}, {0, 3, 4}, {1, 3, 4}, {0, 1, 4}, {0, 1, 3}]


def test_samples_that_share_a_caption_are_no_neighbours(tmp_path: Path, run: Callable[..., str]) -> None:
    samples: list[Sample] = [
        (png(1), ["A red bus.", "public transport"]),
        (png(2), [" a RED  bus", "on the road"]),
        (png(3), ["a van", "On the road!"]),
        (png(4), "a red bus stop"),
    ]
    shards = write(tmp_path / "s", samples)
    run(shards)
    assert sets(shards) == [{2, 3}, {2, 3}, {0, 1, 3}, {0, 1, 2}]
    run(shards, "--caption", "txt", "json.captions")
    assert sets(shards) == [{2, 3}, {3}, {0, 3}, {0, 1, 2}]


def test_more_candidates_are_asked_for_until_there_are_enough(tmp_path: Path, run: Callable[..., str]) -> None:
    """The first 16 are of no use to most: they say the same."""
    samples: list[Sample] = [*((png(seed), "untitled") for seed in range(90)), (png(90), "a dog"), (png(91), "a cat")]
    shards = write(tmp_path / "s", samples, 40)
    said = run(shards, "--number", "2")
    assert sets(shards)[:90] == [{90, 91}] * 90
    assert "92 of 92 samples have neighbours, 184 in all; 0 have fewer than 2" in said
    assert "train with data.neighbours: layer.neighbours" in said


def test_samples_without_a_neighbour_stay_in_the_layer_and_are_named(tmp_path: Path, run: Callable[..., str]) -> None:
    samples: list[Sample] = [(png(1), "one"), (png(2), "one"), (png(3), "one")]
    shards = write(tmp_path / "s", samples)
    said = run(shards)
    assert [(row["neighbours"], row["similarity"]) for row in rows(shards).values()] == [([], None)] * 3
    assert "without a neighbour 3: 00000: 000000000, 00000: 000000001, 00000: 000000002" in said
    assert "0 of 3 samples have neighbours, 0 in all; 0 have fewer than 3" in said
    assert "WARNING: 100% of the samples have no neighbour" in said
    assert "train with" not in said


def test_samples_that_cannot_be_used_have_no_neighbours_and_are_none(tmp_path: Path, run: Callable[..., str]) -> None:
    samples: list[Sample] = [(png(1), "a"), (b"\x89PNG broken", "b"), (png(3), "..."), (png(4), "c"), (png(5), "d")]
    shards = write(tmp_path / "s", samples, 3)
    said = run(shards)
    assert sets(shards) == [{3, 4}, set(), set(), {0, 4}, {0, 3}]
    assert f"left out 1, undecodable picture: {shards}/00000.tar: 000000001" in said
    assert f"left out 1, empty caption: {shards}/00000.tar: 000000002" in said
    assert "3 of 5 samples have neighbours" in said


def test_shards_that_are_missing_or_hold_nothing_are_counted(tmp_path: Path, run: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", [(png(seed), f"{seed}") for seed in range(4)], 2)
    (shards / "00000.tar").rename(shards / "00002.tar")
    with TarFile(shards / "00003.tar") as tar:
        tar.write("x", {"png": b"broken", "txt": b"x"})
    said = run([str(shards / "{00000..00003}.tar")])
    assert f"left out 1, missing shard: {shards}/00000.tar" in said
    assert "4 of 5 samples have neighbours" in said
    assert sets(shards) == [{1, 2, 3}, {0, 2, 3}, {0, 1, 3}, {0, 1, 2}, set()]


def test_similarity_is_that_of_the_nearest(tmp_path: Path, run: Callable[..., str], model: str) -> None:
    shards = write(tmp_path / "s", [(png(seed), f"{seed}") for seed in range(5)])
    run(shards, "--number", "1")
    tower, _ = loaded(model, "cpu")
    pixels = torch.stack([tower.eval_transform(picture(seed)) for seed in range(5)])
    with torch.inference_mode():
        features_ND = torch.nn.functional.normalize(tower.encode_image(pixels), dim=1)
    cosines = features_ND @ features_ND.T - 2 * torch.eye(5)
    found = [row["similarity"] for row in rows(shards).values()]
    assert found == pytest.approx(cosines.max(dim=1).values.tolist(), abs=1e-3)


# ----------------------------------------------------------------------------- the same from anywhere


@pytest.mark.parametrize("options", [("--workers", "2"), ("--batch-size", "64", "--workers", "1")])
def test_the_layer_does_not_depend_on_workers_or_the_order_of_names(
    tmp_path: Path, run: Callable[..., str], options: tuple[str, ...]
) -> None:
    one, other = (write(tmp_path / name, MIXED, 17) for name in ("one", "other"))
    said = run(one)
    paths = sorted(map(str, other.glob("*.tar")), reverse=True)
    assert run(paths, *options) == said
    assert layer_bytes(one) == layer_bytes(other)


def _killed_at(call: int, after: bool, job: Callable[[], Any]) -> None:
    """Run ``job`` in a process that is killed (-9) when it writes its ``call``-th file, before or after that."""

    def child() -> None:
        original, calls = Store.write, iter(range(1000))

        def deadly(self: Store, path: str, data: bytes) -> None:
            last = next(calls) == call
            if not last or after:
                original(self, path, data)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)

        Store.write = deadly  # type: ignore[method-assign]
        job()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


# Four shards: features, captions and pictures of each, then the layer and the counts of each.
@pytest.mark.parametrize(("call", "after"), [(0, True), (2, False), (5, True), (12, False), (12, True), (15, True)])
def test_a_killed_run_goes_on_and_writes_the_same_bytes(
    tmp_path: Path, run: Callable[..., str], call: int, after: bool
) -> None:
    whole, killed = (write(tmp_path / name, MIXED, 17) for name in ("whole", "killed"))
    said = run(whole)
    _killed_at(call, after, lambda: run(killed))
    written = call + after
    pictures, layers = (list((killed / "layers").rglob(pattern)) for pattern in ("*.pictures.npz", "*.parquet"))
    assert len(pictures) == min(written, 12) // 3
    assert len(layers) == (max(written, 12) - 12 + 1) // 2
    counted = (written - 12) // 2  # layers without their counts are written again
    done = {file: file.stat().st_mtime_ns for file in [*pictures, *sorted(layers)[: max(0, counted)]]}
    assert run(killed) == said
    assert layer_bytes(killed) == layer_bytes(whole)
    assert {file: file.stat().st_mtime_ns for file in done} == done, "what was done is not done again"


def test_what_was_left_half_written_is_done_again(tmp_path: Path, run: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", MIXED, 17)
    said, before = run(shards), layer_bytes(shards)
    for file in [*shards.rglob("*.npz"), *shards.rglob("*.npy"), *shards.rglob("*.parquet"), *shards.rglob("*.json")]:
        if file.parent.name != shards.name and "layers" in str(file) and ".index" not in str(file):
            file.write_bytes(file.read_bytes()[:-100])
    for file in shards.rglob("counts/*.json"):
        file.write_bytes(b"{")
    assert run(shards) == said
    assert layer_bytes(shards) == before


def test_done_work_is_not_done_again(tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write(tmp_path / "s", MIXED, 17)
    said, before = run(shards), layer_bytes(shards)
    monkeypatch.setattr("data_tools._neighbours.embed.embed_first", None)
    run(shards, "--number", "2")  # embeds nothing
    assert all(len(own) == 2 for own in sets(shards))
    run(shards, "--caption", "json.captions")  # reads no picture
    run(shards)
    monkeypatch.setattr("data_tools._neighbours.search.find", None)
    assert run(shards) == said
    assert layer_bytes(shards) == before


def test_counts_are_those_of_the_layer_that_is_there(tmp_path: Path, run: Callable[..., str]) -> None:
    """The run with other options was killed between the layer and the counts."""
    shards = write(tmp_path / "s", MIXED)
    run(shards)
    _killed_at(0, True, lambda: run(shards, "--number", "2"))
    assert "64 of 64 samples have neighbours, 128 in all" in run(shards, "--number", "2")


def test_a_shard_written_anew_changes_the_neighbours_of_all(tmp_path: Path, run: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", [(png(1), "a"), (png(2), "b"), (png(3), "c"), (png(4), "d")], 2)
    run(shards)
    with TarFile(shards / "00001.tar") as tar:
        tar.write("new", {"png": png(5), "txt": b"e"})
    said = run(shards)
    assert "3 of 3 samples have neighbours" in said
    found = rows(shards)
    assert list(found) == ["00000/000000000", "00000/000000001", "00001/new"]
    assert set(found["00000/000000000"]["neighbours"]) == {"00000/000000001", "00001/new"}


def test_another_model_has_embeddings_of_its_own(tmp_path: Path, run: Callable[..., str], model: str) -> None:
    shards = write(tmp_path / "s", MIXED, 17)
    run(shards)
    before = layer_bytes(shards)
    run(shards, "--model", saved(tmp_path / "other", seed=1))
    assert layer_bytes(shards) != before
    assert len(list((shards / "layers/neighbours/.embeddings").iterdir())) == 2
    moved = tmp_path / "elsewhere" / Path(model).name
    moved.parent.mkdir()
    moved.symlink_to(model)
    run(shards, "--model", f"local-dir:{moved}")
    assert layer_bytes(shards) == before, "a model is told by its weights"


def test_a_model_that_changes_during_the_run_is_refused(tmp_path: Path, model: str) -> None:
    shards = write(tmp_path / "s", [(png(1), "a")])
    job = Job(model, weights="of the step before", dim=16)
    with pytest.raises(UserError, match=r"has changed since this run began: name a checkpoint that stays"):
        embed_shard(str(shards / "00000.tar"), job)


def test_parts_embed_and_the_rest_follows(
    tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, shards = (write(tmp_path / name, MIXED, 17) for name in ("whole", "parts"))
    run(whole)
    assert "--part 0/2: 34 pictures of 2 shards are embedded" in run(shards, "--part", "0/2")
    run(shards, "--part", "1/2")
    assert layer_bytes(shards) == {}
    monkeypatch.setattr("data_tools._neighbours.embed.embed_first", None)
    run(shards)
    assert layer_bytes(shards) == layer_bytes(whole)


# ----------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--number", "0"), "--number 0 must be at least 1"),
        (("--batch-size", "0"), "--batch-size 0 must be at least 1"),
        (("--duplicate-above", "1.5"), "--duplicate-above 1.5 is a cosine"),
        (("--caption", "alt"), "--caption alt is no source of captions"),
        (("--index", "ivf"), "--index ivf needs 10,240 pictures or more, and there are 2"),
        (("--probes", "4"), "--probes 4 has no effect on an exact search"),
        (("--name", "my layer"), "'my layer' cannot name a layer"),
        (("--gpus", "1"), "--gpus 1 has no effect without --ray"),
        (("--part", "2/2"), "--part 2/2: parts count from 0"),
        (("--part", "0/2", "--json", "x.json"), "--json has no effect with --part"),
        (("--part", "0/2", "--probes", "4"), "--probes has no effect with --part"),
        (("--dry-run", "--report", "x.html"), "--report has no effect with --dry-run"),
        (("--dry-run", "--part", "0/2"), "--part has no effect with --dry-run"),
        (("--model", "no/such/model"), "no model 'no/such/model'"),
        (("--device", "cuda:99"), "no device 'cuda:99' here"),
    ],
)
def test_mistakes_are_named_with_their_cure(
    tmp_path: Path, refused: Callable[..., str], options: tuple[str, ...], sentence: str
) -> None:
    shards = write(tmp_path / "s", [(png(1), "a"), (png(2), "b")])
    assert sentence in refused(shards, *options)


def test_a_model_without_an_image_tower_is_refused(tmp_path: Path, refused: Callable[..., str], model: str) -> None:
    shards = write(tmp_path / "s", [(png(1), "a"), (png(2), "b")])
    config = json.loads((Path(model) / "open_clip_config.json").read_text())
    del config["model_cfg"]["vision_cfg"]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "open_clip_config.json").write_text(json.dumps(config))
    assert "has no 'model_cfg.vision_cfg'" in refused(shards, "--model", str(tmp_path / "text"))


def test_a_model_whose_weights_have_diverged_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", [(png(1), "a"), (png(2), "b")])
    broken = openclip.build(ModelOptions(config=CONFIG), seed=0)
    broken.clip.visual.proj.data[:] = float("nan")
    openclip.save_openclip_directory(broken, tmp_path / "m")
    assert "features are not finite" in refused(shards, "--model", str(tmp_path / "m"))


def test_shards_that_could_not_be_told_apart_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    one, other = (write(tmp_path / name, [(png(1), "a"), (png(2), "b")]) for name in ("one", "other"))
    assert f"{one}/00000.tar and {other}/00000.tar have the same name" in refused([str(one), str(other)])


def test_without_faiss_the_extra_is_named(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.delitem(sys.modules, "data_tools._neighbours.searchers")
    monkeypatch.delattr("data_tools._neighbours.searchers")
    assert "needs the package faiss-cpu: pip install 'vlp[neighbours]'" in refused(write(tmp_path / "s", MIXED))


def test_embeddings_of_remote_shards_need_a_folder_here() -> None:
    with pytest.raises(
        UserError, match=r"cannot write the layer to s3://bucket/layers.*: name a local folder with --root"
    ):
        Job("m", "0", 16).features("s3://bucket/00000.tar")
    there = Job("m", "0", 16, root="here").features("s3://bucket/00000.tar")
    assert there == Path("here/neighbours/.embeddings/0/00000.npy")


def test_a_layer_of_another_tool_is_left_alone(tmp_path: Path, refused: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", [(png(1), "a"), (png(2), "b")])
    shard, _ = open_shard(str(shards / "00000.tar"))
    LayerWriter(None, "mine", {"tool": "by hand"}).write(shard, [shard.key(0)], {"score": [1.0]})
    assert "was written by by hand: choose another --name" in refused(shards, "--name", "mine")


def test_shards_without_a_usable_sample_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", [(b"\x89PNG", "a"), (png(2), "")])
    assert "no sample with a picture and a caption in 1 shards (undecodable picture: " in refused(shards)


def test_keys_that_are_no_text_are_refused_before_anything_is_embedded(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    shards = write(tmp_path / "s", [(png(1), "a")])
    with TarFile(shards / "00001.tar") as tar:
        tar.write(b"\xff1".decode("utf-8", "surrogateescape"), {"png": png(2), "txt": b"b"})
    said = refused(shards, "--workers", "1")
    assert f"{shards}/00001.tar: the key b'\\xff1' is not UTF-8, so no layer can name it" in said


# ----------------------------------------------------------------------------- what people look at


def test_the_sheet_shows_samples_with_their_neighbours(tmp_path: Path, run: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", MIXED, 17)
    run(shards, "--json", str(tmp_path / "n.json"), "--report", str(tmp_path / "n.html"))
    sheet, found = json.loads((tmp_path / "n.json").read_text()), rows(shards)
    assert (sheet["samples"], sheet["usable"], sheet["neighbours"], sheet["recall"]) == (64, 64, 192, None)
    assert sum(number for *_, number in sheet["similarity"]) == 64
    assert sheet["name"] == f"{name_of_data([str(shards / '00000.tar')])}: neighbours"
    assert len(sheet["sheet"]) == 24
    for sample in sheet["sheet"]:
        shown = [f"{other['shard'].removesuffix('.tar')}/{other['key']}" for other in sample["neighbours"]]
        own = found[f"{sample['shard'].removesuffix('.tar')}/{sample['key']}"]
        assert shown == own["neighbours"]
        assert sample["neighbours"][0]["similarity"] == pytest.approx(own["similarity"])
    assert {one["reason"] for sample in sheet["sheet"] for one in sample["passed_over"]} >= {"near duplicate"}
    page = (tmp_path / "n.html").read_text()
    assert page.count("<figure class=") == sum(
        1 + len(sample["neighbours"]) + len(sample["passed_over"]) for sample in sheet["sheet"]
    )
    assert main(["report", str(tmp_path / "n.json"), "--output", str(tmp_path / "again.html")]) in (0, None)
    assert (tmp_path / "again.html").read_text() == page


def test_captions_stay_captions_on_the_page(tmp_path: Path, run: Callable[..., str]) -> None:
    nasty = "</figcaption><script>document.title='ran'</script>"
    shards = write(tmp_path / "s", [(png(seed), f"{nasty} {seed}") for seed in range(4)])
    run(shards, "--report", str(tmp_path / "n.html"))
    page = (tmp_path / "n.html").read_text()
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") >= 16


def test_a_dry_run_says_what_it_costs_and_writes_nothing(tmp_path: Path, run: Callable[..., str]) -> None:
    shards = write(tmp_path / "s", [(png(seed), "a") for seed in range(9)], 5)
    said = run(shards, "--dry-run")
    assert "pictures  9 in 2 shards, 16 dimensions" in said
    assert "index     exact" in said
    assert "with 1 process" in said
    assert not (shards / "layers").exists()


def test_the_plan_of_a_hundred_million_pictures() -> None:
    rates = Rates(pictures=100, flops=1e11, codes=2e7, candidates=1e5)
    found = plan(100_000_000, 768, IndexOptions("ivfpq", 32), 3, rates)
    assert found.features_bytes == 100_000_000 * 1536
    assert (found.lists, found.code_bytes, found.candidates) == (32_768, 96, 128)
    assert found.index_bytes == 100_000_000 * (96 + 8) + 32_768 * 768 * 4
    assert found.training_bytes == 40 * 32_768 * 768 * 4
    assigning = 2 * 32_768 * 768 / 1e11
    assert found.hours["embedding"] == pytest.approx(1e8 / 100 / 3600)
    assert found.hours["indexing"] == pytest.approx(1e8 * assigning / 3600)
    scanning, comparing = 32 * 1e8 / 32_768 / 2e7, 128 / 1e5
    assert found.hours["searching"] == pytest.approx(1e8 * (assigning + scanning + comparing) / 3600)
    assert any("32,768 lists, 104 bytes a picture, 9.8 GiB" in line for line in found.lines(64, 10_000))
    exact = plan(100_000, 512, IndexOptions("exact", 0), 3, rates)
    assert exact.hours["searching"] == pytest.approx(2 * 1e10 * 512 / 1e11 / 3600)
    assert exact.index_bytes == 0
