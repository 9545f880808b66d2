"""Files in SugarCrepe's layout: made ones of its numbers, or its own with made pictures where there are none."""

from __future__ import annotations

import json
import random
from pathlib import Path

from pictures import jpeg, made_picture
from tokenizer import RELATIONS, WORDS

SUITES = {
    "add_att": 692,
    "add_obj": 2062,
    "replace_att": 788,
    "replace_obj": 1652,
    "replace_rel": 1406,
    "swap_att": 666,
    "swap_obj": 245,
}
PICTURES = 1560
CAPTIONS = 4  # true ones of a picture; of 7,511 pairs SugarCrepe's files have 11,844 different texts
DIFFERENT_PICTURES = 64  # of the made ones: the others are copies under other names
Suites = dict[str, dict[str, dict[str, str]]]  # the content of the JSON files, by their names


def made(share: float, seed: int = 0) -> Suites:
    """A ``share`` of SugarCrepe's numbers of pairs and pictures."""
    draw = random.Random(seed)
    count = max(1, round(share * PICTURES))
    captions = [[_true(draw) for _ in range(CAPTIONS)] for _ in range(count)]
    suites: Suites = {}
    number = 0
    for suite, size in SUITES.items():
        items = suites[suite] = {}
        for key in range(max(1, round(share * size))):
            words = draw.choice(captions[number % count])
            items[str(key)] = {
                "filename": f"{number % count:012d}.jpg",
                "caption": _sentence(words),
                "negative_caption": _sentence(_false(suite.partition("_")[0], words, draw)),
            }
            number += 1
    return suites


def read(folder: Path, share: float) -> Suites:
    """The pairs of a ``share`` of the pictures of SugarCrepe's own files."""
    suites: Suites = {suite: json.loads((folder / f"{suite}.json").read_text(encoding="utf-8")) for suite in SUITES}
    names = sorted({item["filename"] for items in suites.values() for item in items.values()})
    kept = set(names[:: max(1, round(1 / share))])
    return {
        suite: {key: item for key, item in items.items() if item["filename"] in kept} for suite, items in suites.items()
    }


def write(folder: Path, suites: Suites, pictures: Path | None) -> None:
    """``SUITE.json`` and ``val2017/``, which vlp and CLIP_benchmark read; pictures from ``pictures``, or made."""
    (folder / "val2017").mkdir(parents=True)
    drawn: list[bytes] = []
    names = sorted({item["filename"] for items in suites.values() for item in items.values()})
    for number, name in enumerate(names):
        if pictures is not None and (pictures / name).is_file():
            (folder / "val2017" / name).symlink_to((pictures / name).resolve())
            continue
        if len(drawn) < DIFFERENT_PICTURES:
            drawn.append(jpeg(made_picture(640, 480, seed=number), quality=90))
        (folder / "val2017" / name).write_bytes(drawn[number % len(drawn)])
    for suite, items in suites.items():
        (folder / f"{suite}.json").write_text(json.dumps(items), encoding="utf-8")


def _true(draw: random.Random) -> list[str]:
    """Some eleven words, as SugarCrepe's captions have."""
    first, second = draw.sample(WORDS["noun"], 2)
    parts = ["a", draw.choice(WORDS["adjective"]), first, draw.choice(WORDS["verb"])]
    parts += [*draw.choice(RELATIONS).split(), "a", *draw.sample(WORDS["adjective"], draw.choice((0, 1, 1))), second]
    if draw.random() < 0.8:
        parts += [draw.choice(("in", "on", "near")), "the", draw.choice(WORDS["place"])]
    return parts


def _false(kind: str, words: list[str], draw: random.Random) -> list[str]:
    """Something added or replaced, or the two nouns exchanged."""
    nouns = [place for place, word in enumerate(words) if word in WORDS["noun"]]
    others = [noun for noun in WORDS["noun"] if noun not in words]
    if kind == "add":
        return [*words, "and", "a", draw.choice(others)]
    false = list(words)
    if kind == "replace":
        false[draw.choice(nouns)] = draw.choice(others)
    else:
        one, other = nouns[0], next(place for place in nouns if words[place] != words[nouns[0]])
        false[one], false[other] = words[other], words[one]
    return false


def _sentence(words: list[str]) -> str:
    return " ".join(words).capitalize() + "."
