"""List the recipes."""

from __future__ import annotations

import argparse

from vlp import resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(arguments: argparse.Namespace) -> None:
    recipes = resolve.recipes()
    width = max(map(len, recipes), default=0)
    for name, path in recipes.items():
        first_line = path.read_text(encoding="utf-8").split("\n", 1)[0]
        print(f"{name:<{width}}  {first_line.lstrip('# ')}")
