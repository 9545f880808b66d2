"""A model directory for other libraries, checked for parity."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="run, checkpoint or MODEL")
    parser.add_argument("directory", help="directory to write")
    parser.add_argument("--to", default="open_clip", choices=["open_clip"], help="format (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from vlp.export import export

    print(json.dumps(export(arguments.model, arguments.directory, arguments.to), indent=1))
