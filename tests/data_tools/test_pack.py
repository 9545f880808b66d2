"""``vlp data pack`` on small sources in each of its formats."""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools import pack
from data_tools.pack import PackOptions, write_pack
from vlp.types import UserError


def picture(path: Path, size: tuple[int, int] = (20, 12), colour: str = "red") -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path.read_bytes()


def members(out: Path) -> list[dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for shard in sorted(out.glob("**/*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                key, _, extension = member.name.partition(".")
                found.setdefault(f"{shard.name} {key}", {})[extension] = stream.read()
    return list(found.values())


def by_file(out: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for sample in members(out):
        record = json.loads(sample["json"])
        found[record["file"]] = record | {"members": sample}
    return found


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    images = [{"id": 7 + i, "file_name": f"{i:03}.jpg"} for i in range(3)]
    annotations = [
        {"id": 10 * i + c, "image_id": 7 + i, "caption": f"picture {i}\n caption {c} "}
        for i in range(3)
        for c in range(6 - i)
    ]
    annotations.append({"id": 99, "image_id": 12345, "caption": "of nothing"})
    for image in images:
        picture(tmp_path / "val" / image["file_name"])
    path = tmp_path / "captions_val.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    images = []
    for number, split in enumerate(("train", "restval", "val", "test", "test")):
        name = f"COCO_{number}.jpg"
        picture(tmp_path / "pictures" / "val2014" / name)
        sentences = [{"raw": f"{split} {number}, caption {c}."} for c in range(5)]
        record = {"filepath": "val2014", "filename": name, "cocoid": 100 + number, "imgid": number}
        images.append(record | {"split": split, "sentences": sentences})
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"dataset": "coco", "images": images}))
    return path


def test_folder_copies_bytes_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    src = tmp_path / "src"
    jpeg = picture(src / "deep" / "a.JPG")
    png = picture(src / "b.png")
    picture(src / "c.bmp")
    (src / "deep" / "a.txt").write_text("a red field\n\nred, all of it\n")
    (src / "b.txt").write_text("\ufeffb\n", encoding="utf-8")
    (src / "c.txt").write_text("c\n")
    picture(src / "mute.png")
    picture(src / "empty.png")
    (src / "empty.txt").write_text(" \n")
    (src / "lost.txt").write_text("no picture\n")
    (src / "bad.png").write_bytes(b"nothing")
    (src / "bad.txt").write_text("bad\n")
    whole = picture(src / "cut.jpg", (200, 200))
    (src / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (src / "cut.txt").write_text("cut\n")
    summary = write_pack(PackOptions(src, tmp_path / "out"))

    found = by_file(tmp_path / "out")
    assert set(found) == {"deep/a.JPG", "b.png", "c.bmp"}
    assert found["deep/a.JPG"]["members"]["jpg"] == jpeg
    assert found["deep/a.JPG"]["captions"] == ["a red field", "red, all of it"]
    assert found["deep/a.JPG"]["members"]["txt"] == b"a red field"
    assert (found["b.png"]["members"]["png"], found["b.png"]["caption"]) == (png, "b")
    assert Image.open(io.BytesIO(found["c.bmp"]["members"]["png"])).size == (20, 12)
    assert summary.skipped_by_kind() == {
        "caption without picture": 1,
        "no caption file": 1,
        "empty caption": 1,
        "undecodable picture": 1,
        "truncated picture": 1,
    }
    assert summary.counts["pictures written"] == 3
    assert summary.counts["captions written"] == 4
    assert "cut.jpg" in (tmp_path / "out" / "skipped.tsv").read_text()


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
def test_csv_of_open_clip_with_several_captions_a_picture(tmp_path: Path, separator: str) -> None:
    picture(tmp_path / "img" / "a.jpg")
    picture(tmp_path / "img" / "b.jpg")
    rows = [
        ("title", "filepath"),
        ('"one, two"', "img/a.jpg"),
        ("other", "img/b.jpg"),
        ("second of a", "img/a.jpg"),
    ]
    rows += [("", "img/b.jpg"), ("gone", "img/c.jpg"), ("nameless", "")]
    src = tmp_path / "train.csv"
    src.write_text("".join(separator.join(r) + "\n" for r in rows))
    given = ";" if separator == ";" else None
    summary = write_pack(PackOptions(src, tmp_path / "out", csv_separator=given))
    found = by_file(tmp_path / "out")
    assert {f: r["captions"] for f, r in found.items()} == {
        "img/a.jpg": ["one, two", "second of a"],
        "img/b.jpg": ["other"],
    }
    assert summary.skipped_by_kind() == {"missing picture": 1, "row without picture": 1}


def test_csv_with_other_columns_and_absolute_paths(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "a.jpg")
    src = tmp_path / "data.tsv"
    src.write_text(f"image\ttext\n{tmp_path}/elsewhere/a.jpg\ta\n")
    with pytest.raises(UserError, match=r"no column 'filepath' \(--csv-img-key\).*columns: image, text"):
        write_pack(PackOptions(src, tmp_path / "out"))
    write_pack(PackOptions(src, tmp_path / "out", csv_img_key="image", csv_caption_key="text"))
    assert len(members(tmp_path / "out")) == 1


def test_coco_groups_captions_and_keeps_ids(tmp_path: Path, coco: Path) -> None:
    summary = write_pack(PackOptions(coco, tmp_path / "out", images=tmp_path / "val", captions_per_image=5))
    found = by_file(tmp_path / "out")
    assert {r["image_id"]: len(r["captions"]) for r in found.values()} == {7: 5, 8: 5, 9: 4}
    assert found["000.jpg"]["captions"][:2] == ["picture 0 caption 0", "picture 0 caption 1"]
    assert summary.counts["pictures with fewer than 5 captions"] == 1
    assert summary.counts["captions written"] == 14
    assert summary.skipped_by_kind() == {"caption without picture": 1}


def test_retrieval_set_keeps_all_captions_in_the_order_of_the_source(tmp_path: Path, coco: Path) -> None:
    out = tmp_path / "out"
    write_pack(PackOptions(coco, out, images=tmp_path / "val", as_retrieval=True))
    assert (out / "dataset_type.txt").read_text().strip() == "retrieval"
    assert (out / "test" / "nshards.txt").read_text().strip() == "1"
    assert [s["txt"].decode().splitlines()[0] for s in members(out)] == [f"picture {i} caption 0" for i in range(3)]
    assert [len(s["txt"].decode().splitlines()) for s in members(out)] == [6, 5, 4]


def test_karpathy_splits(tmp_path: Path, karpathy: Path) -> None:
    images = tmp_path / "pictures"
    write_pack(PackOptions(karpathy, tmp_path / "train", images=images))
    assert {r["image_id"] for r in by_file(tmp_path / "train").values()} == {100, 101}
    write_pack(PackOptions(karpathy, tmp_path / "val", images=images, split="val"))
    assert set(by_file(tmp_path / "val")) == {"val2014/COCO_2.jpg"}
    write_pack(PackOptions(karpathy, tmp_path / "test", images=images, as_retrieval=True))
    assert [s["txt"].decode().splitlines()[4] for s in members(tmp_path / "test")] == [
        "test 3, caption 4.",
        "test 4, caption 4.",
    ]
    with pytest.raises(UserError, match=r"--split tst is not in .*did you mean 'test'"):
        write_pack(PackOptions(karpathy, tmp_path / "no", images=images, split="tst"))


def test_resize_reduces_to_the_short_side_and_never_enlarges(tmp_path: Path) -> None:
    src = tmp_path / "src"
    picture(src / "large.jpg", (120, 60))
    small = picture(src / "small.jpg", (30, 20))
    for name in ("large", "small"):
        (src / f"{name}.txt").write_text(name)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (120, 60)).save(src / "turned.jpg", exif=turned)
    (src / "turned.txt").write_text("turned")
    write_pack(PackOptions(src, tmp_path / "out", resize=30))
    found = by_file(tmp_path / "out")
    sizes = {f: Image.open(io.BytesIO(r["members"]["jpg"])).size for f, r in found.items()}
    assert sizes == {"large.jpg": (60, 30), "small.jpg": (30, 20), "turned.jpg": (30, 60)}
    assert found["small.jpg"]["members"]["jpg"] == small
    assert (found["turned.jpg"]["width"], found["turned.jpg"]["height"]) == (30, 60)


def test_shards_are_filled_in_a_seeded_order(tmp_path: Path) -> None:
    src = tmp_path / "src"
    for i in range(7):
        picture(src / f"{i}.png")
        (src / f"{i}.txt").write_text(f"{i}")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_pack(PackOptions(src, tmp_path / name, samples_per_shard=3, seed=seed))
    order = {name: [s["txt"] for s in members(tmp_path / name)] for name in "abc"}
    assert len(list((tmp_path / "a").glob("*.tar"))) == 3
    assert (tmp_path / "a/00001.tar").read_bytes() == (tmp_path / "b/00001.tar").read_bytes()
    assert order["a"] == order["b"] != order["c"]
    assert sorted(order["a"]) == sorted(order["c"]) == [str(i).encode() for i in range(7)]


@pytest.mark.parametrize("as_retrieval", [True, False])
def test_all_bad_is_refused_and_leaves_nothing(tmp_path: Path, as_retrieval: bool) -> None:
    src = tmp_path / "src"
    src.mkdir()
    (src / "bad.png").write_bytes(b"nothing")
    (src / "bad.txt").write_text("bad")
    with pytest.raises(UserError, match=r"not one usable picture .1 undecodable picture"):
        write_pack(PackOptions(src, tmp_path / "out", as_retrieval=as_retrieval))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", '{"a": 1}', "of no clear format"),
        ("x.json", "{", "cannot be read as JSON"),
        ("x.parquet", "", "of no clear format"),
        ("x.csv", "", "no column 'filepath'"),
        ("missing.csv", None, "does not exist"),
    ],
)
def test_unclear_sources_are_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        write_pack(PackOptions(tmp_path / name, tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"captions_per_image": 0}, "--captions-per-image 0"),
        ({"csv_separator": "ab"}, "must be one character"),
        ({"format": "karpathy"}, "'images' has an entry without 'filename'"),
        ({"format": "folder", "images": None}, "is no folder"),
        ({"csv_separator": "tab"}, "--csv-separator has no effect on a coco packed as shards: it is for csv"),
        ({"split": "val"}, "--split has no effect"),
        ({"seed": 1, "as_retrieval": True}, "--seed has no effect on a coco packed as retrieval"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, coco: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_pack(PackOptions(**{"src": coco, "out": tmp_path / "out", "images": tmp_path / "val"} | change))


def test_the_command_line_prints_the_table(tmp_path: Path, coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    pack.add_arguments(parser)
    words = [
        str(coco),
        str(tmp_path / "out"),
        "--images",
        str(tmp_path / "val"),
        "--as",
        "retrieval",
    ]
    pack.run(parser.parse_args(words))
    printed = capsys.readouterr().out
    assert "pictures written                    3\n" in printed
    assert "skipped 1, caption without picture: captions_val.json: annotation 99" in printed
