"""The main job from nothing: data, training, evaluation, report."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", default="runs/quickstart", help="where everything goes (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from vlp.quickstart import quickstart

    quickstart(arguments.dir)
