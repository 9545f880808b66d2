"""The file of texts: what is in it counts, whatever else becomes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools._language_models.base import Completion, Request
from data_tools._language_models.completions import Completions, read
from vlp.types import UserError

ORIGIN = {"engine": "stand-in", "model": "m", "sampling": {"stop": ["\n"]}}
TEXTS = {
    ("a bus", 0): Completion(" ein Bus\u2028\n", 7, 3),
    ("a bus", 1): Completion("", problem="400: refused"),
    ("zwei Körbe 🧺", 0): Completion("two baskets", 9, 2),
}


def write(path: Path) -> bytes:
    with Completions(path, ORIGIN) as file:
        for (caption, number), completion in TEXTS.items():
            file.add(Request(caption, number, "prompt", 0), completion)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".completions" / "00000.jsonl"


def test_what_was_added_is_there_for_the_next_process(path: Path) -> None:
    content = write(path)
    assert read(path, ORIGIN) == (TEXTS, len(content))
    with Completions(path, ORIGIN) as again:
        assert again.get("a bus", 1) == TEXTS["a bus", 1]
        assert again.get("a bus", 2) is None
    assert path.read_bytes() == content


def test_a_text_is_in_the_file_before_add_returns(path: Path) -> None:
    with Completions(path, ORIGIN) as file:
        file.add(Request("a bus", 0, "", 0), TEXTS["a bus", 0])
        assert read(path, ORIGIN)[0] == {("a bus", 0): TEXTS["a bus", 0]}


def test_wherever_a_kill_cuts_the_file_whole_lines_stay_and_the_rest_is_written_again(path: Path) -> None:
    content = write(path)
    ends = [place + 1 for place, byte in enumerate(content) if byte == 10]
    for length in range(len(content)):
        path.write_bytes(content[:length])
        texts, whole = read(path, ORIGIN)
        assert whole == max([end for end in ends if end <= length], default=0)
        assert texts == dict(list(TEXTS.items())[: max(0, sum(end <= length for end in ends) - 1)])
        if length % 40 == 0:
            assert write(path) == content[: max(whole, ends[0])] + content[ends[0] :]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[1, 2]\n", "holds no texts of this version"),
        (b"key,text\n1,2\n", "holds no texts of this version"),
        (b"PAR1 and something else", "holds no texts of this version"),
        (b'{"format": 2, "engine": "stand-in"}\n', "holds no texts of this version"),
        (b"\xff\xfe\x00\n", "holds no texts of this version"),
        (json.dumps({"format": 1, **ORIGIN, "model": "n"}).encode() + b"\n", 'model: "n" there, "m" wanted'),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(path: Path, content: bytes, says: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    for use in (read, Completions):
        with pytest.raises(UserError, match=says):
            use(path, ORIGIN)
    assert path.read_bytes() == content


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"{}\n", b'{"caption": "a", "number": 0, "more": 1}\n', b"7\n", b"\n"])
def test_a_damaged_line_is_named_and_nothing_is_touched(path: Path, damage: bytes) -> None:
    head, *texts = write(path).splitlines(keepends=True)
    content = b"".join([head, texts[0], damage, *texts[1:]])
    path.write_bytes(content)
    for use in (read, Completions):
        with pytest.raises(UserError, match=r"line 3 of .*00000\.jsonl is damaged: remove that line"):
            use(path, ORIGIN)
    assert path.read_bytes() == content
    path.write_bytes(b"".join([head, *texts]))
    assert read(path, ORIGIN)[0] == TEXTS


def test_one_process_at_a_time_and_a_killed_one_does_not_count(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from data_tools._language_models.completions import Completions\n"
        f"held = Completions(Path({str(path)!r}), {ORIGIN!r}); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"another process is writing .*: wait until it ends, or stop it"):
            write(path)
        other.kill()
    assert len(write(path).splitlines()) == 1 + len(TEXTS)
