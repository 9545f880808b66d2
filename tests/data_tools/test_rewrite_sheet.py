"""The sheet of rewrites: figures counted by hand, the same from any division into shards, samples drawn evenly."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools._language_models import prompts
from data_tools._language_models.base import Completion
from data_tools._language_models.engines import server
from data_tools._language_models.shards import Job
from data_tools._rewrite_figures import RewriteFigures, Rewritten, count
from data_tools._rewrite_gate import REASONS, GateOptions, Verdict
from data_tools._rewrite_sheet import sheet
from vlp.data.index import open_shard
from vlp.data.shards import Shard, find_shards
from vlp.data.write import ShardWriter, encode_image

KEY = "sk-secret"
CAPTIONS = ["A red bus.", "Two cats", "A red bus.", "", "a dog"]
TEXTS = {
    "A red bus.": [Verdict("a bus in red"), Verdict("a blue bus", "lost_colour", "red")],
    "Two cats": [Verdict("a pair of cats"), Verdict("two felines, cats")],
    "a dog": [Verdict("", "refused", "content filter"), Verdict("a dog", "near_copy")],
    "": [],
}


def write(directory: Path, captions: list[str], samples_per_shard: int) -> list[str]:
    with ShardWriter(directory, samples_per_shard) as shards:
        for number, caption in enumerate(captions):
            picture = b"broken" if caption == "a dog" else encode_image(Image.new("RGB", (20 + number, 300), "red"))
            shards.write(picture, "png", caption)
    return find_shards([str(directory)])


def rewritten(caption: str) -> Rewritten:
    verdicts = TEXTS.get(caption, [Verdict(f"{caption} again")])
    completions = [Completion(verdict.text, 10, 3, "" if verdict.text else "refused") for verdict in verdicts]
    return Rewritten(caption, completions, verdicts)


def counted(paths: list[str], captions: list[str], num_drawn: int = 48, seed: int = 0) -> RewriteFigures:
    return counted_in([open_shard(path)[0] for path in paths], captions, num_drawn, seed)


def counted_in(shards: list[Shard], captions: list[str], num_drawn: int, seed: int) -> RewriteFigures:
    total, rest = RewriteFigures(num_drawn), map(rewritten, captions)
    for shard in shards:
        total += count(shard, list(islice(rest, len(shard))), num_drawn, seed)
    return total


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    engine = server.Engine(url="http://127.0.0.1:9/v1", model="small-model")
    prompt = prompts.load("laclip")
    return Job(engine, prompt, prompt.sampling, 2, 0, "txt", None, "rewrites")


def made(tmp_path: Path, job: Job, samples_per_shard: int = 2, **options: Any) -> dict[str, Any]:
    paths = write(tmp_path / "data", CAPTIONS, samples_per_shard)
    return json.loads(json.dumps(sheet(paths, job, GateOptions(off=("list",)), counted(paths, CAPTIONS, **options))))


def test_figures_are_those_counted_by_hand(tmp_path: Path, job: Job) -> None:
    found = made(tmp_path, job)
    assert (found["shards"], found["samples"], found["without_caption"], found["captions"]) == (3, 5, 1, 3)
    assert (found["texts"], found["accepted"]) == (8, 4)
    rejected = {rule["name"]: rule["texts"] for rule in found["rules"] if rule["texts"]}
    assert rejected == {"refused": 1, "near_copy": 1, "lost_colour": 2}
    assert [rule["name"] for rule in found["rules"]] == [*REASONS, "refused"]
    assert [rule["name"] for rule in found["rules"] if rule["off"]] == ["list"]
    assert found["accepted_a_sample"] == [[0, 1, 1], [1, 2, 2], [2, 3, 1]]
    assert found["words"]["before"]["mean"] == (3 + 2 + 3 + 2) / 4
    assert found["words"]["after"]["mean"] == (4 + 4 + 3 + 4) / 4
    # the bus stands in two of the shards, and its two texts were counted in each
    assert found["tokens"] == {"read": 80, "written": 24}
    assert found["vocabulary"]["originals"] == len({"a", "red", "bus", "two", "cats", "dog"})
    assert dict(found["vocabulary"]["most_frequent_new"]) == {"in": 2, "pair": 1, "of": 1, "felines": 1}
    assert found["vocabulary"]["with_rewrites"] == 10


def test_samples_show_what_was_accepted_and_why_the_rest_was_not(tmp_path: Path, job: Job) -> None:
    samples = made(tmp_path, job)["sheet"]
    assert [sample["original"] for sample in samples] == [caption for caption in CAPTIONS if caption]
    bus, _, _, dog = samples
    assert bus["accepted"] == ["a bus in red"]
    assert bus["rejected"] == [{"text": "a blue bus", "reason": "lost_colour", "detail": "red"}]
    assert (bus["shard"], bus["width"], bus["height"]) == ("00000.tar", 20, 300)
    assert bus["thumbnail"].startswith("data:image/webp;base64,")
    assert dog["thumbnail"] is None, "a picture that cannot be used"


def test_the_origin_names_model_prompt_and_sampling_but_neither_address_nor_key(tmp_path: Path, job: Job) -> None:
    found = made(tmp_path, job)
    assert found["name"] == "data: rewrites"
    assert found["origin"]["model"] == "small-model"
    assert found["origin"]["prompt"] == job.prompt.digest
    assert found["origin"]["sampling"]["temperature"] == 0.9
    assert found["prompt"]["example"].endswith("\nA red bus. =>")
    assert found["prompt"]["example"].count(" => ") == found["prompt"]["draw"] == 3
    assert found["gate"]["off"] == ["list"]
    text = json.dumps(found)
    assert KEY not in text
    assert "127.0.0.1" not in text
    assert str(tmp_path) not in text


def test_shards_add_up_to_the_whole(tmp_path: Path, job: Job) -> None:
    one, three = made(tmp_path / "one", job, 5), made(tmp_path / "three", job, 2)
    differ = {name for name in one if one[name] != three[name]}
    assert differ == {"shards", "tokens", "sheet"}, "tokens are counted once a shard, samples are named by their shard"
    figures = counted(write(tmp_path / "four", CAPTIONS, 2), CAPTIONS)
    figures += RewriteFigures(48)
    assert (figures.figures.num_samples, len(figures.captions), len(figures.drawn)) == (5, 3, 4)


def test_samples_are_drawn_evenly_by_seed_from_all_shards(tmp_path: Path) -> None:
    captions = [f"picture {number}" for number in range(60)]
    shards = [open_shard(path)[0] for path in write(tmp_path / "data", captions, 20)]
    times: Counter[str] = Counter()
    for seed in range(300):
        drawn = counted_in(shards, captions, 6, seed).drawn
        assert len(drawn) == 6
        times.update(one.caption for one in drawn)
    assert len(times) == 60
    # Expected 30 each; the sum of squares over it is chi-square with 59 degrees of freedom, above 99 in 1 of 1,000.
    assert sum((times[caption] - 30) ** 2 / 30 for caption in captions) < 99
    again, other = (counted_in(shards, captions, 6, seed).drawn for seed in (299, 1))
    assert again == drawn != other


def test_a_sheet_without_samples_opens_no_shard(tmp_path: Path, job: Job) -> None:
    paths = write(tmp_path / "data", CAPTIONS, 2)
    figures = counted(paths, CAPTIONS, num_drawn=0)
    for path in paths:
        Path(path).unlink()
    found = sheet(paths, job, GateOptions(), figures)
    assert found["sheet"] == []
    assert found["prompt"]["example"] is None
    assert found["texts"] == 8
