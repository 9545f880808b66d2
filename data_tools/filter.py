"""Decide which noisy pairs to leave out, as a layer beside the shards: ALIGN's filters, with a reason each.

Pass one reads every sample once and keeps a few hundred bytes of each under ROOT/NAME/.counts; then everything is
counted over the whole corpus; pass two writes the layer. A run that was killed goes on with the shards that are
left, and one with other options reads no picture again. Train with `data.filter: "NAME.keep"`.

The rules follow section 3 of ALIGN (Jia et al. 2021). Only those that fit any corpus are on by default; --align
switches on the ones for pictures and captions of web pages too.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools._console import check_caption_source, write_json
from data_tools._filter_rules import ALIGN, REASONS, FilterRules, option
from data_tools._map_shards import add_engine_arguments, map_shards
from vlp.types import Skipped, UserError

if TYPE_CHECKING:
    from data_tools._filter_passes import Decided

NUM_EXAMPLES = 3
LOUD_SHARE = 0.5


@dataclass(frozen=True)
class FilterOptions:
    """What ``vlp data filter`` is asked for; see ``add_arguments`` for the meaning of each."""

    shards: tuple[str, ...]
    rules: FilterRules = field(default_factory=FilterRules)
    against: tuple[str, ...] = ()
    caption: str = "txt"
    root: Path | None = None
    name: str = "filter"
    workers: int | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        check_caption_source(self.caption)


@dataclass
class FilterReport:
    """How many samples were dropped by which rule, with examples; and what the tars hold that is no sample."""

    num_samples: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    defects: list[Skipped] = field(default_factory=list)

    @property
    def num_kept(self) -> int:
        return self.num_samples - sum(self.dropped.values())

    def add(self, decided: Decided) -> None:
        self.num_samples += decided.num_samples
        self.dropped += decided.dropped
        for reason, found in decided.examples.items():
            self.examples[reason] = (self.examples.get(reason, []) + found)[:NUM_EXAMPLES]

    def to_json(self) -> dict[str, Any]:
        reasons = {
            reason: {"count": count, "share": count / self.num_samples, "examples": self.examples[reason]}
            for reason, count in self.dropped.most_common()
        }
        return {
            "samples": self.num_samples,
            "kept": self.num_kept,
            "reasons": reasons,
            "defects": [asdict(defect) for defect in self.defects],
        }

    def show(self, name: str) -> None:
        """Print the table of reasons, and loudly what drops most of the corpus."""
        print(f"kept {self.num_kept:,} of {self.num_samples:,} samples ({self.num_kept / self.num_samples:.1%})")
        width = max(map(len, self.dropped), default=0)
        for reason, count in self.dropped.most_common():
            share = count / self.num_samples
            print(f"  {count:>11,}  {share:>6.1%}  {reason:<{width}}  such as {', '.join(self.examples[reason])}")
        for kind, places in _by_kind(self.defects).items():
            shown = ", ".join(places[:NUM_EXAMPLES]) + (" ..." if len(places) > NUM_EXAMPLES else "")
            print(f"  not samples: {len(places):,} x {kind}: {shown}")
        for reason, count in self.dropped.items():
            if (share := count / self.num_samples) > LOUD_SHARE:
                print(f"WARNING: {share:.0%} of the corpus is dropped as '{reason}': {_cure(reason)}")
        if self.num_kept:
            print(f'train with data.filter: "{name}.keep"')


def _by_kind(defects: Iterable[Skipped]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for defect in defects:
        kinds.setdefault(defect.kind, []).append(defect.where)
    return kinds


def _cure(reason: str) -> str:
    if reason in REASONS:
        return f"look at the examples; is {REASONS[reason]} meant for this corpus?"
    return "look at the examples, or run vlp data verify"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("shards", nargs="+", metavar="SHARDS", help="tars, directories of tars, globs, brace patterns")
    add("--root", type=Path, metavar="DIR", help="where layers lie (default: 'layers' beside the shards)")
    add("--name", default="filter", help="name of the layer (default filter)")
    add("--caption", default="txt", metavar="SOURCE", help="where the captions stand: txt or json.FIELD (default txt)")
    add("--json", type=Path, metavar="FILE", help="write the table of reasons as JSON")
    add_engine_arguments(parser)
    rules = parser.add_argument_group("rules; 'off' switches one off")
    rules.add_argument(
        "--align", action="store_true", help="ALIGN's values for all of them but the vocabulary; others given win"
    )
    for name, metavar, meaning in (
        ("min_side", "PX", "drop pictures whose shorter side is PX or less (ALIGN: 200)"),
        ("max_aspect", "A", "drop pictures whose sides have the ratio A or more (ALIGN: 3)"),
        ("max_picture_captions", "N", "drop pictures with more than N different captions (ALIGN: 1000)"),
        ("min_words", "N", "drop captions of fewer words (ALIGN: 3)"),
        ("max_words", "N", "drop captions of more words (ALIGN: 20)"),
        ("max_caption_pictures", "N", "drop captions that more than N different pictures share (ALIGN: 10)"),
        ("vocabulary", "N", "drop captions with a word or pair of words not among the N most frequent (ALIGN: 1e8)"),
        ("min_count", "N", "drop captions with a word or pair of words that occurs fewer times in the corpus"),
    ):
        default = getattr(FilterRules, name)
        shown = "off" if default is None else f"{default:g}"
        parse = _number if name == "max_aspect" else _whole_number
        rules.add_argument(option(name), type=parse, metavar=metavar, help=f"{meaning} (default {shown})")
    rules.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="DIR",
        help="evaluation sets: drop pictures that are nearly the same as one of theirs",
    )
    rules.add_argument(
        "--distance",
        type=int,
        metavar="BITS",
        help="largest distance of 64-bit perceptual hashes that counts as nearly the same (default 4)",
    )
    rules.add_argument(
        "--duplicates",
        action="store_true",
        help="of pictures with the same perceptual hash keep the first that passes the other rules",
    )


_OFF = "off"


def _number(text: str) -> float | str:
    return text if text == _OFF else float(text)


def _whole_number(text: str) -> int | str:
    value = _number(text)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(text)
    return value if isinstance(value, str) else int(value)


_whole_number.__name__ = _number.__name__ = "number"  # what argparse calls it: invalid number value: 'x'


def run(arguments: argparse.Namespace) -> None:
    base = asdict(ALIGN if arguments.align else FilterRules())
    given = {rule.name: getattr(arguments, rule.name) for rule in fields(FilterRules)}
    rules = base | {name: None if value == _OFF else value for name, value in given.items() if value is not None}
    if arguments.distance is not None and not arguments.against:
        raise UserError("--distance has no effect without --against: name the evaluation sets")
    options = FilterOptions(
        shards=tuple(arguments.shards),
        rules=FilterRules(**rules),
        against=tuple(arguments.against),
        caption=arguments.caption,
        root=arguments.root,
        name=arguments.name,
        workers=arguments.workers,
        ray=arguments.ray,
    )
    report = write_filter(options)
    if arguments.json:
        write_json(arguments.json, report.to_json())
    report.show(options.name)


def write_filter(options: FilterOptions) -> FilterReport:
    """Write the layer of decisions; the same shards and options give the same bytes, on any number of workers.

    Raises:
        UserError: no samples, an evaluation set that is not whole, shards of equal names under one root.
    """
    import numpy as np

    from data_tools import _filter_passes as passes
    from data_tools._filter_pictures import evaluation_hashes
    from vlp.data.layer_files import check_file_names, refuse_layers_of_others
    from vlp.data.layers import LayerWriter
    from vlp.data.shards import find_shards

    rules = options.rules
    paths = find_shards(options.shards, named="SHARDS")
    check_file_names(paths, options.root)
    refuse_layers_of_others(paths, options.name, options.root, passes.TOOL)
    LayerWriter(options.root, options.name, {})  # refuses a name that cannot be used
    places = passes.Places(options.root, options.name)
    files, tables = [places.fingerprints(path) for path in paths], places.corpus(paths[0])
    over = partial(map_shards, workers=options.workers, ray=options.ray)

    hashes = [found for _, found in over(evaluation_hashes, options.against, "hashing evaluation sets")]
    evaluation = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *hashes]))
    count = partial(passes.count_shard, places=places, caption=options.caption)
    counted = [found for _, found in over(count, paths, "reading samples")]
    report = FilterReport(defects=[defect for found in counted for defect in found.defects])
    num_samples = sum(found.num_samples for found in counted)
    if not num_samples:
        example = f" ({report.defects[0].kind}: {report.defects[0].where})" if report.defects else ""
        raise UserError(f"no sample with a picture in {len(paths)} shards{example}: run vlp data verify on them")

    corpus = passes.count_corpus(files, num_samples, rules, evaluation)
    corpus.save(tables)
    if rules.duplicates:
        passing = partial(passes.passing_pictures, places=places, corpus=tables, rules=rules)
        with_first = passes.with_duplicates(corpus, (found for _, found in over(passing, paths, "comparing pictures")))
        with_first.save(tables)
    signatures = [found.signature for found in counted]
    origin = passes.provenance(rules, options.caption, signatures, options.against, evaluation)
    write = partial(passes.write_decisions, places=places, corpus=tables, rules=rules, origin=origin)
    for _, decided in over(write, paths, "writing decisions"):
        report.add(decided)
    return report
