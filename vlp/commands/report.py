"""One self-contained HTML page of a run, with others beside it, or of a sheet."""

from __future__ import annotations

import argparse

from vlp.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run directory, or a sheet: the JSON of a data tool")
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

    print(write_report(arguments.run, arguments.output, arguments.beside))
