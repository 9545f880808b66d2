"""One self-contained HTML page of a run, with others beside it, of a directory of results, or of a sheet.

It needs neither network nor server.

  vlp report runs/mine                 a run: its figures, curves, data and failures
  vlp report results                   what vlp eval --output-dir has written: models beside each other
  vlp report data/train/data.json      the sheet of a data tool
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlp.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run directory, directory of results, or a sheet: the JSON of a data tool")
    parser.add_argument(
        "beside", nargs="*", metavar="OTHER", help="runs, or JSON of vlp eval --output, whose scores stand beside RUN's"
    )
    parser.add_argument("--output", metavar="FILE", help="default: RUN/report.html, or the JSON's name with .html")


def run(arguments: argparse.Namespace) -> None:
    if arguments.run.endswith(".json"):
        from vlp.evaluation.report.sheets import write_report_of_sheet

        if arguments.beside:
            raise UserError(f"{arguments.run} is no run directory: name first the run beside which the others stand")
        print(write_report_of_sheet(arguments.run, arguments.output))
        return
    from vlp.evaluation.report import write_report
    from vlp.evaluation.report.comparison import is_directory_of_results, write_comparison

    if is_directory_of_results(Path(arguments.run)):
        if arguments.beside:
            raise UserError(f"{arguments.run} is no run directory: vlp eval adds others to its results")
        print(write_comparison(arguments.run, arguments.output))
        return

    print(write_report(arguments.run, arguments.output, arguments.beside))
