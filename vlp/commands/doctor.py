"""What is wrong with a run, on one page, from its files; also while it goes on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run directory")
    parser.add_argument("--json", metavar="FILE", help="write all findings there")


def run(arguments: argparse.Namespace) -> None:
    from vlp import doctor

    diagnosis = doctor.examine(arguments.run)
    doctor.show(diagnosis)
    if arguments.json:
        text = json.dumps(diagnosis.to_json(), indent=1, ensure_ascii=False)
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")
