"""Tries claims of papers on drawn scenes: trains every arm with the same seeds and says what the pairs show.

    python benchmarks/claims/run.py [C6 ...] --jobs 2

Draws the data, trains what is not trained yet, and writes results/CLAIM.json, plots/CLAIM.png and the tables of
README.md from all that is finished. Ctrl-C loses nothing: the same command goes on. --collect-only trains nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import page
import plots
import runs
from claim import HERE, Claim, load_all, select
from intervals import MAX_SEEDS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vlp.types import UserError

WORK = Path("runs/benchmark-claims")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("claims", nargs="*", metavar="CLAIM", help="such as C6 or c06_contrastive_gap (default: all)")
    add("--seeds", type=int, default=5, metavar="N", help="runs of each arm, with the seeds 0 to N-1 (%(default)s)")
    add("--jobs", type=int, default=2, metavar="N", help="processes that train at once (%(default)s)")
    add("--threads", type=int, default=1, metavar="N", help="threads of each (%(default)s)")
    add("--work", type=Path, default=WORK, metavar="DIR", help="data and runs (%(default)s)")
    add("--output", type=Path, default=HERE, metavar="DIR", help="for results/, plots/ and README.md (%(default)s)")
    add("--list", action="store_true", help="list the claims, their arms and what is finished")
    add("--collect-only", action="store_true", help="train nothing: write down what is finished")
    arguments = parser.parse_args()
    if not 1 <= arguments.seeds <= MAX_SEEDS or min(arguments.jobs, arguments.threads) < 1:
        parser.error(f"--seeds takes 1 to {MAX_SEEDS}, --jobs and --threads at least 1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return benchmark(arguments)
    except UserError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def benchmark(arguments: argparse.Namespace) -> int:
    """Train and collect; returns 1 where a run failed."""
    work = arguments.work.absolute()
    claims = select(load_all(), arguments.claims)
    queues = {stem: runs.jobs_of(work, stem, claim, range(arguments.seeds)) for stem, claim in claims.items()}
    if arguments.list:
        for stem, claim in claims.items():
            describe(stem, claim, queues[stem])
        return 0
    failed = 0
    try:
        if not arguments.collect_only:
            there = {stem: jobs for stem, jobs in queues.items() if not left_out(jobs)}
            failed = len(queues) - len(there) + train(there, arguments)
    finally:
        for stem, claim in claims.items():
            try:
                publish(stem, claim, queues[stem], arguments.output)
            except UserError as error:  # the others shall be published all the same
                print(f"{Path(__file__).name}: {error}", file=sys.stderr)
                failed += 1
        write_page(arguments.output)
    return 1 if failed else 0


def left_out(jobs: list[runs.Job]) -> bool:
    """Whether the data of a claim are missing, said aloud: only scenes are drawn here."""
    claim, folder = jobs[0].claim, jobs[0].missing_data()
    if folder:
        print(
            f"{claim.name} {claim.title}: left out, as there is no {folder} here: {claim.recipe_file} says how it is "
            "made",
            file=sys.stderr,
        )
    return bool(folder)


def describe(stem: str, claim: Claim, jobs: list[runs.Job]) -> None:
    done = sum(job.finished() for job in jobs)
    print(f"{claim.name:<4} {claim.title} ({stem}; {done} of {len(jobs)} runs finished)\n     {claim.promise}")
    for name, arm in claim.arms.items():
        print(f"       {name:<32} {arm.data if claim.data else '':<8} {' '.join(arm.overrides)}")


def train(queues: Mapping[str, list[runs.Job]], arguments: argparse.Namespace) -> int:
    """Draw the data and train what is not finished; returns how many runs failed."""
    waiting = [job for jobs in queues.values() for job in jobs if not job.finished()]
    total = sum(map(len, queues.values()))
    drawn = [job for job in waiting if job.claim.data]
    for data, layers in dict.fromkeys((job.data_options, tuple(job.claim.layers.items())) for job in drawn):
        runs.draw(arguments.work.absolute(), data, arguments.threads)
        for name, command in layers:
            runs.write_layer(arguments.work.absolute(), data, name, command, arguments.threads)
    failed, started = 0, time.monotonic()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=total, completed=total - len(waiting))
        ended = 0

        def report(job: runs.Job, seconds: float, problem: str) -> None:
            nonlocal failed, ended
            ended += 1
            failed += bool(problem)
            left = (time.monotonic() - started) / ended * (len(waiting) - ended) / 60
            said = f"FAILED: {problem}" if problem else "done"
            line = (
                f"{total - len(waiting) + ended}/{total}  {job.label}: {said}  ({seconds:.0f} s; {left:.0f} min left)"
            )
            console.print(line, markup=False, highlight=False, soft_wrap=True)
            bar.update(task, advance=1, description=f"training ({failed} failed)" if failed else "training")

        runs.train(waiting, arguments.jobs, arguments.threads, report)
    return failed


def publish(stem: str, claim: Claim, jobs: list[runs.Job], output: Path) -> None:
    """``results/STEM.json`` and ``plots/STEM.png`` of what is finished; nothing where nothing is."""
    found = runs.collect(jobs)
    if not found:
        return
    for figure in page.missing_figures(claim, found):
        print(f"{claim.name}: no run has the figure {figure}", file=sys.stderr)
    notes: dict[str, dict[int, dict[str, Any]]] = {}
    for job in jobs:
        if job.seed in found.get(job.arm, {}):
            notes.setdefault(job.arm, {})[job.seed] = job.done()
    failed: dict[str, list[int]] = {}
    for job in jobs:
        if job.failed():
            failed.setdefault(job.arm, []).append(job.seed)
    record = page.record(claim, found, notes, failed)
    (output / "results").mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (output / "results" / f"{stem}.json").write_text(text, encoding="utf-8")
    plots.plot(record, output / "plots" / f"{stem}.png")
    print(f"{claim.name} {claim.title}: {record['verdict']}")
    for finding in record["findings"]:
        print(
            f"  {page.verdict(finding):<12} {finding['name']}: {page.interval(finding)} "
            f"(expected {finding['expected']})"
        )


def write_page(output: Path) -> None:
    """The tables of all results there are, between the marks of README.md, where there is one."""
    readme = output / "README.md"
    results = sorted((output / "results").glob("*.json"))
    if readme.is_file() and results:
        records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in results}
        text = page.with_results(readme.read_text(encoding="utf-8"), page.markdown(records))
        readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
