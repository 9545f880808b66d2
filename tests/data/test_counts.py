from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_tools.index import write_index
from vlp.data.counts import known_counts
from vlp.types import UserError

WriteShards = Callable[..., Path]


def shards_without_stats(write_shards: WriteShards, num_samples: int = 10) -> tuple[Path, list[str]]:
    folder = write_shards(num_samples, 4)
    for stats in folder.glob("*_stats.json"):
        stats.unlink()
    return folder, sorted(str(path) for path in folder.glob("*.tar"))


def test_nothing_is_known_of_bare_tars(write_shards: WriteShards) -> None:
    _, paths = shards_without_stats(write_shards)
    assert known_counts(paths) == {}


def test_img2dataset_counts_successes(write_shards: WriteShards) -> None:
    folder = write_shards(10, 4)
    paths = sorted(str(path) for path in folder.glob("*.tar"))
    assert list(known_counts(paths).values()) == [(4, "_stats.json"), (4, "_stats.json"), (2, "_stats.json")]


def test_sizes_and_wids_files(write_shards: WriteShards) -> None:
    folder, paths = shards_without_stats(write_shards)
    listed = {"wids_version": 1, "shardlist": [{"url": f"s3://b/{Path(p).name}", "nsamples": 4} for p in paths[:2]]}
    (folder / "index.json").write_text(json.dumps(listed))
    assert known_counts(paths) == {paths[0]: (4, "index.json"), paths[1]: (4, "index.json")}
    (folder / "sizes.json").write_text(json.dumps({"00000.tar": 4, "00002.tar": 2, "other.tar": 7}))
    assert known_counts(paths) == {paths[0]: (4, "sizes.json"), paths[2]: (2, "sizes.json")}


def test_our_index_is_asked_first(write_shards: WriteShards, tmp_path: Path) -> None:
    folder = write_shards(10, 4)
    paths = sorted(str(path) for path in folder.glob("*.tar"))
    (folder / "00000_stats.json").write_text('{"successes": 99}')
    write_index(paths[:2])
    assert list(known_counts(paths).values()) == [(4, "index"), (4, "index"), (2, "_stats.json")]
    write_index(paths[2:])
    assert list(known_counts(paths).values()) == [(4, "index"), (4, "index"), (2, "index")], "the others stay listed"
    write_index(paths, str(tmp_path / "elsewhere"))
    assert known_counts(paths, str(tmp_path / "elsewhere"))[paths[2]] == (2, "index")


def test_stale_and_broken_files_are_named(write_shards: WriteShards) -> None:
    folder, paths = shards_without_stats(write_shards)
    write_index(paths)
    with open(paths[1], "ab") as tar:
        tar.write(b"more")
    with pytest.raises(UserError, match=r"shards\.json is stale: .*00001\.tar .* run vlp data index again"):
        known_counts(paths)
    counts, _ = write_index(paths)
    assert counts == {str(folder / "index"): {"00000": 4, "00001": 4, "00002": 2}}
    assert len(known_counts(paths)) == 3
    (folder / "index" / "shards.json").write_text("{")
    with pytest.raises(UserError, match=r"shards\.json is not JSON"):
        known_counts(paths)


def test_shards_of_one_name_do_not_share_an_index(write_shards: WriteShards, tmp_path: Path) -> None:
    folders = [write_shards(4, 4, name=name) for name in ("a", "b")]
    with pytest.raises(UserError, match=r"--to: .*a/00000\.tar and .*b/00000\.tar have the same name"):
        write_index([str(folder) for folder in folders], str(tmp_path / "index"))
    counts, _ = write_index([str(folder) for folder in folders])
    assert list(counts) == [str(folder / "index") for folder in folders]


def test_a_server_that_refuses_absent_files_has_no_counts(write_shards: WriteShards, web: Any) -> None:
    _, (path, *_) = shards_without_stats(write_shards)
    web.absent, web.files["0.tar"] = 403, Path(path).read_bytes()
    assert known_counts([web.url("0.tar")]) == {}
    web.files["0_stats.json"] = b'{"successes": 4}'
    assert known_counts([web.url("0.tar")]) == {web.url("0.tar"): (4, "_stats.json")}
