"""Rewrite captions with a language model (LaCLIP), as a layer beside the shards; no picture is read.

    vlp data rewrite data/train --model smollm2.gguf
    vlp data rewrite data/train --engine server --url http://localhost:8000/v1 --prompt instruct

Pass one has the model write N texts about each different caption and keeps every answer at once under
ROOT/NAME/.completions, so a run that was killed goes on where it was and pays for no text twice. Pass two judges the
texts and writes the layer of those that are accepted; other rules cost no new texts. The same command again does what
is missing. Train with `data.captions: [{source: txt}, {source: layer.NAME, each: true}]`.

Several machines: `--part I/N` on each (a SLURM array), or `--ray`. A caption that comes again in another shard is
written once on one machine, and once a machine (with --ray once a shard) on several.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools._console import check_caption_source, write_json
from data_tools._language_models import flags
from data_tools._map_shards import Means, add_engine_arguments, map_shards
from data_tools._rewrite_gate import REASONS, GateOptions
from vlp.types import UserError

if TYPE_CHECKING:
    from data_tools._language_models.passes import Wrote
    from data_tools._language_models.shards import Job
    from data_tools._language_models.survey import Survey
    from data_tools._rewrite_figures import RewriteFigures

LOUD_SHARE = 0.5
NUM_DRAWN = 48
NUM_SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("shards", nargs="+", metavar="SHARDS", help="tars, directories of tars, globs, brace patterns")
    add("--name", default="rewrites", help="name of the layer (default rewrites)")
    add("--root", metavar="DIR", help="where layers lie (default: 'layers' beside the shards)")
    add("--caption", default="txt", metavar="SOURCE", help="where the captions stand: txt or json.FIELD (default txt)")
    add("--number", type=int, default=5, metavar="N", help="texts for each caption (default 5)")
    add("--seed", type=int, default=0, help="another seed gives other texts (default 0)")
    add("--keep-rejected", action="store_true", help="write NAME_rejected too: the rejected texts with their reasons")
    add("--dry-run", action="store_true", help="only estimate tokens and hours, measured on the first few texts")
    add("--json", type=Path, metavar="FILE", help="write all counts and a sample, which vlp report FILE shows")
    add("--report", type=Path, metavar="FILE", help="write the same as one self-contained HTML page")
    add_engine_arguments(parser)
    flags.add_share_arguments(parser)
    flags.add_engine_arguments(parser)
    flags.add_prompt_arguments(parser, "laclip", "instruct")
    rules = "\n".join(f"  {name:<16} {meaning}" for name, meaning in REASONS.items())
    gate = parser.add_argument_group("gate", f"rules, in the order in which they are asked:\n{rules}\n")
    for name, info in GateOptions.model_fields.items():
        flags.add_field(gate, "gate", name, info, f"{info.description} ({flags.default_of(info)})")


@dataclass(frozen=True)
class RewriteOptions:
    """What ``vlp data rewrite`` does once texts are asked for; see ``add_arguments``."""

    gate: GateOptions
    keep_rejected: bool = False
    means: Means = field(default_factory=Means)
    part: str | None = None


@dataclass
class RewriteReport:
    """What was found, written now, and accepted; ``unanswered`` texts are asked for by the next run."""

    survey: Survey
    wrote: Wrote
    figures: RewriteFigures
    unanswered: int = 0
    unfinished: int = 0

    def show(self, name: str) -> None:
        """Print the counts and the table of reasons, and loudly what rejects most of the texts."""
        from data_tools._rewrite_layers import REFUSED, UNWRITTEN

        reasons = self.figures.figures.table("reasons")
        for line in self.wrote.lines():
            print(line)
        print(f"captions: {self.survey.captions:,}, {self.survey.distinct:,} of them different")
        for line in self.survey.left_out.lines():
            print(f"  {line}")
        if not (texts := reasons.total()):
            return
        print(f"accepted {reasons['']:,} of {texts:,} texts ({reasons[''] / texts:.1%}), counted once a sample")
        rejected = [(count, reason) for reason, count in reasons.most_common() if reason]
        width = max((len(reason) for _, reason in rejected), default=0)
        for count, reason in rejected:
            print(f"  {count:>11,}  {count / texts:>6.1%}  {reason:<{width}}  {REASONS.get(reason, UNWRITTEN)}")
        if reasons[REFUSED]:
            print(
                f"{REFUSED} texts are not asked for again: for that remove their lines, which hold a problem, from the "
                f"files in {name}/.completions"
            )
        if (share := 1 - reasons[""] / texts) > LOUD_SHARE:
            print(f"WARNING: {share:.0%} of the texts are rejected: look at them with --report, then try another model")
        if reasons[""]:
            print(f"train with data.captions: [{{source: txt}}, {{source: layer.{name}, each: true}}]")


def run(arguments: argparse.Namespace) -> None:
    from data_tools.verify import check_output

    job = _job(arguments)
    paths = _shards(arguments, job)
    gate = flags.checked(GateOptions, flags.given(arguments, "gate", GateOptions.model_fields))
    check_output("--json", arguments.json)
    check_output("--report", arguments.report)
    if arguments.dry_run and (arguments.json or arguments.report or arguments.keep_rejected):
        raise UserError("--json, --report and --keep-rejected have no effect with --dry-run: leave them for the run")
    means = Means(arguments.workers, arguments.ray, arguments.gpus)
    options = RewriteOptions(gate, arguments.keep_rejected, means, arguments.part)
    if not paths:
        print(f"--part {arguments.part}: no shard falls into this part")
        return
    if arguments.dry_run:
        for line in dry_run(paths, job, options):
            print(line)
        return
    report = write_rewrites(paths, job, options)
    if arguments.json or arguments.report:
        _write_sheet(paths, job, report, gate, arguments.json, arguments.report)
    report.show(job.name)
    if not report.survey.captions:
        print(f"--part {arguments.part}: no sample of this part has a caption, so its layer is empty")
    if report.unanswered:
        raise UserError(
            f"{report.unanswered:,} texts were not answered, so {report.unfinished:,} of {len(paths):,} shards have no "
            "layer yet: run the same command again, which asks for them only"
        )


def _job(arguments: argparse.Namespace) -> Job:
    """What is asked for, refused before anything heavy is loaded if it cannot be."""
    from data_tools._language_models import prompts
    from data_tools._language_models.shards import Job
    from vlp.data.layers import LayerWriter

    if arguments.number < 1:
        raise UserError(f"--number {arguments.number} must be at least 1")
    check_caption_source(arguments.caption)
    if arguments.gpus is not None and (arguments.ray is None or arguments.gpus < 0):
        raise UserError(f"--gpus {arguments.gpus:g} has no effect without --ray: it is what Ray gives each task")
    LayerWriter(arguments.root, arguments.name, {})  # refuses a name that cannot be used
    prompt = prompts.load(arguments.prompt or "laclip")
    return Job(
        flags.engine(arguments),
        prompt,
        flags.sampling(arguments, prompt.sampling),
        arguments.number,
        arguments.seed,
        arguments.caption,
        arguments.root,
        arguments.name,
    )


def _shards(arguments: argparse.Namespace, job: Job) -> list[str]:
    from vlp.data.layer_files import check_file_names, refuse_layers_of_others
    from vlp.data.shards import find_shards

    paths = find_shards(arguments.shards, named="SHARDS")
    check_file_names(paths, arguments.root)
    paths = flags.part_of(paths, arguments.part)
    for path in paths:
        job.completions(path)  # refuses a store that cannot append, before it is asked for layers
    for name in (arguments.name, f"{arguments.name}_rejected"):
        refuse_layers_of_others(paths, name, arguments.root, "vlp data rewrite")
    return paths


def dry_run(paths: Sequence[str], job: Job, options: RewriteOptions) -> list[str]:
    """What the rest will cost, for a terminal. The texts on which it is measured are kept."""
    from data_tools._language_models import estimate, passes
    from data_tools._rewrite_gate import judge

    found = passes.look(paths, job, options.means, options.part is not None)
    measured = passes.measure(paths, job, found, options.means)
    lines = estimate.lines(found, job, measured) + [f"          {line}" for line in found.left_out.lines()]
    for request, completion in (measured.texts if measured else ())[:NUM_SHOWN]:
        ((verdict,),) = judge(options.gate, [(request.caption, [completion.text])])
        fate = completion.problem or verdict.reason or "accepted"
        lines.append(f"{request.caption}\n    {verdict.text}  ({fate}{': ' if verdict.detail else ''}{verdict.detail})")
    return lines


def write_rewrites(paths: Sequence[str], job: Job, options: RewriteOptions) -> RewriteReport:
    """Have the missing texts written, then write the layer of each shard whose texts are all there.

    Raises:
        UserError: no captions, an engine that cannot be used or went away, files that are not ours to write.
    """
    from data_tools import _rewrite_layers as layers
    from data_tools._language_models import passes
    from data_tools._rewrite_figures import RewriteFigures

    means = options.means
    found = passes.look(paths, job, means, options.part is not None)
    if found.lacking:
        _try(options.gate)
    report = RewriteReport(found, passes.write(paths, job, found, means), RewriteFigures(NUM_DRAWN))
    gate = partial(
        layers.write_layer, job=job, gate=options.gate, keep_rejected=options.keep_rejected, num_drawn=NUM_DRAWN
    )
    gpus = means.gpus if options.gate.clip_model else None
    for _, gated in map_shards(gate, paths, "judging texts", means.workers, means.ray, gpus):
        report.figures += gated.figures
        report.unanswered += gated.unanswered
        report.unfinished += bool(gated.unanswered)
    return report


def _try(gate: GateOptions) -> None:
    """Refuse a gate that lacks a package or a model before hours of writing, not after them."""
    from data_tools._rewrite_gate import judge

    judge(gate, [("a red bus", ["a bus in red"])])
    if gate.clip_model:
        from vlp.encoders import openclip

        openclip.load(gate.clip_model)


def _write_sheet(
    paths: Sequence[str], job: Job, report: RewriteReport, gate: GateOptions, file: Path | None, page: Path | None
) -> None:
    from data_tools._rewrite_sheet import sheet

    left_out = report.survey.left_out
    kinds = {kind: {"number": count, "examples": left_out.examples[kind]} for kind, count in left_out.counts.items()}
    content = sheet(paths, job, gate, report.figures, report.unanswered, kinds)
    if file:
        write_json(file, content)
    if page:
        from vlp.evaluation.report.rewrite_sheet import write_page

        write_page(content, page)
