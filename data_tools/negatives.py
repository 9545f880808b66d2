"""Hard captions (NegCLIP): captions changed so that they are false of the picture, as a layer beside the shards.

    vlp data negatives data/train --generator swap
    vlp data negatives data/scenes/train --generator scenes
    vlp data negatives data/train --generator language_model --engine server --url http://localhost:8000/v1

A generator changes every caption; a judge rejects what says the same, what is true of the picture, and what is broken.
The rest is the layer NAME, with the kind of each change beside it; captions without a possible negative have an empty
row, are counted and stay in training. A classifier that sees no picture is then tried on true and changed captions: a
kind that it tells apart teaches a model to read captions only.

The same command again does what is missing. Several machines: `--part I/N` on each (a SLURM array), or `--ray`. Train
with `data.hard_captions: [{source: layer.NAME.negatives}]` and the objective hard_negatives.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools._console import check_caption_source, write_json
from data_tools._language_models import flags
from data_tools._map_shards import Means, add_engine_arguments, map_shards
from data_tools._negatives.base import Generator, Place
from vlp import resolve
from vlp.types import UserError

if TYPE_CHECKING:
    from data_tools._negatives.layers import Work
    from data_tools._negatives.report import NegativesReport

GENERATORS = "data_tools._negatives.generators"
PROMPT = "negatives"
NUM_SHOWN = 48
NUM_TESTED = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = generators()
    add = parser.add_argument
    add("shards", nargs="+", metavar="SHARDS", help="tars, directories of tars, globs, brace patterns")
    add("--generator", required=True, metavar="NAME", help=f"what changes captions: {', '.join(known)}")
    add("--name", default="negatives", help="name of the layer (default negatives)")
    add("--root", metavar="DIR", help="where layers lie (default: 'layers' beside the shards)")
    add(
        "--caption",
        default="txt",
        metavar="SOURCE",
        help="where the captions stand: txt or json.FIELD; of a list each is changed, and all are true (default txt)",
    )
    add("--seed", type=int, default=0, help="another seed gives other texts (default 0)")
    add("--keep-rejected", action="store_true", help="write NAME_rejected too: the rejected texts with their reasons")
    add("--json", type=Path, metavar="FILE", help="write all counts and a sample, which vlp report FILE shows")
    add("--report", type=Path, metavar="FILE", help="write the same as one self-contained HTML page")
    add("--dry-run", action="store_true", help="only estimate what a language model will cost")
    add_engine_arguments(parser)
    flags.add_share_arguments(parser)
    flags.add_choice_arguments(parser, "generator", known)
    flags.add_engine_arguments(parser)
    flags.add_prompt_arguments(parser, PROMPT, f"{PROMPT}_instruct")
    parser.add_argument_group("judge", _judge())


def _judge() -> str:
    """What texts are rejected for, as --help tells it."""
    from data_tools._negatives.generators.language_model import REASONS as OF_LANGUAGE_MODELS
    from data_tools._negatives.judge import REASONS

    def lines(rules: Mapping[str, str]) -> str:
        return "\n".join(f"  {name:<16} {meaning}" for name, meaning in rules.items())

    return f"texts are rejected that are\n{lines(REASONS)}\nand of a language model\n{lines(OF_LANGUAGE_MODELS)}\n"


def generators() -> dict[str, type[Generator]]:
    return {name: resolve.module(GENERATORS, name, "generator").Generator for name in resolve.names(GENERATORS)}


def run(arguments: argparse.Namespace) -> None:
    from data_tools._negatives.layers import Work
    from data_tools.verify import check_output

    check_caption_source(arguments.caption)
    generator = _generator(arguments)
    means = Means(arguments.workers, arguments.ray, arguments.gpus)
    if means.gpus is not None and ("engine" not in type(generator).model_fields or means.ray is None or means.gpus < 0):
        raise UserError(
            f"--gpus {means.gpus:g} has no effect without --ray and --generator language_model: it is what Ray gives a "
            "task of the model"
        )
    place = Place(arguments.name, arguments.root, arguments.seed, means)
    paths = _shards(arguments)
    check_output("--json", arguments.json)
    check_output("--report", arguments.report)
    if arguments.dry_run and (arguments.json or arguments.report or arguments.keep_rejected):
        raise UserError("--json, --report and --keep-rejected have no effect with --dry-run: leave them for the run")
    if not paths:
        print(f"--part {arguments.part}: no shard falls into this part")
        return
    if arguments.dry_run:
        for line in generator.estimate(paths, arguments.caption, place):
            print(line)
        return
    work = Work(generator, arguments.caption, place, arguments.keep_rejected, NUM_SHOWN, NUM_TESTED)
    if arguments.part is None:
        check_captions(paths, work)
    report = write_negatives(paths, work)
    if arguments.json or arguments.report:
        _write_sheet(report, arguments.json, arguments.report)
    report.show()
    if report.unanswered:
        raise UserError(
            f"{report.unanswered:,} texts were not answered, so {report.unfinished:,} of {len(paths):,} shards have no "
            "layer yet: run the same command again, which asks for them only"
        )


def _generator(arguments: argparse.Namespace) -> Generator:
    """The generator that was chosen, refused before anything heavy is loaded if it cannot be."""
    return flags.chosen(arguments, "generator", arguments.generator, generators(), partial(_parts, arguments))


def _parts(arguments: argparse.Namespace, generator: type[Generator]) -> dict[str, Any]:
    """Engine, prompt and sampling of a generator that has them.

    Raises:
        UserError: what is wrong with them, or that they have no effect.
    """
    from data_tools._language_models import prompts

    if "engine" not in generator.model_fields:
        for flag in flags.about_language_models(arguments):
            raise UserError(
                f"{flag} has no effect on --generator {arguments.generator}: it is an option of "
                "--generator language_model"
            )
        return {}
    prompt = prompts.load(arguments.prompt or PROMPT)
    return {
        "engine": flags.engine(arguments),
        "prompt": prompt,
        "sampling": flags.sampling(arguments, prompt.sampling),
    }


def _shards(arguments: argparse.Namespace) -> list[str]:
    from data_tools._negatives.layers import TOOL
    from vlp.data.layer_files import check_file_names, refuse_layers_of_others
    from vlp.data.layers import LayerWriter
    from vlp.data.shards import find_shards

    LayerWriter(arguments.root, arguments.name, {})  # refuses a name that cannot be used
    paths = find_shards(arguments.shards, named="SHARDS")
    check_file_names(paths, arguments.root)
    paths = flags.part_of(paths, arguments.part)
    for name in (arguments.name, f"{arguments.name}_rejected"):
        refuse_layers_of_others(paths, name, arguments.root, TOOL)
    return paths


def _write_sheet(report: NegativesReport, file: Path | None, page: Path | None) -> None:
    from data_tools._negatives.sheet import sheet

    content = sheet(report)
    if file:
        write_json(file, content)
    if page:
        from vlp.evaluation.report.negatives_sheet import write_page

        write_page(content, page)


def check_captions(paths: Sequence[str], work: Work) -> None:
    """Read on until there is a caption.

    Raises:
        UserError: there is none.
    """
    from data_tools._language_models.survey import LeftOut
    from data_tools._negatives.captions import look

    left_out, means = LeftOut(), work.place.means
    first = ((path, look(path, work.caption)) for path in paths[:1])
    rest = map_shards(partial(look, source=work.caption), paths[1:], "looking for captions", means.workers, means.ray)
    for _, (captions, skipped) in chain(first, rest):
        if captions:
            return
        left_out += skipped
    raise UserError(
        f"no sample has a caption at --caption {work.caption} ({'; '.join(left_out.lines()) or 'no samples'}): "
        "name another source, or run vlp data verify"
    )


def write_negatives(paths: Sequence[str], work: Work) -> NegativesReport:
    """Write the layer of each shard, and count.

    Raises:
        UserError: a generator that lacks a package or a model, files that are not ours to write.
    """
    from data_tools._negatives.layers import provenance, write_layer
    from data_tools._negatives.report import NegativesReport

    work.generator.prepare(paths, work.caption, work.place)
    report, means = NegativesReport(paths, work, provenance(work)), work.place.means
    write = partial(write_layer, work=work, made_by=report.made_by)
    for _, written in map_shards(write, paths, "changing captions", means.workers, means.ray):
        report.add(written)
    return report
