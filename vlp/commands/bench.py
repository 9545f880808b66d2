"""How fast a recipe runs on this machine, beside other libraries."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vlp import resolve
from vlp.commands import _recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help=f"what is measured: {', '.join(resolve.names('vlp.bench'))}")
    _recipe.add_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="write all figures there")


def run(arguments: argparse.Namespace) -> None:
    from vlp import recipe

    benchmark = resolve.module("vlp.bench", arguments.name, "benchmark")
    if arguments.json:
        Path(arguments.json).touch()  # a path that cannot be written is told before minutes of measuring
    figures = benchmark.run(recipe.load(arguments.recipe, arguments.overrides))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
