"""Captions per CPU second of vlp's tokenizer and of open_clip's SimpleTokenizer, and whether their ids are the same.

    python benchmarks/speed/tokenizer.py [--captions FILE] [--repeats 9] [--json FILE]

Both run in this process, one thread, turn by turn. "warm" has seen all captions before, so both know all words;
"cold" is a new tokenizer that meets the same captions for the first time. A ratio is theirs / ours of one repeat.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer

from vlp.encoders.tokenizer import FastTokenizer

_WORDS = {
    "adjective": """
small large old new red blue green yellow black white brown grey orange purple pink bright dark wooden
metal plastic wet dry empty full young happy tired sleeping busy quiet modern rustic colourful striped spotted shiny
rusty fluffy curious elegant snowy sunny foggy crowded narrow wide round square tall short broken fresh sliced grilled
handmade vintage antique abandoned illuminated open closed parked painted framed curly muddy golden silver""",
    "noun": """
cat dog horse cow sheep bird elephant zebra giraffe bear man woman boy girl child couple family crowd player
surfer skier skateboarder chef farmer photographer cyclist musician train bus truck car motorcycle bicycle boat ship
airplane bench chair table sofa bed lamp clock vase bottle cup plate bowl pizza sandwich cake apple banana orange
broccoli carrot laptop keyboard phone television camera book umbrella kite ball bat racket glove suitcase backpack
window door mirror sink toilet refrigerator oven building tower church castle bridge house barn tree flower mushroom
leaf rock statue fountain sign hydrant hat jacket dress tie necklace guitar piano violin lighthouse waterfall""",
    "place": """
street beach park kitchen bathroom bedroom field forest mountain lake river garden station airport market
restaurant office museum stadium desert harbour farm village city meadow valley snow grass sand hill table shelf wall
floor roof porch balcony parking sidewalk zoo hotel""",
    "verb": """
standing sitting lying walking running jumping playing eating drinking sleeping looking flying swimming
riding holding wearing carrying watching waiting working cooking reading smiling resting leaning driving""",
}
WORDS = {kind: words.split() for kind, words in _WORDS.items()}
RELATIONS = ["next to", "in front of", "behind", "on top of", "under", "near", "with", "beside", "above", "between"]
OPENINGS = ["", "", "", "a photo of ", "Photograph of ", "A close-up of ", "Stock image: ", "view of "]
ENDINGS = ["", "", "", ".", ".", "!", ", 1987", " at night", " (detail)", " on a sunny day.", " - free"]
NOT_ASCII = [" in a café", " – Getty", " in Zürich", " for the fiancée", " in São Paulo", ", the photographer’s choice"]


def made_captions(count: int, seed: int = 0) -> list[str]:
    """English-like captions of about 15 words; one in fifty holds an accent, a long dash or a curly quote."""
    draw = random.Random(seed)

    def thing() -> str:
        adjectives = draw.sample(WORDS["adjective"], draw.choice((0, 1, 1, 2)))
        return " ".join([draw.choice(("a", "the", "two", "her", "some")), *adjectives, draw.choice(WORDS["noun"])])

    def caption() -> str:
        parts = [thing()]
        if draw.random() < 0.8:
            parts += [draw.choice(WORDS["verb"]), draw.choice(RELATIONS), thing()]
        if draw.random() < 0.3:
            parts += ["that isn't" if draw.random() < 0.2 else "and", draw.choice(WORDS["verb"])]
        parts += [
            draw.choice(("in", "on", "near")),
            "the",
            draw.choice(WORDS["adjective"]),
            draw.choice(WORDS["place"]),
        ]
        text = draw.choice(OPENINGS) + " ".join(parts) + draw.choice(ENDINGS)
        text = text + draw.choice(NOT_ASCII) if draw.random() < 0.02 else text
        return text[0].upper() + text[1:] if draw.random() < 0.5 else text

    return [caption() for _ in range(count)]


def seconds(tokenizer: Callable[[list[str]], torch.Tensor], batches: list[list[str]]) -> float:
    """CPU seconds for all batches."""
    start = time.process_time()
    for batch in batches:
        tokenizer(batch)
    return time.process_time() - start


def compare(batches: list[list[str]], repeats: int, warm: bool) -> dict[str, Any]:
    """Captions per CPU second of both (medians) and the ratio with its spread."""
    count = sum(map(len, batches))
    ours, theirs = FastTokenizer(), SimpleTokenizer()
    if warm:
        seconds(ours, batches), seconds(theirs, batches)
    times: dict[str, list[float]] = {"vlp": [], "open_clip": []}
    for repeat in range(repeats):
        if not warm:  # making one takes a tenth of a second and is not counted
            ours, theirs = FastTokenizer(), SimpleTokenizer()
        pair = [("vlp", ours), ("open_clip", theirs)]
        for name, tokenizer in pair if repeat % 2 else reversed(pair):
            times[name].append(seconds(tokenizer, batches))
    ratios = [b / a for a, b in zip(times["vlp"], times["open_clip"], strict=True)]
    return {
        "captions_per_second": {name: round(count / statistics.median(values)) for name, values in times.items()},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--captions", type=Path, help="a text file, one caption a line (default: made ones)")
    add("--count", type=int, default=10_000, help="how many captions at most (default: %(default)s)")
    add("--batch-size", type=int, default=256, help="captions in one call (default: %(default)s)")
    add("--repeats", type=int, default=9, help="alternated repeats (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    if arguments.captions:
        captions = arguments.captions.read_text(encoding="utf-8").splitlines()[: arguments.count]
    else:
        captions = made_captions(arguments.count)
    batches = [captions[i : i + arguments.batch_size] for i in range(0, len(captions), arguments.batch_size)]
    ours, theirs = FastTokenizer(), SimpleTokenizer()
    different = sum(int((ours(batch) != theirs(batch)).any(1).sum()) for batch in batches)
    result = {
        "captions": len(captions),
        "mean_words": sum(len(caption.split()) for caption in captions) / len(captions),
        "not_ascii": sum(not caption.isascii() for caption in captions),
        "different_ids": different,
        "repeats": arguments.repeats,
        "batch_size": arguments.batch_size,
        "warm": compare(batches, arguments.repeats, warm=True),
        "cold": compare(batches, arguments.repeats, warm=False),
        "versions": {name: importlib.metadata.version(name) for name in ("open_clip_torch", "ftfy", "regex", "torch")},
        "python": platform.python_version(),
    }
    print(
        f"{len(captions):,} captions, {result['mean_words']:.1f} words each, {result['not_ascii']:,} not ASCII; "
        f"{different} with other ids than open_clip's"
    )
    for state in ("warm", "cold"):
        speed, ratio = result[state]["captions_per_second"], result[state]["ratio"]
        print(
            f"{state}: vlp {speed['vlp']:,}/s, open_clip {speed['open_clip']:,}/s, "
            f"ratio {ratio['median']:.1f} ({ratio['min']:.1f}-{ratio['max']:.1f})"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
