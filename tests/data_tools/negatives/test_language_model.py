"""Changes that a language model writes: written once, kept, judged by form and content; the model here is a table."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_tools._language_models import prompts
from data_tools._language_models.base import Completion, Engine, Request, Sampling
from data_tools._map_shards import Means
from data_tools._negatives.base import Captioned, Place, Unanswered
from data_tools._negatives.generators.language_model import Generator
from data_tools._negatives.layers import Work
from data_tools.negatives import write_negatives
from vlp.cli import main
from vlp.data.write import TarFile

TEXTS = {
    "A red bus.": ["a blue bus", "a scarlet bus", "here is the caption: a green bus"],
    "Two cats on a sofa.": ["three cats on a sofa", "three cats on a sofa.", "two cats"],
    "a dog": [None, "a wolf", "a big dog"],
}
asked: list[tuple[str, int]] = []


class Table(Engine, frozen=True, extra="forbid"):
    """Answers with the texts of a caption by their number; None: not now."""

    texts: dict[str, list[str | None]]

    def identity(self) -> dict[str, Any]:
        return {"engine": "table"}

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Completion | None]]:
        for request in requests:
            asked.append((request.caption, request.number))
            text = self.texts[request.caption][request.number]
            if text == "refuse":
                yield request, Completion("", 9, problem="no")
            else:
                yield request, None if text is None else Completion(text, 9, 3)


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    asked.clear()


@pytest.fixture
def path(tmp_path: Path) -> str:
    with TarFile(tmp_path / "00000.tar") as tar:
        for number, caption in enumerate(["A red bus.", "Two cats on a sofa.", "A red bus."]):
            names = json.dumps({"names": [caption, "a dog"]}).encode()
            tar.write(f"{number:03d}", {"png": b"", "txt": caption.encode(), "json": names})
    return str(tmp_path / "00000.tar")


def generator(texts: dict[str, list[str | None]] = TEXTS) -> Generator:
    prompt = prompts.load("negatives")
    return Generator(engine=Table(texts=texts), prompt=prompt, sampling=prompt.sampling, number=3)


def judged(path: str, one: Generator, *captions: str) -> list[list[tuple[str, str, str]]]:
    items = [Captioned(caption) for caption in captions]
    found = one.judge(items, one.negatives(path, items, Place("negatives")))
    return [[(verdict.text, verdict.kind, verdict.reason) for verdict in own] for own in found]


def test_texts_are_asked_once_dressed_like_the_caption_and_judged(path: str) -> None:
    one, place = generator(), Place("negatives")
    one.prepare([path], "txt", place)
    assert len(asked) == len(set(asked)) == 6, "a caption of two samples is asked about once"
    first, second = judged(path, pickle.loads(pickle.dumps(one)), "A red bus.", "Two cats on a sofa.")
    assert first[0] == ("A blue bus.", "language model: colour", "")
    assert [reason for *_, reason in first[1:]] == ["paraphrase", "prompt_echo"]
    assert second == [
        ("Three cats on a sofa.", "language model: number", ""),
        ("Three cats on a sofa.", "language model", "repeated"),
        ("Two cats.", "language model", "too_short"),
    ]
    generator().prepare([path], "txt", place)
    assert len(asked) == 6, "what is there is not asked for again"


def test_what_is_not_answered_leaves_the_shard_without_texts_and_is_asked_again(path: str) -> None:
    one, place = generator(), Place("negatives")
    one.prepare([path], "json.names", place)
    assert len(asked) == 9, "every caption of a list"
    items = [Captioned("A red bus."), Captioned("a dog"), Captioned("a dog")]
    with pytest.raises(Unanswered) as missing:
        one.negatives(path, items, place)
    assert missing.value.texts == 1
    before = one.state(path, place)
    again = generator({**TEXTS, "a dog": ["a cat", "a wolf", "a big dog"]})
    again.prepare([path], "json.names", place)
    assert asked[9:] == [("a dog", 0)]
    assert [text for text, _, reason in judged(path, again, "a dog")[0] if not reason] == ["a cat", "a wolf"]
    assert again.state(path, place) != before


def test_a_shard_with_texts_unanswered_has_no_layer_and_the_others_have_theirs(path: str, tmp_path: Path) -> None:
    with TarFile(tmp_path / "00001.tar") as tar:
        tar.write("000", {"png": b"", "txt": b"a dog"})
    paths = [path, str(tmp_path / "00001.tar")]
    report = write_negatives(paths, Work(generator(), "txt", Place("negatives", means=Means(workers=1)), False, 4, 4))
    assert (report.unanswered, report.unfinished, report.figures.num_captions) == (1, 1, 3)
    assert [file.name for file in (tmp_path / "layers" / "negatives").glob("*.parquet")] == ["00000.parquet"]


def test_a_refusal_is_counted_as_one(path: str) -> None:
    one = generator({**TEXTS, "A red bus.": ["refuse", "a blue bus", "a green bus"]})
    one.prepare([path], "txt", Place("negatives"))
    assert judged(path, one, "A red bus.")[0][0] == ("", "language model", "refused")


def test_the_identity_names_model_prompt_sampling_and_number(path: str) -> None:
    one = generator()
    one.prepare([path], "txt", Place("negatives", seed=4))
    said = one.identity()
    assert (said["engine"], said["prompt"], said["number"], said["seed"]) == ("table", one.prompt.digest, 3, 4)
    assert said["sampling"]["temperature"] == 0.9


def test_an_estimate_writes_some_texts_and_says_what_becomes_of_them(path: str) -> None:
    lines = "\n".join(generator().estimate([path], "txt", Place("negatives")))
    assert "captions  3 in 3 samples, 2 of them different" in lines
    assert "A red bus.\n    A blue bus.  (accepted, language model: colour)" in lines
    assert not list(Path(path).parent.rglob("*.parquet"))


def test_a_model_that_only_says_the_same_gives_no_hard_caption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine that paraphrases scenes, by the whole tool."""
    captions = ["a large white star above a large red square", "no scene at all"]
    with TarFile(tmp_path / "00000.tar") as tar:
        for number, caption in enumerate(captions):
            tar.write(f"{number:03d}", {"png": b"", "txt": caption.encode()})
    options = ["--generator", "language_model", "--engine", "scenes", "--number", "4", "--workers", "1"]
    main(["data", "negatives", str(tmp_path), *options, "--keep-rejected"])
    out = capsys.readouterr().out
    assert "wrote 8 texts in " in out
    assert "without a possible negative: 2 (100.0%)" in out
    assert "accepted 0 of 8 texts" in out
    assert "4   50.0%  refused" in out
    rows = pq.read_table(tmp_path / "layers" / "negatives_rejected").to_pylist()
    assert len(rows[0]["rejected"]) == 4, rows[0]
    assert set(rows[0]["reasons"]) <= {"paraphrase", "rewrite", "another", "repeated"}
    main(["data", "negatives", str(tmp_path), *options, "--dry-run"])
    assert "nothing is left to be written" in capsys.readouterr().out


@pytest.mark.slow
def test_a_real_language_model_behind_a_server(language_server: Any, path: str) -> None:
    options = ["--generator", "language_model", "--engine", "server", "--url", language_server.url, "--in-flight", "4"]
    folder = Path(path).parent
    main(["data", "negatives", path, *options, "--number", "2", "--max-tokens", "16", "--json", str(folder / "s.json")])
    sheet = json.loads((folder / "s.json").read_text())
    assert (sheet["texts"], sheet["captions"], sheet["origin"]["model"]) == (6, 3, language_server.model)
    assert sheet["asked"]["example"].endswith("=>")
    rows = pq.read_table(folder / "layers" / "negatives").to_pylist()
    assert [len(row["negatives"]) == len(row["kinds"]) for row in rows] == [True] * 3
