"""Train a recipe, or go on with its run.

Overrides are key=value; there are no flags.
"""

from __future__ import annotations

import argparse

from vlp.commands import _recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _recipe.add_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    from vlp import distributed, recipe
    from vlp.evaluation.run import format_table
    from vlp.trainer import train

    outcome = train(recipe.load(arguments.recipe, arguments.overrides))
    if outcome.results:
        distributed.say(format_table(outcome.results))
    if outcome.finished:
        distributed.say(f"finished {outcome.run_dir}; look at it with: vlp report {outcome.run_dir}")
    distributed.leave()
