"""The command line: thin, without training flags, and quick to answer --help (heavy imports wait for the command)."""

from __future__ import annotations

import argparse
import errno
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from vlp import __version__, resolve
from vlp.types import UserError

Command = Callable[[argparse.Namespace], None]


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a `UserError`, or a file that cannot be used, is one sentence and ends with exit code 2."""
    try:
        try:
            parsed = _parser(sys.argv[1:] if arguments is None else arguments).parse_args(arguments)
            parsed.command(parsed)
        finally:
            sys.stdout.flush()  # so that a reader that has gone is met here, not when Python exits
    except UserError as error:
        print(f"vlp: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # `vlp ... | head` has seen enough; what is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if not error.filename and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = error.filename or "the disk"
        print(f"vlp: {place}: {error.strerror}: check the path, your rights and the space there", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("vlp: interrupted", file=sys.stderr)
        sys.exit(130)


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vlp", description="Pretrain, fine-tune and benchmark CLIP-style models.")
    parser.add_argument("--version", action="version", version=f"vlp {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Command, help: str, description: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=description or help)
        sub.set_defaults(command=command)
        return sub

    sub = add("quickstart", _quickstart, "the main job from nothing: data, training, evaluation, report")
    sub.add_argument("--dir", default="runs/quickstart", help="where everything goes (default: %(default)s)")

    sub = add(
        "train",
        _train,
        "train a recipe, or go on with its run",
        "Overrides are key=value; there are no flags.",
    )
    sub.add_argument("recipe", help="a YAML file, or the name of one in recipes/")
    overrides = "such as train.steps=100 profile=smoke"
    sub.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=overrides)

    sub = add("eval", _eval, "zero-shot evaluation of a model on evaluation sets")
    sub.add_argument("model", help="run, checkpoint or exported directory, NAME:TAG of open_clip, hf-hub:, local-dir:")
    sub.add_argument(
        "--on",
        nargs="+",
        required=True,
        metavar="DIR",
        help="evaluation sets: directories, or a file where one holds several; captioning:DIR has captions written",
    )
    sub.add_argument("--scorer", metavar="MODEL", help="whose CLIPScore captions get (default: the captioner's own)")
    sub.add_argument("--beams", type=int, metavar="N", help="of a search for captions (default: 3)")
    sub.add_argument("--output", metavar="FILE", help="JSON in CLIP_benchmark's shape; {dataset} in it: a file a set")
    sub.add_argument("--batch-size", type=int, default=256, help="pictures at once (default: %(default)s)")

    sub = add("caption", _caption, "what pictures show, told by a captioner; of shards as a layer beside them")
    if arguments[:1] == ["caption"]:  # the options of its parts are imported for no other command
        from vlp import caption_command

        sub.description = caption_command.DESCRIPTION
        caption_command.add_arguments(sub)

    sub = add("report", _report, "one self-contained HTML page of a run, with others beside it, or of a sheet")
    sub.add_argument("run", help="run directory, or a sheet: the JSON of a data tool")
    sub.add_argument(
        "beside", nargs="*", metavar="OTHER", help="runs, or JSON of vlp eval --output, whose scores stand beside RUN's"
    )
    sub.add_argument("--output", metavar="FILE", help="default: RUN/report.html, or the JSON's name with .html")

    sub = add("doctor", _doctor, "what is wrong with a run, on one page, from its files; also while it goes on")
    sub.add_argument("run", help="run directory")
    sub.add_argument("--json", metavar="FILE", help="write all findings there")

    sub = add("export", _export, "a model directory for other libraries, checked for parity")
    sub.add_argument("model", help="run, checkpoint or MODEL")
    sub.add_argument("directory", help="directory to write")
    sub.add_argument("--to", default="open_clip", choices=["open_clip"], help="format (default: %(default)s)")

    sub = add("inspect", _inspect, "what a recipe would run, without running it")
    sub.add_argument("recipe", help="a YAML file, or the name of one in recipes/")
    sub.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=overrides)

    sub = add("bench", _bench, "how fast a recipe runs on this machine, beside other libraries")
    sub.add_argument("name", metavar="NAME", help=f"what is measured: {', '.join(resolve.names('vlp.bench'))}")
    sub.add_argument("recipe", help="a YAML file, or the name of one in recipes/")
    sub.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=overrides)
    sub.add_argument("--json", metavar="FILE", help="write all figures there")

    add("recipes", _recipes, "list the recipes")
    sub = add("objectives", _objectives, "list the objectives, or read what one promises")
    sub.add_argument("name", nargs="?", metavar="NAME", help="formula, needs, cost, relations and source of this one")

    sub = commands.add_parser("data", help="make, check and change data sets: vlp data TOOL")
    tools = sub.add_subparsers(title="tools", required=True, metavar="TOOL")
    for name in resolve.names("data_tools"):
        summary = resolve.summary("data_tools", name)
        tool = tools.add_parser(name, help=summary, description=summary)
        if arguments[:2] == ["data", name]:  # only the chosen tool is imported
            module = resolve.module("data_tools", name, "data tool")
            tool.description, tool.formatter_class = inspect.getdoc(module), argparse.RawDescriptionHelpFormatter
            module.add_arguments(tool)
            tool.set_defaults(command=module.run)
    return parser


def _quickstart(arguments: argparse.Namespace) -> None:
    _quiet()
    from vlp.quickstart import quickstart

    quickstart(arguments.dir)


def _train(arguments: argparse.Namespace) -> None:
    _quiet()
    from vlp import distributed, recipe
    from vlp.evaluation.run import format_table
    from vlp.trainer import train

    outcome = train(recipe.load(arguments.recipe, arguments.overrides))
    if outcome.results:
        distributed.say(format_table(outcome.results))
    if outcome.finished:
        distributed.say(f"finished {outcome.run_dir}; look at it with: vlp report {outcome.run_dir}")
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _eval(arguments: argparse.Namespace) -> None:
    _quiet()
    from vlp.encoders.openclip import load
    from vlp.evaluation import run
    from vlp.flags import checked

    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size} must be at least 1")
    told = {name: getattr(arguments, name) for name in ("beams", "scorer") if getattr(arguments, name) is not None}
    captioning = checked(run.CaptioningOptions, told) if told else None
    tasks = run.open_tasks(checked(run.EvaluateOptions, {"sets": arguments.on, "captioning": captioning}))
    model = load(arguments.model, _device())
    name, _, tag = arguments.model.partition(":")
    is_tagged = tag and name not in ("hf-hub", "local-dir") and not os.path.exists(arguments.model)
    name, pretrained = (name, tag) if is_tagged else (arguments.model, model.weights)
    for task in tasks:
        task.check(model)
    results = run.run_tasks(model, tasks, arguments.batch_size, name, pretrained)
    print(run.format_table(results))
    if arguments.output:
        run.write_results(results, arguments.output)


def _caption(arguments: argparse.Namespace) -> None:
    _quiet()
    from vlp.caption_command import run

    run(arguments, _device())


def _report(arguments: argparse.Namespace) -> None:
    _quiet()
    if arguments.run.endswith(".json"):
        from vlp.evaluation.report.sheets import write_report_of_sheet

        if arguments.beside:
            raise UserError(f"{arguments.run} is no run directory: name first the run beside which the others stand")
        print(write_report_of_sheet(arguments.run, arguments.output))
        return
    from vlp.evaluation.report import write_report

    print(write_report(arguments.run, arguments.output, arguments.beside))


def _doctor(arguments: argparse.Namespace) -> None:
    from vlp import doctor

    diagnosis = doctor.examine(arguments.run)
    doctor.show(diagnosis)
    if arguments.json:
        text = json.dumps(diagnosis.to_json(), indent=1, ensure_ascii=False)
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")


def _export(arguments: argparse.Namespace) -> None:
    _quiet()
    from vlp.export import export

    print(json.dumps(export(arguments.model, arguments.directory, arguments.to), indent=1))


def _inspect(arguments: argparse.Namespace) -> None:
    _quiet()
    from vlp import recipe
    from vlp.inspection import inspect

    print(inspect(recipe.load(arguments.recipe, arguments.overrides)))


def _bench(arguments: argparse.Namespace) -> None:
    _quiet()
    from vlp import recipe

    benchmark = resolve.module("vlp.bench", arguments.name, "benchmark")
    if arguments.json:
        Path(arguments.json).touch()  # a path that cannot be written is told before minutes of measuring
    figures = benchmark.run(recipe.load(arguments.recipe, arguments.overrides))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _recipes(arguments: argparse.Namespace) -> None:
    for path in sorted(resolve.recipes_folder().glob("*.yaml")):
        first_line = path.read_text(encoding="utf-8").split("\n", 1)[0]
        print(f"{path.stem:<20} {first_line.lstrip('# ')}")


def _objectives(arguments: argparse.Namespace) -> None:
    if arguments.name:
        module = resolve.module("vlp.objectives", arguments.name, "objective")
        print(inspect.getdoc(module))
        print("\nOptions (docs/recipes.md has their defaults):")
        for option, field in module.Objective.model_fields.items():
            if option != "name":
                print(f"  {option}: {field.description}")
        return
    for name in resolve.names("vlp.objectives"):
        print(f"{name:<20} {resolve.summary('vlp.objectives', name)}")


def _quiet() -> None:
    """Libraries speak only when something is wrong."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


def _device() -> str:
    import torch

    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
