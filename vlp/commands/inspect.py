"""What a recipe would run, without running it."""

from __future__ import annotations

import argparse

from vlp.commands import _recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _recipe.add_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    from vlp import recipe
    from vlp.inspection import inspect

    print(inspect(recipe.load(arguments.recipe, arguments.overrides)))
