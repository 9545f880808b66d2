"""``vlp data stats``: the figures of a small set counted by hand, the same ones from any number of processes."""

from __future__ import annotations

import argparse
import io
import json
import sys
from base64 import b64decode
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_tools import stats as tool
from data_tools._stats_figures import Spread, repeats
from data_tools._stats_shard import json_type
from data_tools.stats import stats
from vlp import cli
from vlp.data.write import ShardWriter, encode_image
from vlp.types import UserError


def gradient(seed: int, size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


SAMPLES: list[tuple[Image.Image, str, str, dict[str, Any]]] = [
    (gradient(1, (64, 48)), "png", "a dog in the park", {"score": 0.5}),
    (gradient(1, (64, 48)), "png", "a dog in the park", {"score": 1}),  # the same bytes, the same caption
    (gradient(1, (64, 48)), "webp", "the same dog", {"score": None}),  # other bytes, the same look
    (gradient(2, (32, 32)), "png", "dog", {"tags": ["x", "y"]}),
    (gradient(3, (100, 50)).convert("RGBA"), "png", "two cats sleep on a red sofa", {"tags": []}),
    (gradient(4, (50, 100)), "jpg", "a dog in the park", {}),
]


def write(directory: Path, samples_per_shard: int = 4) -> Path:
    with ShardWriter(directory, samples_per_shard) as shards:
        for image, extension, caption, metadata in SAMPLES:
            shards.write(encode_image(image, extension), extension, caption, **metadata)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("set") / "train")


@pytest.fixture(scope="module")
def sheet(directory: Path) -> dict[str, Any]:
    return stats([str(directory)], workers=1)


# ---- Figures counted by hand


def test_counts(sheet: dict[str, Any], directory: Path) -> None:
    assert (sheet["shards"], sheet["samples"]) == (2, 6)
    assert sheet["name"] == f"{directory.parent.name}/train"
    assert sheet["members"] == {"json": 6, "txt": 6, "png": 4, "jpg": 1, "webp": 1}
    assert sheet["pictures"]["formats"] == {"PNG": 4, "JPEG": 1, "WEBP": 1}
    assert sheet["pictures"]["modes"] == {"RGB": 5, "RGBA": 1}
    assert sheet["pictures"]["traits"] == {"with transparency": 1}
    assert sheet["defects"] == {}
    assert sheet["layers"] == []


def test_sizes_and_lengths(sheet: dict[str, Any]) -> None:
    width, words = sheet["pictures"]["width"], sheet["captions"]["words"]
    assert (width["min"], width["max"], width["number"]) == (32, 100, 6)
    assert width["mean"] == pytest.approx((64 * 3 + 32 + 100 + 50) / 6)
    assert [width["quantiles"][q] for q in ("1 %", "25 %", "50 %", "95 %")] == [32, 50, 64, 100]
    assert sheet["pictures"]["aspect"]["max"] == 2
    assert (words["min"], words["max"], words["quantiles"]["50 %"]) == (1, 7, 5)
    assert words["mean"] == pytest.approx((5 * 3 + 3 + 1 + 7) / 6)
    assert sum(number for *_, number in words["histogram"]) == 6
    assert sheet["captions"]["characters"]["max"] == len("two cats sleep on a red sofa")
    assert sheet["pictures"]["bytes"]["max"] == max(len(encode_image(i, e)) for i, e, *_ in SAMPLES)


def test_duplicates(sheet: dict[str, Any]) -> None:
    captions, same, look = sheet["captions"], sheet["duplicates"]["bytes"], sheet["duplicates"]["look"]
    assert (captions["number"], captions["distinct"], captions["repeated"]) == (6, 4, 3)
    assert captions["most_frequent"] == [{"caption": "a dog in the park", "number": 3}]
    assert (same["number"], same["distinct"], same["repeated"]) == (6, 5, 2)
    assert (look["number"], look["distinct"], look["repeated"]) == (6, 4, 3)
    (group,) = look["groups"]
    assert [one["caption"] for one in group["samples"]] == ["a dog in the park"] * 2 + ["the same dog"]
    assert [one["sample"] for one in group["samples"]] == [f"00000.tar: 00000000{i}" for i in range(3)]


def test_fields(sheet: dict[str, Any]) -> None:
    fields = {one["name"]: one for one in sheet["fields"]}
    assert fields["caption"] == {"name": "caption", "samples": 6, "types": {"string": 6}}
    assert fields["score"] == {"name": "score", "samples": 2, "types": {"integer": 1, "null": 1, "number": 1}}
    assert fields["tags"]["types"] == {"empty list": 1, "list of string": 1}
    assert fields["error_message"]["samples"] == 0


def test_json_types() -> None:
    values = [True, 3, 3.5, "x", {}, None, [1, 2.5], []]
    names = ["boolean", "integer", "number", "string", "object", "null", "list of integer and number", "empty list"]
    assert [json_type(value) for value in values] == names


def test_languages(sheet: dict[str, Any]) -> None:
    pytest.importorskip("py3langid")
    languages = sheet["languages"]
    assert sum(languages["sure"].values()) + languages["unsure"] == 6
    assert {name: one["number"] for name, one in languages["by_length"].items()} == {
        "1 word": 1,
        "2 to 3 words": 1,
        "4 to 7 words": 4,
    }
    assert sum(one["sure"] for one in languages["by_length"].values()) == sum(languages["sure"].values())


def test_long_captions_have_their_language(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    texts = [
        "Ein kleiner brauner Hund läuft mit einem Ball im Maul über die grüne Wiese hinter dem Haus.",
        "Un petit chien brun court avec une balle dans la gueule sur la pelouse verte derrière la maison.",
        "A small brown dog runs across the green lawn behind the house with a ball in its mouth.",
    ]
    with ShardWriter(tmp_path / "set") as shards:
        for text in texts:
            shards.write(encode_image(gradient(0, (8, 8))), "png", text)
    found = stats([str(tmp_path / "set")], sample=0, workers=1)["languages"]
    assert (found["sure"], found["unsure"]) == ({"de": 1, "en": 1, "fr": 1}, 0)


def test_captions_of_a_json_list_count_each(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "set") as shards:
        for number in range(3):
            shards.write(encode_image(gradient(number, (8, 8))), "png", "x", views=[f"view {number}", "a view", ""])
    found = stats([str(tmp_path / "set")], ["json.views"], workers=1)["captions"]
    assert (found["number"], found["distinct"]) == (6, 4)
    assert found["most_frequent"] == [{"caption": "a view", "number": 3}]


# ---- Any size


@pytest.mark.parametrize("seed", range(6))
def test_a_spread_agrees_with_numpy(seed: int) -> None:
    generator = np.random.default_rng(seed)
    top = [2, 30, 900, 9000, 9999, 40][seed]
    values = generator.integers(1, top + 1, 500) if seed < 5 else generator.lognormal(1, 2, 500)
    spread = Spread()
    for start in range(0, 500, 70):
        part = Spread()
        for value in values[start : start + 70].tolist():
            part.add(value)
        spread += part
    content = spread.to_json()
    assert content is not None
    assert (content["number"], content["min"], content["max"]) == (500, values.min(), values.max())
    assert content["mean"] == pytest.approx(values.mean())
    for name, value in content["quantiles"].items():
        expected = np.quantile(values, float(name[:-2]) / 100, method="inverted_cdf")
        assert value == pytest.approx(expected, rel=1e-3 if seed == 5 else 0)
    bins = content["histogram"]
    assert len(bins) <= 60
    assert sum(number for *_, number in bins) == 500
    assert all(high == low for (_, high, _), (low, _, _) in pairwise(bins))
    rounded = np.array([float(f"{value:.4g}") for value in values])
    for place, (low, high, number) in enumerate(bins):
        inside = (rounded >= low) & ((rounded < high) if place < len(bins) - 1 else True)
        assert inside.sum() == number


def test_large_values_keep_the_table_of_counts_small() -> None:
    spread = Spread()
    for value in range(1_000_000, 1_050_000):
        spread.add(value)
    assert len(spread.counts) == 51
    assert spread.low == 1_000_000


def test_repeats_are_counted_exactly() -> None:
    found = repeats(np.array([5, 3, 5, 9, 3, 5, 1], dtype=np.uint64), 2)
    assert (found.number, found.distinct, found.in_groups) == (7, 4, 5)
    assert found.groups == [(3, 0), (2, 1)]


def test_processes_and_other_shards_give_the_same_figures(directory: Path, sheet: dict, tmp_path: Path) -> None:
    assert stats([str(directory)], workers=2) == sheet
    one_shard = stats([str(write(tmp_path / "train", 100))], workers=1)
    for name in ("samples", "members", "captions", "languages"):
        assert one_shard[name] == sheet[name], name
    for name in ("width", "aspect", "bytes", "formats", "modes"):
        assert one_shard["pictures"][name] == sheet["pictures"][name], name


# ---- What is shown


def test_the_sample_is_a_function_of_the_seed(directory: Path, sheet: dict[str, Any]) -> None:
    drawn = {
        tuple(one["sample"] for one in stats([str(directory)], sample=3, seed=seed, workers=1)["sheet"])
        for seed in range(4)
    }
    assert len(drawn) > 1
    assert [one["caption"] for one in sheet["sheet"]] == [caption for _, _, caption, _ in SAMPLES]
    for one in sheet["sheet"]:
        head, _, data = sheet["thumbnails"][one["sample"]].partition(",")
        assert head == "data:image/webp;base64"
        with Image.open(io.BytesIO(b64decode(data))) as small:
            assert small.size == (one["width"], one["height"])


def test_pictures_can_be_left_out(directory: Path) -> None:
    without = stats([str(directory)], sample=0, workers=1)
    assert (without["sheet"], without["thumbnails"]) == ([], {})
    assert without["duplicates"]["look"]["repeated"] == 3


def test_defects_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "set") as shards:
        shards.write(encode_image(gradient(0, (8, 8))), "png", "fine")
        shards.write(b"no picture", "jpg", "a caption")
        shards.write(encode_image(gradient(1, (8, 8))), "png", " ")
    sheet = stats([str(tmp_path / "set")], workers=1)
    assert {kind: one["number"] for kind, one in sheet["defects"].items()} == {
        "empty caption": 1,
        "undecodable picture": 1,
    }
    assert "000000002" in sheet["defects"]["empty caption"]["example"]
    assert (sheet["samples"], sheet["pictures"]["number"], sheet["captions"]["number"]) == (3, 2, 2)
    assert [one["caption"] for one in sheet["sheet"]] == ["fine", ""]


def test_what_cannot_be_counted_is_said(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("imagehash", "py3langid"):
        monkeypatch.setitem(sys.modules, name, None)
    sheet = stats([str(directory)], workers=1)
    assert "ImageHash" in sheet["duplicates"]["look"]
    assert "py3langid" in sheet["languages"]
    assert "not counted" in tool.summary(sheet)


# ---- The command


def test_the_command_writes_both_files(directory: Path, sheet: dict, tmp_path: Path, capsys) -> None:
    out, page = tmp_path / "data.json", tmp_path / "data.html"
    cli.main(["data", "stats", str(directory), "--out", str(out), "--html", str(page), "--workers", "1"])
    assert json.loads(out.read_text(encoding="utf-8")) == json.loads(json.dumps(sheet))
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    printed = capsys.readouterr().out
    assert "6 in 2 shards" in printed
    assert "6, 4 of them different" in printed


def test_a_set_without_any_usable_sample_has_a_sheet(tmp_path: Path, capsys) -> None:
    (tmp_path / "0.tar").write_bytes(b"\0" * 10240)
    cli.main(["data", "stats", str(tmp_path), "--html", str(tmp_path / "x.html"), "--workers", "1"])
    assert "empty shard" in capsys.readouterr().out
    assert "empty shard" in (tmp_path / "x.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sample", "-1"], "--sample -1"),
        (["--out", "."], "is a directory"),
        (["--html", "no/where.html"], "no directory"),
        (["--caption", "cls"], "txt or json.FIELD"),
    ],
)
def test_mistakes_are_one_sentence(directory: Path, arguments: list[str], sentence: str) -> None:
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    with pytest.raises(UserError, match=sentence):
        tool.run(parser.parse_args([str(directory), *arguments]))
