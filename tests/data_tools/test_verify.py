"""``vlp data verify``: every kind of defect in made shards is named, and nothing else is."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools._verify_shard import check_shard, keys_in_two_shards
from data_tools.verify import Defect, table, verify
from vlp import cli
from vlp.data.index import save, scan
from vlp.data.write import ShardWriter, encode_image
from vlp.types import UserError


def png(number: int = 0, size: tuple[int, int] = (12, 8)) -> bytes:
    return encode_image(Image.new("RGB", size, (number % 256, number // 256 % 256, 99)))


def noisy_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "JPEG")
    return buffer.getvalue()


def png_bomb() -> bytes:
    """A hundred million pixels in a few kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, text: bytes = b"a caption", record: bytes = b"{}", picture: bytes | None = None) -> list:
    return [(f"{key}.png", png() if picture is None else picture), (f"{key}.txt", text), (f"{key}.json", record)]


def write_clean(directory: Path, num_samples: int = 7, samples_per_shard: int = 3) -> Path:
    with ShardWriter(directory, samples_per_shard) as shards:
        for number in range(num_samples):
            shards.write(png(number), "png", f"caption {number}", title=f"title {number}")
    return directory


def named(defects: list[Defect]) -> list[tuple[str, str, str]]:
    return sorted((defect.kind, Path(defect.shard).name, defect.key) for defect in defects)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write_clean(tmp_path / "train")


# ---- A clean set


def test_a_clean_set_has_no_defects(clean: Path) -> None:
    found = verify([str(clean)], workers=1)
    assert found.defects == []
    assert (found.num_shards, found.num_samples) == (3, 7)
    with tarfile.open(clean / "00002.tar") as tar:
        assert verify([str(clean / "00002.tar")], workers=1).num_bytes == sum(member.size for member in tar)


def test_pictures_of_every_mode_are_no_defects(tmp_path: Path) -> None:
    members = []
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        buffer = io.BytesIO()
        Image.new(mode, (9, 7)).save(buffer, "PNG")
        members += sample(f"mode{mode}", picture=buffer.getvalue())
    buffer = io.BytesIO()
    Image.new("CMYK", (9, 7)).save(buffer, "JPEG")
    members += [("cmyk.jpg", buffer.getvalue()), ("cmyk.txt", b"x"), ("cmyk.json", b"[1, 2]")]
    assert verify([str(write_tar(tmp_path / "0.tar", members))], workers=1).defects == []


# ---- Each kind

JPEG = noisy_jpeg()
SAMPLE_DEFECTS = {
    "undecodable picture": sample("bad", picture=b"no picture at all"),
    "truncated picture": [("bad.jpg", JPEG[: len(JPEG) // 2]), ("bad.txt", b"half a picture")],
    "huge picture": sample("bad", picture=png_bomb()),
    "no picture": [("bad.txt", b"a caption alone")],
    "empty caption": sample("bad", text=b"\xef\xbb\xbf \n"),
    "no caption": [("bad.png", png()), ("bad.json", b'{"caption": "not asked for"}')],
    "text is not UTF-8": sample("bad", text="Übung".encode("latin-1")),
    "broken JSON": sample("bad", record=b'{"a": '),
    "duplicate key": sample("bad") + sample("bad"),
}


@pytest.mark.parametrize("kind", SAMPLE_DEFECTS)
def test_a_defect_of_a_sample_is_named_and_no_other(tmp_path: Path, kind: str) -> None:
    members = [*sample("first"), *SAMPLE_DEFECTS[kind], *sample("last")]
    found = verify([str(write_tar(tmp_path / "0.tar", members))], workers=1)
    assert named(found.defects) == [(kind, "0.tar", "bad")]


def test_a_sample_with_several_defects_has_them_all(tmp_path: Path) -> None:
    members = [*sample("a", b"\xff", b"{", b"?"), ("a.jpg", JPEG[:500])]
    found = verify([str(write_tar(tmp_path / "0.tar", members))], workers=1)
    kinds = ["broken JSON", "text is not UTF-8", "truncated picture", "undecodable picture"]
    assert named(found.defects) == [(kind, "0.tar", "a") for kind in kinds]
    assert {d.detail.partition(":")[0] for d in found.defects if "picture" in d.kind} == {"jpg", "png"}


def test_captions_are_looked_for_where_the_user_says(tmp_path: Path) -> None:
    members = [
        *[("a.png", png()), ("a.json", b'{"title": "one"}')],
        *[("b.png", png()), ("b.json", b'{"title": ["two", ""]}')],
        *sample("c", b"falls back to this", b'{"title": [""]}'),
        *[("d.png", png()), ("d.json", b'{"title": null}')],
    ]
    path = str(write_tar(tmp_path / "0.tar", members))
    assert named(verify([path], ["json.title"], workers=1).defects) == [
        ("empty caption", "0.tar", "b"),
        ("no caption", "0.tar", "d"),
    ]
    assert len(verify([path], workers=1).defects) == 3


@pytest.mark.parametrize(
    ("content", "kind"), [(b"", "not a tar"), (b"x" * 9000, "not a tar"), (b"\0" * 10240, "empty shard")]
)
def test_a_file_that_is_no_shard_is_named(clean: Path, content: bytes, kind: str) -> None:
    (clean / "00001.tar").write_bytes(content)
    found = named(verify([str(clean)], workers=1).defects)
    assert (kind, "00001.tar", "") in found
    extra = {one[0] for one in found} - {kind}
    assert extra <= {"count differs from _stats.json", "count differs from .parquet"}


def test_a_truncated_shard_says_how_much_is_left(clean: Path) -> None:
    path = clean / "00000.tar"
    path.write_bytes(path.read_bytes()[:5500])
    (defect,) = verify([str(clean)], workers=1).defects
    assert (defect.kind, defect.shard) == ("truncated shard", str(path))
    assert defect.detail == "1 of 3 samples are whole"


def test_counts_beside_the_tar_are_compared(clean: Path) -> None:
    stats = json.loads((clean / "00000_stats.json").read_text())
    (clean / "00000_stats.json").write_text(json.dumps(stats | {"successes": 4}))
    pq.write_table(pa.table({"key": ["a", "b"]}), clean / "00001.parquet")
    (clean / "00002_stats.json").write_text("{")
    (clean / "00002.parquet").write_bytes(b"PAR1")
    assert named(verify([str(clean)], workers=1).defects) == [
        ("count differs from .parquet", "00001.tar", ""),
        ("count differs from _stats.json", "00000.tar", ""),
        ("unreadable .parquet", "00002.tar", ""),
        ("unreadable _stats.json", "00002.tar", ""),
    ]


def test_rows_of_failed_downloads_do_not_count(clean: Path) -> None:
    """img2dataset's tables hold them, its tars do not."""
    status = ["success", "failed_to_download", "success", "success", "failed_to_resize"]
    pq.write_table(pa.table({"key": list("abcde"), "status": status}), clean / "00000.parquet")
    assert verify([str(clean)], workers=1).defects == []


def test_a_key_in_two_shards_is_named_in_every_further_one(tmp_path: Path) -> None:
    for number, keys in enumerate(("abc", "dbe", "fgb")):
        write_tar(tmp_path / f"{number}.tar", [member for key in keys for member in sample(key)])
    found = verify([str(tmp_path)], workers=1).defects
    assert named(found) == [("key in two shards", "1.tar", "b"), ("key in two shards", "2.tar", "b")]
    assert {defect.detail for defect in found} == {f"also in {tmp_path / '0.tar'}"}


@pytest.mark.parametrize("change", ["gone", "shorter", "other keys", "dead server"])
def test_a_shard_that_changes_before_its_keys_are_compared_is_named(tmp_path: Path, change: str) -> None:
    paths = [str(tmp_path / f"{number}.tar") for number in range(2)]
    for path in paths:
        write_tar(Path(path), [member for key in "abc" for member in sample(key)])
    keys = [check_shard(path, ("txt",)).keys for path in paths]
    if change == "gone":
        Path(paths[1]).unlink()
    elif change == "dead server":
        paths[1] = "http://:x/1.tar"  # an address that cannot be read: a dead one would take a minute
    else:
        left = "a" if change == "shorter" else "axy"
        write_tar(Path(paths[1]), [member for key in left for member in sample(key)])
    found = keys_in_two_shards(paths, keys)
    twice = [("key in two shards", "1.tar", "a")] if change in ("shorter", "other keys") else []
    assert sorted(named(found)) == [*twice, ("unreadable shard", "1.tar", "")]


def test_leftovers_and_missing_shards_are_named(clean: Path) -> None:
    (clean / "00001.tar").rename(clean / "00001.tar.partial")
    (clean / "00002.tar").unlink()
    (clean / "00000.parquet.partial").touch()
    write_tar(clean / "00007.tar", sample("seven"))
    assert named(verify([str(clean)], workers=1).defects) == [
        ("half-written shard", "00001.tar.partial", ""),
        ("half-written shard", "00007.tar", ""),
        ("leftover file", "00000.parquet.partial", ""),
        ("missing shard", "00002.tar", ""),
    ]
    assert verify([str(clean / "00000.tar")], workers=1).defects == []  # only this one was asked about


def test_a_shard_that_a_pattern_names_is_missed(clean: Path) -> None:
    (clean / "00001.tar").unlink()
    found = verify([str(clean / "{00000..00002}.tar")], workers=1)
    assert {one[:2] for one in named(found.defects)} == {("missing shard", "00001.tar")}
    assert found.num_samples == 4


def test_processes_find_what_one_process_finds(tmp_path: Path) -> None:
    for number, kind in enumerate(SAMPLE_DEFECTS):
        write_tar(tmp_path / f"{number}.tar", [*sample(f"good{number}"), *SAMPLE_DEFECTS[kind]])
    alone, together = verify([str(tmp_path)], workers=1), verify([str(tmp_path)], workers=2)
    assert together == alone
    assert len(alone.defects) == 2 * len(SAMPLE_DEFECTS) - 2  # "bad" has a picture in all shards but one


# ---- The command


def test_the_exit_code_tells_and_the_json_has_everything(clean: Path, tmp_path: Path, capsys) -> None:
    cli.main(["data", "verify", str(clean), "--workers", "1"])
    assert "no defects" in capsys.readouterr().out
    shutil.copy(clean / "00001.tar", clean / "00003.tar")
    write_tar(clean / "00004.tar", [(b"k\xff.png".decode("utf-8", "surrogateescape"), b"?"), *sample("fine")])
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "verify", str(clean), "--workers", "1", "--json", str(tmp_path / "found.json")])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "key in two shards" in printed.out
    content = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert content["kinds"] == {
        "key in two shards": 3,
        "half-written shard": 2,
        "undecodable picture": 1,
        "no caption": 1,
    }
    assert len(content["defects"]) == 7
    broken = [defect for defect in content["defects"] if defect["kind"] == "undecodable picture"]
    assert broken[0]["key"] == "k\udcff"


def test_mistakes_are_one_sentence(clean: Path, tmp_path: Path) -> None:
    for arguments, sentence in (
        ([str(tmp_path / "nowhere")], "does not exist"),
        ([str(clean), "--caption", "jpg"], "txt or json.FIELD"),
        ([str(clean), "--json", str(tmp_path / "no" / "x.json")], "no directory"),
        ([str(clean), "--json", str(tmp_path)], "is a directory"),
        ([str(clean), "--workers", "0"], "--workers 0"),
    ):
        command = [sys.executable, "-m", "vlp", "data", "verify", *arguments]
        if "0" in arguments:  # one process is enough to see that there is no traceback
            done = subprocess.run(command, capture_output=True, text=True)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1)
            assert sentence in done.stderr
        else:
            with pytest.raises(SystemExit) as ended:
                cli.main(command[3:])
            assert ended.value.code == 2


def test_sources_without_any_shard_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"00000\.tar does not exist"):
        verify([str(tmp_path / "{00000..00003}.tar")], workers=1)


def test_an_index_of_another_tar_is_stale(clean: Path) -> None:
    for number in range(3):
        save(*scan(str(clean / f"{number:05d}.tar")))
    assert verify([str(clean)], workers=1).defects == []
    mixed = (clean / "00000.tar").read_bytes()
    (clean / "00000.tar").write_bytes((clean / "00001.tar").read_bytes())
    (clean / "00001.tar").write_bytes(mixed)  # the lengths are the same
    (clean / "00002.tar").write_bytes(b"\0" * 1024 + (clean / "00002.tar").read_bytes())
    found = named(verify([str(clean)], workers=1).defects)
    assert [shard for kind, shard, _ in found if kind == "stale index"] == ["00000.tar", "00001.tar", "00002.tar"]


def test_a_list_of_sizes_is_compared(tmp_path: Path) -> None:
    for number, keys in enumerate(("ab", "cd", "ef")):
        write_tar(tmp_path / f"{number}.tar", [member for key in keys for member in sample(key)])
    (tmp_path / "sizes.json").write_text(json.dumps({"0.tar": 2, "1.tar": 3}))
    assert named(verify([str(tmp_path)], workers=1).defects) == [("count differs from sizes.json", "1.tar", "")]
    (tmp_path / "sizes.json").write_text("{")
    assert {one.kind for one in verify([str(tmp_path)], workers=1).defects} == {"unreadable counts"}


def test_remote_shards_are_fetched_once(tmp_path: Path) -> None:
    clean = write_clean(tmp_path / "train", 24, 12)
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(clean))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{{00000..00002}}.tar"
        found = verify([url], workers=1)
        server.shutdown()
    assert named(found.defects) == [("missing shard", "00002.tar", "")]
    assert found.num_samples == 24
    whole = [path for path in asked if path == "/00000.tar"]
    assert len(whole) <= 3, asked  # its length twice, and its bytes


def test_a_pipe_is_read(clean: Path) -> None:
    found = verify([f"pipe:cat {clean / '00000.tar'}"], workers=1)
    assert (found.num_samples, found.defects) == (3, [])


def test_the_table_counts_all_and_shows_some() -> None:
    defects = [Defect("broken JSON", "0.tar", str(number)) for number in range(1234)]
    lines = table([*defects, Defect("not a tar", "1.tar", detail="why")]).splitlines()
    assert lines[1].split() == ["broken", "JSON", "1,234", "0.tar:", "0"]
    assert lines[4].strip() == "and 1,231 more"
    assert lines[5].split(maxsplit=4) == ["not", "a", "tar", "1", "1.tar (why)"]
