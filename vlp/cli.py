"""The command line: thin, and quick to answer --help (only the chosen command is imported).

A command is a file in `vlp/commands/`: a docstring whose first line is its summary, ``add_arguments(parser)`` and
``run(arguments)``, which imports what is heavy. ``vlp data`` has the tools of `data_tools/`, which are made alike.
"""

from __future__ import annotations

import argparse
import errno
import inspect
import logging
import os
import sys

from vlp import __version__, resolve
from vlp.types import UserError

COMMANDS, TOOLS = "vlp.commands", "data_tools"


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a `UserError`, or a file that cannot be used, is one sentence and ends with exit code 2."""
    try:
        try:
            parsed = _parser(sys.argv[1:] if arguments is None else arguments).parse_args(arguments)
            _quiet()
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
    """With the options of the command that ``arguments`` name; of the others the summary will do."""
    parser = argparse.ArgumentParser(prog="vlp", description="Pretrain, fine-tune and benchmark CLIP-style models.")
    parser.add_argument("--version", action="version", version=f"vlp {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add(commands, COMMANDS, "command", chosen=arguments[:1])
    data = commands.add_parser("data", help="Make, check and change data sets: vlp data TOOL.")
    tools = data.add_subparsers(title="tools", required=True, metavar="TOOL")
    _add(tools, TOOLS, "data tool", chosen=arguments[1:2] if arguments[:1] == ["data"] else [])
    return parser


def _add(
    parsers: argparse._SubParsersAction[argparse.ArgumentParser], package: str, noun: str, chosen: list[str]
) -> None:
    for name in resolve.names(package):
        summary = resolve.summary(package, name)
        parser = parsers.add_parser(name, help=summary, description=summary)
        if chosen == [name]:
            module = resolve.module(package, name, noun)
            parser.description, parser.formatter_class = inspect.getdoc(module), argparse.RawDescriptionHelpFormatter
            module.add_arguments(parser)
            parser.set_defaults(command=module.run)


def _quiet() -> None:
    """Libraries speak only when something is wrong."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
