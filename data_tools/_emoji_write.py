"""From drawings and words to the shards and evaluation sets of ``vlp data emoji``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools._console import Summary, track
from data_tools._emoji_captions import english, evaluation, translated, words
from data_tools._emoji_other_words import other_captions, unheard
from data_tools._emoji_source import (
    TONES,
    Emoji,
    check_vendors,
    drawing,
    find_packages,
    read_emoji,
    sources_page,
)
from data_tools._emoji_things import Split, Thing, group_things, split_things
from vlp.types import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    Pictures = dict[tuple[str, str], Image]  # RGBA drawings by (vendor, hexcode)

DRAWING_SIZE = 64  # pixels a side in the packages


@dataclass(frozen=True)
class EmojiOptions:
    """What ``vlp data emoji`` is asked for; see ``add_arguments`` for the meaning of each."""

    out: Path
    vendors: tuple[str, ...] = ("google", "twitter")
    source: Path | None = None
    languages: tuple[str, ...] = ("en",)
    unseen_things: int = 200
    unseen_drawings: int = 200
    unseen_vendor: str | None = None
    skin_tones: bool = True
    flatten: bool = False
    image_size: int = DRAWING_SIZE
    seed: int = 0

    @property
    def withholding_vendor(self) -> str | None:
        """The vendor of the unseen drawings; None where no other vendor shows the same things."""
        if len(self.vendors) == 1 or self.unseen_drawings == 0:
            return None
        return self.unseen_vendor or self.vendors[-1]


def write_emoji(options: EmojiOptions) -> Summary:
    """Write the whole data set; the same options and packages give the same bytes.

    Raises:
        UserError: a vendor unknown or not free, packages that cannot be had, more left out than there is.
    """
    from vlp.data.write import new_directory

    _check(options)
    source = find_packages(options.source, options.vendors)
    emoji = read_emoji(source, options.vendors[0], options.languages)
    summary = Summary(options.out)
    pictures = _read_pictures(source, emoji, options, summary)
    things = group_things(emoji, [_fingerprints(one, pictures, options) for one in emoji])
    num_withheld = options.unseen_drawings if options.withholding_vendor else 0
    split = split_things(things, options.unseen_things, num_withheld, options.seed)

    new_directory(options.out)
    summary.counts["things"] = len(things)
    training = _training(emoji, pictures, split, options)
    _write_training(training, pictures, options, summary)
    _write_evaluation(split, pictures, options, summary)
    _write_other_words(split, {one.label for _, one in training}, pictures, options, summary)
    _write_split(split, options)
    page = sources_page(source, options.vendors, options.languages, options.flatten)
    (options.out / "SOURCES.md").write_text(page, encoding="utf-8")
    summary.write_skipped()
    return summary


def _check(options: EmojiOptions) -> None:
    check_vendors(options.vendors)
    if not 8 <= options.image_size <= DRAWING_SIZE:
        raise UserError(f"--image-size {options.image_size} must be 8 to {DRAWING_SIZE}, the size of the drawings")
    if options.unseen_vendor and options.unseen_vendor not in options.vendors:
        known = ", ".join(options.vendors)
        raise UserError(f"--unseen-vendor {options.unseen_vendor} is not among the vendors: {known}")
    if options.unseen_vendor and len(options.vendors) == 1:
        raise UserError("--unseen-vendor needs a second --vendor whose drawings of the same things are trained on")
    if options.unseen_things < 0 or options.unseen_drawings < 0:
        raise UserError("--unseen-things and --unseen-drawings must not be negative")


def _read_pictures(source: Path, emoji: Sequence[Emoji], options: EmojiOptions, summary: Summary) -> Pictures:
    from PIL import Image

    pictures = {}
    size = (options.image_size, options.image_size)
    wanted = [(vendor, one) for vendor in options.vendors for one in emoji]
    for vendor, one in track(wanted, "reading drawings", len(wanted)):
        try:
            with Image.open(drawing(source, vendor, one)) as opened:
                image = opened.convert("RGBA")
        except OSError as error:
            kind = "no drawing" if isinstance(error, FileNotFoundError) else "undecodable drawing"
            summary.skip(kind, f"{vendor}/{one.image} ({one.label})")
            continue
        pictures[vendor, one.hexcode] = image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
    if not pictures:
        raise UserError(f"{source} holds no readable drawing of {', '.join(options.vendors)}: unpack them again")
    return pictures


def _fingerprints(emoji: Emoji, pictures: Pictures, options: EmojiOptions) -> frozenset[str]:
    drawn = {v: pictures.get((v, emoji.hexcode)) for v in options.vendors}
    return frozenset(f"{v} {hashlib.sha256(i.tobytes()).hexdigest()}" for v, i in drawn.items() if i)


def _training(
    emoji: Sequence[Emoji], pictures: Pictures, split: Split, options: EmojiOptions
) -> list[tuple[str, Emoji]]:
    """(vendor, emoji) in an order by digest: neighbours in Unicode's chart should not be so in a shard."""
    unseen = {one.hexcode for thing in split.unseen for one in thing.members}
    withheld = {one.hexcode for thing in split.withheld for one in thing.members}
    kept = [
        (vendor, one)
        for vendor in options.vendors
        for one in emoji
        if (vendor, one.hexcode) in pictures
        and one.hexcode not in unseen
        and not (vendor == options.withholding_vendor and one.hexcode in withheld)
        and (options.skin_tones or not one.tones)
    ]

    def digest(item: tuple[str, Emoji]) -> str:
        return hashlib.sha256(f"{options.seed} {item[0]} {item[1].hexcode}".encode()).hexdigest()

    return sorted(kept, key=digest)


def _write_training(
    chosen: list[tuple[str, Emoji]], pictures: Pictures, options: EmojiOptions, summary: Summary
) -> None:
    from vlp.data.write import ShardWriter

    with ShardWriter(options.out / "train") as shards:
        for vendor, one in track(chosen, "training shards", len(chosen)):
            image = pictures[vendor, one.hexcode]
            record = {"width": image.width, "height": image.height, **_record(one, vendor, options.languages)}
            shards.write(_png(image, options.flatten), "png", one.label, **record)
    for vendor in options.vendors:
        summary.counts[f"training drawings by {vendor}"] = sum(v == vendor for v, _ in chosen)
    summary.counts["training drawings"] = len(chosen)
    summary.counts["training drawings with a skin tone"] = sum(bool(one.tones) for _, one in chosen)


def _record(emoji: Emoji, vendor: str, languages: Sequence[str]) -> dict[str, Any]:
    return {
        "captions": english(emoji),
        **{f"captions_{x}": translated(emoji, x) for x in languages if x != "en"},
        "tags": words(emoji.tags, known=""),
        "group": emoji.group,
        "subgroup": emoji.subgroup,
        "hexcode": emoji.hexcode,
        "emoji": emoji.character,
        "vendor": vendor,
        "skin": [TONES[t] for t in emoji.tones],
        "gender": emoji.gender,
    }


def _write_evaluation(split: Split, pictures: Pictures, options: EmojiOptions, summary: Summary) -> None:
    from vlp.data.write import write_retrieval_set

    first, *others = options.vendors
    sets = {"unseen_things": (split.unseen, first)}
    sets.update({f"unseen_things_{vendor}": (split.unseen, vendor) for vendor in others})
    if options.withholding_vendor:
        sets["unseen_drawings"] = (split.withheld, options.withholding_vendor)
    for name, (things, vendor) in sets.items():
        drawn = [(t.base, pictures[vendor, t.base.hexcode]) for t in things if (vendor, t.base.hexcode) in pictures]
        if drawn:
            items = [(_png(image, flatten=True), "png", evaluation(base)) for base, image in drawn]
            summary.counts[f"eval/{name} pictures"] = write_retrieval_set(options.out / "eval" / name, items)
            summary.counts[f"eval/{name} captions"] = sum(len(captions) for _, _, captions in items)


def _write_other_words(
    split: Split, labels: set[str], pictures: Pictures, options: EmojiOptions, summary: Summary
) -> None:
    from vlp.data.write import write_retrieval_set

    sets = {"unseen_things": (split.unseen, options.vendors[0])}
    if options.withholding_vendor:
        sets["unseen_drawings"] = (split.withheld, options.withholding_vendor)
    for same_pictures, (things, vendor) in sets.items():
        name = f"{same_pictures}_other_words"
        found = other_captions([t for t in things if (vendor, t.base.hexcode) in pictures])
        for kind, left_out in (("too few words", found.vague), ("words that fit another too", found.ambiguous)):
            for thing, kept in left_out:
                summary.skip(f"{kind} for {name}", f"{thing.base.label} ({', '.join(kept)})")
        if not found.captions:
            continue
        items = [
            (_png(pictures[vendor, thing.base.hexcode], flatten=True), "png", [", ".join(kept)])
            for thing, kept in found.captions
        ]
        summary.counts[f"eval/{name} pictures"] = write_retrieval_set(options.out / "eval" / name, items)
        summary.counts[f"eval/{name} words"] = sum(len(kept) for _, kept in found.captions)
        new = unheard([kept for _, kept in found.captions], labels)
        summary.counts[f"eval/{name} words in no training label"] = new


def _png(image: Image, flatten: bool) -> bytes:
    from PIL import Image as Images

    from vlp.data.write import encode_image

    if flatten:
        image = Images.alpha_composite(Images.new("RGBA", image.size, "white"), image).convert("RGB")
    return encode_image(image, "png")


def _write_split(split: Split, options: EmojiOptions) -> None:
    def listed(things: Sequence[Thing]) -> list[dict[str, Any]]:
        return [{"thing": t.base.label, "hexcodes": [one.hexcode for one in t.members]} for t in things]

    table = {
        "seed": options.seed,
        "unseen_things": listed(split.unseen),
        "unseen_drawings": {"vendor": options.withholding_vendor, "things": listed(split.withheld)},
    }
    text = json.dumps(table, indent=1, ensure_ascii=False) + "\n"
    (options.out / "split.json").write_text(text, encoding="utf-8")
