"""Zero-shot evaluation of models on evaluation sets, or on a suite of them.

  vlp eval runs/mine --on data/eval/retrieval            one model, one set
  vlp eval ViT-B-32:openai runs/mine --suite datacomp38 --root /data --output-dir results

With --output-dir the same command goes on where it was stopped, and what has not changed is not computed again; the
directory has a JSON for each model and set (clip_benchmark build makes its table of them), results.csv, results.md and
report.html. Several processes share the work: torchrun --standalone --nproc_per_node 2 -m vlp eval ...

Suites:
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from vlp.commands import _model
from vlp.evaluation.classification_options import ClassificationOptions
from vlp.evaluation.multilingual_options import MultilingualOptions
from vlp.flags import add_field, checked, given
from vlp.types import UserError

if TYPE_CHECKING:
    from vlp.evaluation.results import Result
    from vlp.evaluation.run import EvaluateOptions
    from vlp.evaluation.sweep import SetToDo
    from vlp.evaluation.team import Team

_SECTIONS: dict[str, tuple[str, type[BaseModel]]] = {
    "classification": ("sets with classes", ClassificationOptions),
    "multilingual": ("sets in several languages", MultilingualOptions),
}
_TIMEOUT = timedelta(hours=6)  # of processes that wait for the first one, which may write captions
SUITES = "vlp.evaluation.suites"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from vlp import resolve

    listed = [f"  {name.replace('_', '-'):<16} {resolve.summary(SUITES, name)}" for name in resolve.names(SUITES)]
    parser.description = "\n".join([parser.description or "", *listed])
    add = parser.add_argument
    add(
        "model",
        nargs="+",
        help="run, checkpoint or exported directory, NAME:TAG of open_clip, hf-hub:, local-dir:, or FILE.txt of them",
    )
    _model.add_offline(parser)
    sets = parser.add_mutually_exclusive_group(required=True)
    sets.add_argument(
        "--on",
        nargs="+",
        metavar="DIR",
        help="evaluation sets: directories, or a file where one holds several; captioning:DIR has captions written",
    )
    sets.add_argument("--suite", metavar="NAME", help="the sets of a suite that lie below --root")
    add("--root", metavar="DIR", help="where the sets of --suite lie")
    add("--output", metavar="FILE", help="JSON in CLIP_benchmark's shape; {dataset}, {model} in it: a file each")
    add("--output-dir", metavar="DIR", help="results, tables and a report, where the same command goes on")
    add("--batch-size", type=int, default=256, help="pictures at once (default: %(default)s)")
    add("--scorer", metavar="MODEL", help="whose CLIPScore captions get (default: the captioner's own)")
    add("--beams", type=int, metavar="N", help="of a search for captions (default: 3)")
    for section, (about, model) in _SECTIONS.items():
        group = parser.add_argument_group(about)
        for name, info in model.model_fields.items():
            add_field(group, section, name, info, info.description or "")


def run(arguments: argparse.Namespace) -> None:
    from vlp import distributed, rendezvous

    _model.heed(arguments)
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size} must be at least 1")
    if (arguments.suite is None) != (arguments.root is None):
        raise UserError("--suite and --root belong together: name the suite, and the directory in which its sets lie")
    rendezvous.join(_TIMEOUT)
    try:
        _run(arguments)
    except UserError:
        if distributed.rank():  # all have the same sentence, one says it
            sys.exit(2)
        raise
    finally:
        distributed.leave()


def _run(arguments: argparse.Namespace) -> None:
    from vlp import distributed
    from vlp.evaluation import team
    from vlp.evaluation.directory import ResultsDirectory
    from vlp.evaluation.results import check_output
    from vlp.evaluation.sweep import models_of, sweep

    if arguments.output:
        check_output(arguments.output)
    models = models_of(arguments.model)
    with distributed.failing_together():  # the first alone at first: some sets write down what they have made
        options, sets = _sets(arguments) if distributed.rank() == 0 else (None, [])
    if options is None:
        options, sets = _sets(arguments)
    directory = ResultsDirectory(arguments.output_dir) if arguments.output_dir else None
    if directory is not None:
        directory.make()
    together = team.everyone()
    with _progress(len(models) * len(sets), together) as done:
        results, lost = sweep(models, sets, options, directory, together, done)
    if distributed.rank() == 0 and results:
        _show(arguments, results)
        _write(arguments, results, directory)
    if lost:
        raise UserError(f"{len(lost)} of {len(models)} models could not be evaluated: {'; '.join(lost)}")


def _sets(arguments: argparse.Namespace) -> tuple[EvaluateOptions, list[SetToDo]]:
    """Every set, opened and checked."""
    from vlp import distributed
    from vlp.evaluation import run as evaluation
    from vlp.evaluation.suites import base
    from vlp.evaluation.sweep import SetToDo

    entries: dict[str, base.Entry] = {}
    if arguments.suite is not None:
        suite = base.suite(arguments.suite)
        entries, missing = suite.below(Path(arguments.root))
        if not entries:
            raise UserError(
                f"--root {arguments.root} has none of the {len(suite.entries)} sets of {arguments.suite}: it looks for "
                f"directories such as {suite.entries[0].places[0]}, from {suite.entries[0].where}"
            )
        if missing:
            lines = "".join(f"\n  {line}" for line in base.missing(missing))
            distributed.say(f"{arguments.suite}: {len(entries)} of {len(suite.entries)} sets are there, without{lines}")
    named = list(entries) or arguments.on
    options = _options(arguments, named)
    sets = []
    for entry, task in zip(named, evaluation.open_tasks(options), strict=True):
        note = entries[entry].differs(task) if entry in entries else ""
        if note:
            distributed.say(f"{task.name} {note}")
        sets.append(SetToDo(entry, task, arguments.suite or "", note))
    return options, sets


def _options(arguments: argparse.Namespace, sets: list[str]) -> EvaluateOptions:
    from vlp.evaluation.run import EvaluateOptions
    from vlp.evaluation.tasks.captioning import CaptioningOptions

    values: dict[str, Any] = {"sets": sets, "batch_size": arguments.batch_size}
    told = {name: getattr(arguments, name) for name in ("beams", "scorer") if getattr(arguments, name) is not None}
    if told:
        values["captioning"] = checked(CaptioningOptions, told)
    for section, (_, model) in _SECTIONS.items():
        asked = given(arguments, section, model.model_fields)
        if asked:
            values[section] = checked(model, asked)
    return checked(EvaluateOptions, values)


@contextmanager
def _progress(total: int, together: Team) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, lines elsewhere; nothing but from the first process."""
    from vlp import distributed

    if together.rank or not sys.stderr.isatty():
        yield distributed.say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("", total=total)

        def tell(line: str) -> None:
            place = line.partition(" of ")[0]
            if place.isdecimal():
                bar.update(row, completed=int(place) - 1, description=line.partition(": ")[2])
            else:
                bar.console.print(line, markup=False, highlight=False)

        yield tell


def _show(arguments: argparse.Namespace, results: list[Result]) -> None:
    from vlp.evaluation import tables
    from vlp.evaluation.suites import base

    one = len({(result.model, result.pretrained) for result in results}) == 1
    print(tables.format_table(results) if one else tables.format_models(results))
    if arguments.suite is not None:
        print(tables.format_suite(arguments.suite, base.suite(arguments.suite), results))


def _write(arguments: argparse.Namespace, results: list[Result], directory: Any) -> None:
    from vlp.evaluation.results import write_results

    if arguments.output:
        write_results(results, arguments.output)
    if directory is not None:
        from vlp.evaluation.report.comparison import write_comparison

        directory.write_tables()
        print(write_comparison(directory.path))
