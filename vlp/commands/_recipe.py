"""RECIPE and its overrides, as several commands take them."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, or the name of one in recipes/")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="such as train.steps=100 profile=smoke"
    )
