"""The sheet of hard captions: figures counted by hand, the same from any division into shards, samples drawn evenly."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools._map_shards import Means
from data_tools._negatives import base
from data_tools._negatives.base import Captioned, Negative, Place
from data_tools._negatives.layers import Work
from data_tools._negatives.sheet import sheet
from data_tools.negatives import write_negatives
from vlp.data.shards import find_shards
from vlp.data.write import ShardWriter, encode_image
from vlp.evaluation.report.negatives_sheet import write_page

CAPTIONS = ["A red bus.", "Two cats", "A red bus.", "", "a dog", "a cow"]
MADE = {
    "A red bus.": [Negative("A blue bus.", "replace colour"), Negative("a red bus", "replace colour")],
    "Two cats": [Negative("three cats", "replace number"), Negative("two  cats", "replace number")],
    "a dog": [],
    "a cow": [Negative("a cow cow", "swap nouns")],
}


class Table(base.Generator, frozen=True, extra="forbid"):
    """Changes by a table, or a number for any other caption."""

    def negatives(self, path: str, items: Sequence[Captioned], place: Place) -> list[list[Negative]]:
        return [MADE.get(item.caption, [Negative(f"not {item.caption}", "deny")]) for item in items]


def made(folder: Path, captions: Sequence[str], per_shard: int, shown: int = 48, seed: int = 0) -> dict[str, Any]:
    if not folder.exists():
        with ShardWriter(folder, per_shard) as shards:
            for number, caption in enumerate(captions):
                picture = encode_image(Image.new("RGB", (20 + number, 300), "red"))
                shards.write(b"broken" if caption == "a cow" else picture, "png", caption)
    paths = find_shards([str(folder)])
    work = Work(Table(), "txt", Place("hard", str(folder / "layers"), seed, Means(workers=1)), False, shown, 100)
    return json.loads(json.dumps(sheet(write_negatives(paths, work))))


def test_figures_are_those_counted_by_hand(tmp_path: Path) -> None:
    found = made(tmp_path / "data", CAPTIONS, 2)
    assert (found["shards"], found["samples"], found["captions"], found["different_captions"]) == (3, 6, 5, 4)
    assert (found["texts"], found["accepted"], found["unanswered"]) == (7, 3, 0)
    assert found["accepted_a_caption"] == [[0, 1, 2], [1, 2, 3]]
    assert {rule["name"]: rule["texts"] for rule in found["rules"] if rule["texts"]} == {
        "identical": 3,
        "ungrammatical": 1,
    }
    kinds = {kind["name"]: (kind["accepted"], kind["rejected"]) for kind in found["kinds"]}
    assert kinds == {"replace colour": (2, 2), "replace number": (1, 1), "swap nouns": (0, 1)}
    assert [kind["name"] for kind in found["kinds"]] == ["replace colour", "replace number", "swap nouns"]
    without = {kind: one["number"] for kind, one in found["without_negative"].items()}
    assert without == {"nothing to change": 1, "all changes rejected": 1}
    assert "(a dog)" in found["without_negative"]["nothing to change"]["examples"][0]
    assert found["left_out"]["no caption"]["number"] == 1
    assert found["blind"]["overall"] is None
    assert "fewer than 20 different captions" in found["blind"]["missing"]
    assert found["asked"] is None


def test_samples_are_those_with_texts_beside_their_pictures(tmp_path: Path) -> None:
    cards = made(tmp_path / "data", CAPTIONS, 2)["sheet"]
    assert [card["caption"] for card in cards] == ["A red bus.", "Two cats", "A red bus.", "a cow"]
    assert [(card["width"], card["height"], bool(card["thumbnail"])) for card in cards] == [
        (20, 300, True),
        (21, 300, True),
        (22, 300, True),
        (0, 0, False),
    ]
    assert [(text["text"], text["kind"], text["reason"]) for text in cards[1]["texts"]] == [
        ("three cats", "replace number", ""),
        ("two cats", "replace number", "identical"),
    ]


def test_any_division_into_shards_gives_the_same_figures(tmp_path: Path) -> None:
    captions = [f"caption number {number % 40}" for number in range(60)]
    one, three = made(tmp_path / "one", captions, 60), made(tmp_path / "three", captions, 20)
    assert one["kinds"][0]["accepted"] == 60
    assert one["different_captions"] == 40
    for name in ("texts", "accepted", "kinds", "rules", "blind", "accepted_a_caption", "captions"):
        assert one[name] == three[name], name
    assert one["kinds"][0]["blind"]["accuracy"] == 1.0, "'not' gives them away"
    assert one["kinds"][0]["blind"]["loud"]
    assert one["blind"]["telling"][0][0] == "not"


def test_samples_are_drawn_evenly_by_the_seed(tmp_path: Path) -> None:
    captions = [f"caption number {number}" for number in range(15)]
    drawn = Counter[str]()
    for seed in range(20):
        cards = made(tmp_path / "data", captions, 5, shown=6, seed=seed)["sheet"]
        assert len(cards) == 6
        drawn.update(card["caption"] for card in cards)
    assert len(drawn) == 15
    assert max(drawn.values()) <= 15, "8 of each are expected"
    again = made(tmp_path / "data", captions, 5, shown=6, seed=3)["sheet"]
    assert again == made(tmp_path / "data", captions, 5, shown=6, seed=3)["sheet"]


@pytest.mark.parametrize("captions", [CAPTIONS, ["a dog"], [f"caption number {number}" for number in range(30)]])
def test_the_page_takes_every_sheet(tmp_path: Path, captions: list[str]) -> None:
    page = write_page(made(tmp_path / "data", captions, 10), tmp_path / "s.html").read_text(encoding="utf-8")
    assert f"{len([caption for caption in captions if caption]):,} captions of" in page
