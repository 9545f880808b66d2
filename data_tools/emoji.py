"""Emoji of free vendors as training shards, with evaluation sets of unseen things and unseen drawings.

Writes ``OUT/train`` (one sample a drawing), ``OUT/eval/*`` (retrieval sets, one plain drawing a thing),
``OUT/split.json`` (what was left out) and ``OUT/SOURCES.md`` (licences and attribution). A *thing* is an emoji
with its variants of skin tone, gender, hair and family, and those that share its name or its drawing; a thing
is never divided.

- ``eval/unseen_things``: things left out of training in every vendor and language, drawn by the first vendor
  (``eval/unseen_things_VENDOR``: by a further one). Other data sets may show the same things.
- ``eval/unseen_drawings``: other things, of which training has every drawing but those of one vendor.
- ``eval/unseen_things_other_words``, ``eval/unseen_drawings_other_words``: their pictures again, with one caption of
  words that no label of the thing uses, nor a form of them. They ask what is known beyond the labels, so train on
  ``txt`` (the label) or on layers made of it: ``json.captions`` and ``json.tags`` hold these words. Things with fewer
  than two such words, or whose words all fit another thing of the set, are left out and named in ``skipped.tsv``.

Training pictures keep their transparency; evaluation pictures stand on white, as readers of the public layout
drop the alpha channel.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools._emoji_write import DRAWING_SIZE, EmojiOptions, write_emoji

__all__ = ["EmojiOptions", "add_arguments", "run", "write_emoji"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="new directory for train/, eval/, split.json and SOURCES.md")
    add(
        "--vendor",
        action="append",
        dest="vendors",
        metavar="NAME",
        help="google or twitter; repeat for both (default: both)",
    )
    add(
        "--source",
        type=Path,
        metavar="DIR",
        help="node_modules with the packages (default: ./node_modules, else fetched with npm into the cache)",
    )
    add(
        "--language",
        action="append",
        dest="languages",
        metavar="CODE",
        help="captions_CODE beside the English captions, such as de or zh-hant; repeatable",
    )
    add("--unseen-things", type=int, default=200, metavar="N", help="things left out (default 200)")
    add(
        "--unseen-drawings",
        type=int,
        default=200,
        metavar="N",
        help="further things of which one vendor's drawings are left out (default 200)",
    )
    add("--unseen-vendor", metavar="NAME", help="vendor of the unseen drawings (default: the last one)")
    add(
        "--skin-tones",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train on drawings with a skin tone too: 3,786 a vendor, 1,911 without (default: yes)",
    )
    add(
        "--flatten",
        action="store_true",
        help="training pictures on white, for readers that drop transparency",
    )
    add("--image-size", type=int, default=DRAWING_SIZE, metavar="PIXELS", help="side, at most 64 (default 64)")
    add("--seed", type=int, default=0, help="which things are left out, and the order (default 0)")


def run(arguments: argparse.Namespace) -> None:
    options = EmojiOptions(
        out=arguments.out,
        vendors=tuple(arguments.vendors or ("google", "twitter")),
        source=arguments.source,
        languages=tuple(dict.fromkeys(arguments.languages or ("en",))),
        unseen_things=arguments.unseen_things,
        unseen_drawings=arguments.unseen_drawings,
        unseen_vendor=arguments.unseen_vendor,
        skin_tones=arguments.skin_tones,
        flatten=arguments.flatten,
        image_size=arguments.image_size,
        seed=arguments.seed,
    )
    write_emoji(options).show()
