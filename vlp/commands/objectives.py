"""List the objectives, or read what one promises."""

from __future__ import annotations

import argparse
import inspect

from vlp import resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="formula, needs, cost, relations and source of this one"
    )


def run(arguments: argparse.Namespace) -> None:
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
