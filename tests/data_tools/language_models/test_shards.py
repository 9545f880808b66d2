"""One stream of requests over many shards: each text is paid for once, whatever happens on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from data_tools._language_models import base, estimate, prompts, survey
from data_tools._language_models.base import Completion, Request, Sampling
from data_tools._language_models.shards import Job, captions_of_shard, write_texts
from data_tools._rewrite_gate import CONTENT
from vlp.cli import main
from vlp.data.shards import find_shards
from vlp.data.write import TarFile
from vlp.types import Skipped, UserError

ASKED: list[tuple[str, int]] = []


class Engine(base.Engine, frozen=True, extra="forbid"):
    """Says the caption backwards, in the order given by ``order``; reads ``ahead`` requests at once."""

    ahead: int = 3
    last_first: bool = False
    silent_about: tuple[str, ...] = ()
    dies_after: int | None = None

    def identity(self) -> dict[str, Any]:
        return {"engine": "backwards"}

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Completion | None]]:
        rest, answered = iter(requests), 0
        while True:
            block = [request for _, request in zip(range(self.ahead), rest, strict=False)]
            if not block:
                return
            ASKED.extend((request.caption, request.number) for request in block)
            for request in reversed(block) if self.last_first else block:
                if answered == self.dies_after:
                    raise UserError("the engine died")
                if request.caption in self.silent_about:
                    yield request, None
                else:
                    answered += 1
                    yield request, Completion(f"{request.caption[::-1]} {request.number} \ud800", 5, 2)


@pytest.fixture(autouse=True)
def _forget() -> None:
    ASKED.clear()


def write(directory: Path, captions: Sequence[str | None], samples_per_shard: int = 2) -> list[str]:
    """Shards of samples with a picture, and a text where ``captions`` has one."""
    directory.mkdir(exist_ok=True)
    for start in range(0, len(captions), samples_per_shard):
        with TarFile(directory / f"{start // samples_per_shard:05d}.tar") as tar:
            for number, caption in enumerate(captions[start : start + samples_per_shard], start):
                text = {} if caption is None else {"txt": caption.encode()}
                tar.write(f"{number:03d}", {"png": b"picture", **text})
    return find_shards([str(directory)])


def job(number: int = 2, caption: str = "txt", **engine: Any) -> Job:
    prompt = prompts.load("laclip")
    return Job(Engine(**engine), prompt, prompt.sampling, number, 0, caption, None, "texts")


def kept(paths: Sequence[str]) -> dict[str, list[tuple[str, int, str]]]:
    found = {}
    for path in paths:
        lines = job().completions(path).read_text(encoding="utf-8").splitlines()[1:]
        records = [json.loads(line) for line in lines]
        found[path] = [(record["caption"], record["number"], record["text"]) for record in records]
    return found


CAPTIONS = ["ab", "cd", "ab", "ef", None, "  ", "gh", "ab"]
TEXTS = {"ab", "cd", "ef", "gh"}


@pytest.mark.parametrize("ahead", [1, 3, 100])
@pytest.mark.parametrize("last_first", [False, True])
def test_each_text_is_asked_once_and_every_shard_has_its_own(tmp_path: Path, ahead: int, last_first: bool) -> None:
    paths = write(tmp_path, CAPTIONS)
    told: list[int] = []
    progress = write_texts(
        paths, job(ahead=ahead, last_first=last_first), lambda so_far, *_: told.append(so_far.written)
    )
    assert Counter(ASKED) == {(caption, number): 1 for caption in TEXTS for number in range(2)}
    assert told == list(range(1, 9))
    assert (progress.written, progress.prompt_tokens, progress.tokens) == (8, 40, 16)
    wanted = [{"ab", "cd"}, {"ab", "ef"}, set(), {"gh", "ab"}]
    for texts, captions in zip(kept(paths).values(), wanted, strict=True):
        assert sorted(texts) == sorted((one, n, f"{one[::-1]} {n} \ufffd") for one in captions for n in range(2))


def test_again_asks_nothing_and_more_of_each_only_what_is_new(tmp_path: Path) -> None:
    paths = write(tmp_path, CAPTIONS)
    write_texts(paths, job())
    before = kept(paths)
    ASKED.clear()
    assert write_texts(paths, job()).written == 0
    assert (ASKED, kept(paths)) == ([], before)
    assert write_texts(paths, job(number=3)).written == 4
    assert Counter(ASKED) == {(caption, 2): 1 for caption in TEXTS}


def test_a_text_that_lies_in_the_file_of_any_shard_is_not_paid_again(tmp_path: Path) -> None:
    paths = write(tmp_path, ["ab", "cd", "ef", "gh", "cd", "ij"])
    write_texts(paths[2:], job())
    write_texts(paths[1:2], job(), at_most=1)
    ASKED.clear()
    estimate.measure(paths[0], job(), paths)
    write_texts(paths, job())
    assert Counter(ASKED) == {("ab", 0): 1, ("ab", 1): 1, ("ef", 1): 1, ("gh", 0): 1, ("gh", 1): 1}
    assert [len(texts) for texts in kept(paths).values()] == [4, 4, 4]


def test_what_an_engine_wrote_before_it_died_is_kept_and_what_it_left_out_stays_missing(tmp_path: Path) -> None:
    paths = write(tmp_path, CAPTIONS)
    with pytest.raises(UserError, match="the engine died"):
        write_texts(paths, job(dies_after=5))
    assert [len(texts) for texts in kept(paths[:2]).values()] == [4, 3]
    ASKED.clear()
    assert write_texts(paths, job(silent_about=("ef",))).written == 2
    assert ASKED == [("ef", 1), ("gh", 0), ("gh", 1)]
    ASKED.clear()
    assert write_texts(paths, job()).written == 1
    assert ASKED == [("ef", 1)]


def test_at_most_so_many_texts(tmp_path: Path) -> None:
    paths = write(tmp_path, CAPTIONS)
    assert write_texts(paths, job(), at_most=3).written == 3
    assert len(ASKED) == 3
    assert write_texts(paths, job()).written == 5


@pytest.mark.parametrize("silent_about", [(), tuple(f"caption {number}" for number in range(0, 40, 2))])
def test_many_small_shards_do_not_hold_their_files_open(tmp_path: Path, silent_about: tuple[str, ...]) -> None:
    paths = write(tmp_path, [f"caption {number}" for number in range(40)], samples_per_shard=1)
    most = 0

    def told(*_: object) -> None:
        nonlocal most
        most = max(most, sum("/.completions/" in str(file.resolve()) for file in Path("/proc/self/fd").iterdir()))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("looks for open files in /proc")
    done = write_texts(paths, job(ahead=4, silent_about=silent_about), told)
    assert done.written == sum(map(len, kept(paths).values())) == 2 * (40 - len(silent_about))
    assert 0 < most <= 2 * 5, "a file and its lock of each shard with texts on their way"


def test_captions_of_a_shard_with_what_is_left_out(tmp_path: Path) -> None:
    samples = [
        {"txt": b"a bus", "json": b'{"names": ["bus", "coach"]}'},
        {"json": b'{"names": "tram"}'},
        {"txt": b"", "json": b"{"},
        {"txt": b"\xff"},
    ]
    with TarFile(tmp_path / "0.tar") as tar:
        for number, members in enumerate(samples):
            tar.write(str(number), {"png": b"picture", **members})
    for source, wanted, kinds in (
        ("txt", ["a bus", "", "", ""], [("no caption", "1"), ("no caption", "2"), ("text is not UTF-8", "3")]),
        ("json.names", ["bus", "tram", "", ""], [("broken JSON", "2"), ("no caption", "3")]),
    ):
        _, captions, skipped = captions_of_shard(str(tmp_path / "0.tar"), source)
        assert captions == wanted
        assert [(one.kind, one.where.rpartition(" ")[2]) for one in skipped] == kinds


def test_the_survey_counts_what_is_there_and_what_is_missing(tmp_path: Path) -> None:
    paths = write(tmp_path, CAPTIONS)
    found = survey.add_up(paths, [survey.look(path, job()) for path in paths], "txt")
    assert (found.samples, found.captions, found.distinct, found.missing) == (8, 6, 4, 8)
    assert dict(found.left_out.counts) == {"no caption": 2}
    assert found.left_out.lines() == [f"left out 2, no caption: {paths[2]}: 004, {paths[2]}: 005"]
    write_texts(paths[:1], job())
    found = survey.add_up(paths, [survey.look(path, job()) for path in paths], "txt")
    assert found.missing == 4, "ab is there, though not yet in the file of every shard"
    assert found.lacking == [paths[1], paths[3]]
    with pytest.raises(UserError, match=r"none of the 8 samples has a caption at --caption json\.x .*no caption"):
        survey.add_up(paths, [survey.look(path, job(caption="json.x")) for path in paths], "json.x")


def test_a_lost_part_of_a_shard_counts_as_the_samples_it_held() -> None:
    left_out = survey.LeftOut.of([Skipped("unreadable shard", "0.tar", 40), Skipped("no caption", "1.tar: a")])
    assert left_out.counts == {"unreadable shard": 40, "no caption": 1}


def test_the_estimate_is_of_the_texts_that_are_left_and_its_own_are_kept(tmp_path: Path) -> None:
    paths = write(tmp_path, [f"caption {number}" for number in range(300)], samples_per_shard=300)
    found = survey.add_up(paths, [survey.look(paths[0], job())], "txt")
    measured = estimate.measure(paths[0], job())
    assert (len(measured.texts), measured.timed.written) == (33, 32)
    lines = estimate.lines(found, job(), estimate.Measured(measured.texts, measured.timed, 8.0))
    assert lines[1:] == [
        "texts     600, of which 600 are not there yet",
        "tokens    2,835 in (5 a text) and 1,134 out (2 a text)",
        "time      0:02:22 for the 567 texts that are left, at 4.0 texts/s, 8 tokens/s",
        "          (measured on 32 texts; they are kept)",
    ]
    ASKED.clear()
    assert write_texts(paths, job()).written == len(ASKED) == 567


def test_an_estimate_says_whether_nothing_is_left_or_nothing_was_answered(tmp_path: Path) -> None:
    paths = write(tmp_path, ["ab"], samples_per_shard=1)

    def said(number: int, silent_about: tuple[str, ...] = ()) -> list[str]:
        wanted = job(number=number, silent_about=silent_about)
        found = survey.add_up(paths, [survey.look(paths[0], wanted)], "txt")
        return estimate.lines(found, wanted, estimate.measure(paths[0], wanted))[2:]

    assert said(1, silent_about=("ab",)) == ["the engine left all unanswered: nothing is measured"]
    assert said(1) == ["nothing is left to be measured"], "the one there was is written now"


# ----------------------------------------------------------------------------- kill -9, on a real process and server

NUMBER, IN_FLIGHT = 3, 4


def _command(paths: Path, root: Path, url: str) -> list[str]:
    engine = ["--engine", "server", "--url", url, "--model", "m", "--in-flight", str(IN_FLIGHT)]
    rules = ["--workers", "1", "--off", *CONTENT]  # those of form are quick
    return ["data", "rewrite", str(paths), "--root", str(root), "--number", str(NUMBER), *engine, *rules]


def _texts(folder: Path) -> Counter[tuple[str, int]]:
    """Whole lines only, of all shards."""
    lines = (line for file in folder.glob("*.jsonl") for line in file.read_bytes().splitlines(keepends=True)[1:])
    records = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return Counter((record["caption"], record["number"]) for record in records)


@pytest.mark.slow
def test_a_shard_with_unanswered_texts_has_no_layer_until_the_next_run_asks_for_them(
    stand_in: Any, reply: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "s", ["one red bus", "two red cats", "three red dogs", "two red cats"], samples_per_shard=2)
    stand_in.script = lambda asked: reply({}, status=500) if asked.prompt.endswith("three red dogs =>") else None
    command = [*_command(tmp_path / "s", tmp_path / "l", stand_in.url), "--retries", "0"]
    with pytest.raises(SystemExit, match="2"):
        main(command)
    said = capsys.readouterr().err
    assert "vlp: 3 texts were not answered, so 1 of 2 shards have no layer yet: run the same command again" in said
    assert [file.name for file in (tmp_path / "l" / "rewrites").glob("*.parquet")] == ["00000.parquet"]
    stand_in.script = lambda asked: None
    stand_in.asked.clear()
    main(command)
    assert len(list((tmp_path / "l" / "rewrites").glob("*.parquet"))) == 2
    assert stand_in.times_asked().total() == 3
    assert all(prompt.endswith("three red dogs =>") for prompt in stand_in.times_asked())


@pytest.mark.slow
def test_after_kill_9_every_text_is_there_and_only_what_was_on_its_way_is_paid_twice(
    stand_in: Any, reply: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = [f"caption number {number} of a thing" for number in range(60)]
    write(tmp_path / "s", captions, samples_per_shard=20)
    paid: Counter[tuple[str, int]] = Counter()
    going_on = Event()
    going_on.set()

    def script(asked: Any) -> Any:
        if asked.prompt == "A dog":
            return None
        paid[asked.prompt, asked.body["seed"]] += 1
        time.sleep(0.01)
        going_on.wait()
        text = f"a thing that is called {sha256(json.dumps([asked.prompt, asked.body['seed']]).encode()).hexdigest()}"
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        return reply({"choices": [{"index": 0, "finish_reason": "stop", "text": text}], "usage": usage})

    stand_in.script = script
    command = _command(tmp_path / "s", tmp_path / "killed", stand_in.url)
    folder = tmp_path / "killed" / "rewrites" / ".completions"
    before: Counter[tuple[str, int]] = Counter()
    for asked_by_then in (40, 115):
        with subprocess.Popen([sys.executable, "-m", "vlp", *command], stderr=subprocess.PIPE, text=True) as run:
            deadline = time.monotonic() + 120
            while paid.total() < asked_by_then:
                assert time.monotonic() < deadline
                assert run.poll() is None, run.stderr and run.stderr.read()
                time.sleep(0.002)
            if not before:
                going_on.clear()
                with pytest.raises(SystemExit, match="2"):
                    main(command)
                assert "another process is writing" in capsys.readouterr().err
                going_on.set()
            run.send_signal(signal.SIGKILL)
        there = _texts(folder)
        assert not before - there, "a text was lost"
        assert 0 < there.total() < len(captions) * NUMBER
        before = there
    while stand_in.now_in:
        time.sleep(0.01)
    main(command)
    assert _texts(folder) == {(caption, number): 1 for caption in captions for number in range(NUMBER)}
    assert len(paid) == len(captions) * NUMBER
    twice = paid.total() - len(paid)
    assert twice <= 2 * 2 * IN_FLIGHT, "more than what was asked for and not yet written down at the two kills"

    main(_command(tmp_path / "s", tmp_path / "whole", stand_in.url))
    layers = [
        {file.name: file.read_bytes() for file in (tmp_path / root / "rewrites").glob("*.parquet")}
        for root in ("killed", "whole")
    ]
    assert len(layers[0]) == 3
    assert layers[0] == layers[1]
